"""What a weights provider is checked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tlray.core.errors import UserError
from tlray.models import registry, weights
from tlray.models.interfaces import WeightsProvider
from tlray.plugins.contract.check import Check, Failed, NotHere, Subject, loads, must, offline, trying


class ProviderSubject(Subject[WeightsProvider]):
    """A weights provider."""

    kind = "weights"


def provides(subject: ProviderSubject) -> None:
    """Each of the weights it offers it provides as a file, without network access."""
    must(subject.plugin.offers, "it offers no weights")
    for backbone, name in subject.plugin.offers:
        with TemporaryDirectory(prefix="tlray-") as folder:
            with offline(), trying(f"provide({backbone!r}, {name!r}, ...) failed"):
                file = subject.plugin.provide(backbone, name, Path(folder))
            must(file is not None, f"it offers {backbone}/{name}, but provides None")
            must(
                isinstance(file, Path) and file.is_file() and file.suffix in (".npz", ".h5"),
                f"for {backbone}/{name} it provides {str(file)!r}, expected the path of an .npz or .h5 file",
            )


def knows_only_its_own(subject: ProviderSubject) -> None:
    """Asked for weights that it does not offer, it provides None, and writes nothing."""
    with TemporaryDirectory(prefix="tlray-") as folder:
        with offline(), trying("provide('no-such-backbone', 'none', ...) failed, expected None"):
            file = subject.plugin.provide("no-such-backbone", "none", Path(folder))
        must(
            file is None and not os.listdir(folder),
            f"for weights that it does not offer it provides {file}: return None unless "
            "(backbone, weights) is one of offers",
        )


def provides_the_right_ones(subject: ProviderSubject) -> None:
    """What it provides has the SHA-256 that the backbone says, for each backbone that is installed."""
    checked = 0
    for backbone, name in subject.plugin.offers:
        try:
            plugin = registry.backbone(backbone)
        except UserError:
            continue
        must(
            name in plugin.weights,
            f"it offers {backbone}/{name}, but {backbone} knows {', '.join(plugin.weights) or 'no weights'}: "
            "weights are only taken whose SHA-256 the backbone says",
        )
        try:
            with offline(), _no_keras_cache():
                weights.resolve(plugin, name, [subject.plugin])
        except UserError as error:
            raise Failed(str(error)) from error
        checked += 1
    if not checked:
        raise NotHere(f"not installed: {', '.join(sorted({pair[0] for pair in subject.plugin.offers}))}")


@contextmanager
def _no_keras_cache() -> Iterator[None]:
    """Keras' downloads, which come before providers, are out of sight."""
    home = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = os.devnull
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        if home is not None:
            os.environ["KERAS_HOME"] = home


CHECKS = (
    Check(loads, vital=True),
    Check(provides, vital=True),
    *map(Check, (knows_only_its_own, provides_the_right_ones)),
)
