"""`tlray inspect`: the manifest of a feature set or a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from tlray.cli.options import Result, command
from tlray.core.text import escaped

_LONG = ("history", "job", "stages")
"""Entries that only --json prints."""


@command
def inspect(
    path: Annotated[str, typer.Argument(metavar="FEATURES|MODEL", help="Feature set or model to describe.")],
) -> Result:
    """Show what a feature set or a model contains and how it was made.

    This checks a model's file, and the number of rows and the footer of each file of a feature set; `tlray
    verify` reads all of them.

    Examples:
        tlray inspect features
        tlray inspect model --json
    """
    from tlray.core.errors import UserError
    from tlray.core.storage import Folder
    from tlray.features.feature_set import FeatureSet
    from tlray.models.model import NETWORK, Model

    folder = Folder.open(path)
    if not folder.exists():
        raise UserError(f"{path} does not exist: expected a feature set or a model")
    opened = Model.open(path) if folder.is_file(NETWORK) else FeatureSet.open(path)
    kind = "a model" if isinstance(opened, Model) else "a feature set"
    manifest = opened.manifest.to_json()
    if isinstance(opened, Model):
        opened.read()
    else:
        opened.check()
    lines = [f"{folder.uri} is {kind}"]
    lines += [
        f"  {name:<28} {value}" for name, value in _flat(manifest) if name.partition(".")[0] not in _LONG
    ]
    return Result(manifest, "\n".join(lines))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield escaped(f"{above}{name}"), escaped(text)
