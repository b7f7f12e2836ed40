"""Manifests: that of a folder, the stamp in each Parquet file, and the versions that both record."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from tlray.core.errors import UserError
from tlray.core.record import Record
from tlray.core.storage import Folder

MANIFEST = "manifest.json"
_KEY = b"tlray"
_KINDS = {
    "tlray-features": ("a feature set", "make it anew with `tlray extract`, in a new folder"),
    "tlray-model": ("a model", "make it anew with `tlray fit` or `tlray finetune`, in a new folder"),
}
"""By the name of a format: what such a folder is called, and how to make it anew."""


def stamp(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata for a Parquet file of ours."""
    return {_KEY: json.dumps(values, sort_keys=True).encode()}


def read_stamp(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What `stamp` wrote. Raises ValueError when it is not there or not JSON of that kind."""
    try:
        values = json.loads((metadata or {}).get(_KEY, b"null"))
    except RecursionError as error:
        raise ValueError("its tlray metadata is no JSON of ours") from error
    if not isinstance(values, dict):
        raise ValueError("the file carries no tlray metadata")
    return values


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The manifest of a folder: a JSON file that is written last, so that the folder is complete with it."""

    format: str
    """What the folder is, and in which version, e.g. "tlray-model/1"."""


M = TypeVar("M", bound=Manifest)


def read_manifest(folder: Folder, kind: type[M], expected: str) -> M:
    """Read and check the manifest of a folder.

    Args:
        folder: with a manifest.
        kind: the class of the manifest.
        expected: the format that this version reads.

    Raises:
        UserError: the folder is something else, or its manifest is damaged.
    """
    what, again = _KINDS[expected.partition("/")[0]]
    try:
        values = json.loads(folder.read(MANIFEST))
        found = str(values["format"])
        if found != expected:
            other = _KINDS.get(found.partition("/")[0])
            if other is None or other[0] == what:
                raise UserError(f"{folder.uri} has the format {found}; expected {expected}: {again}")
            raise UserError(f"{folder.uri} is {other[0]}; expected {what} (did you swap the two?)")
        return kind.from_json(values)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{folder.join(MANIFEST)} is damaged: {error}; {again}") from error


def versions() -> dict[str, str]:
    """The versions of all that has a hand in the numbers."""
    return {"python": platform.python_version(), **package_versions()}


def package_versions(*plugins: str) -> dict[str, str]:
    """Those of packages; `plugins` are more of them, each with its version behind it."""
    packages = ("tlray", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow")
    return {name: version(name) for name in (*packages, *(plugin.split()[0] for plugin in plugins))}
