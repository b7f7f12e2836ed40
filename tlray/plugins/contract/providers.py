"""The contract of weights providers."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from tlray.core.errors import UserError
from tlray.models import registry, weights
from tlray.models.interfaces import WeightsProvider
from tlray.plugins.contract.check import Check, Skipped, Subject, explain, loads, offline, require


class ProviderSubject(Subject[WeightsProvider]):
    """The weights provider under test."""

    kind = "weights"


def provides(subject: ProviderSubject) -> None:
    """For each pair in `offers`, `provide` returns the path of a file, without network access."""
    require(subject.plugin.offers, "offers is empty, expected at least one pair (backbone, weights)")
    for backbone, name in subject.plugin.offers:
        with TemporaryDirectory(prefix="tlray-") as folder:
            with offline(), explain(f"provide({backbone!r}, {name!r}, ...) failed"):
                file = subject.plugin.provide(backbone, name, Path(folder))
            require(file is not None, f"offers has {backbone}/{name}, but provide returned None")
            require(
                isinstance(file, Path) and file.is_file() and file.suffix in (".npz", ".h5"),
                f"for {backbone}/{name} provide returned {str(file)!r}, expected the path of an .npz or .h5",
            )


def declines_others(subject: ProviderSubject) -> None:
    """For weights that are not in `offers`, `provide` returns None and writes nothing."""
    with TemporaryDirectory(prefix="tlray-") as folder:
        with offline(), explain("provide('no-such-backbone', 'none', ...) failed, expected None"):
            file = subject.plugin.provide("no-such-backbone", "none", Path(folder))
        require(
            file is None and not os.listdir(folder),
            f"for weights that are not in offers, provide returned {file} or wrote a file: "
            "return None unless (backbone, weights) is in offers",
        )


def matches_digests(subject: ProviderSubject) -> None:
    """The provided weights have the digest that the backbone declares, for each installed backbone."""
    checked = 0
    for backbone, name in subject.plugin.offers:
        try:
            plugin = registry.backbone(backbone)
        except UserError:
            continue
        require(
            name in plugin.weights,
            f"offers has {backbone}/{name}, but {backbone} declares {', '.join(plugin.weights) or 'none'}: "
            "tlray uses only weights whose digest the backbone declares",
        )
        # tlray searches the Keras cache before it asks a provider.
        no_cache = mock.patch.object(weights, "keras_cache", return_value=Path(os.devnull, "models", "none"))
        with offline(), no_cache:
            weights.resolve(plugin, name, [subject.plugin])
        checked += 1
    if not checked:
        backbones = sorted({backbone for backbone, _ in subject.plugin.offers})
        raise Skipped(f"these backbones are not installed: {', '.join(backbones)}")


CHECKS = (
    Check(loads, vital=True),
    Check(provides, vital=True),
    *map(Check, (declines_others, matches_digests)),
)
