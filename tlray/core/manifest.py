"""The manifest of a folder, the metadata of Parquet files, and the package versions that both record."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar

from tlray.core.errors import UserError
from tlray.core.record import Record
from tlray.core.storage import Folder

MANIFEST = "manifest.json"
_KEY = b"tlray"
_KINDS = {
    "tlray-features": ("a feature set", "make a new one with `tlray extract`, in a new folder"),
    "tlray-model": ("a model", "make a new one with `tlray fit` or `tlray finetune`, in a new folder"),
}
"""For the name of each format, what such a folder is called, and how to make a new one."""


def stamp(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The schema metadata with which tlray marks a Parquet file; `values` must be JSON."""
    return {_KEY: json.dumps(values, sort_keys=True).encode()}


def read_stamp(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The values that `stamp` wrote. Raises ValueError if there are none."""
    try:
        values = json.loads((metadata or {}).get(_KEY, b"null"))
    except RecursionError as error:
        raise ValueError("the file's tlray metadata is damaged") from error
    if not isinstance(values, dict):
        raise ValueError("the file has no tlray metadata")
    return values


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """A JSON file in a feature set or model, written last: a folder that has it is complete."""

    format: str
    """The kind of the folder and the version of its format, e.g. "tlray-model/1"."""


M = TypeVar("M", bound=Manifest)


def read_manifest(folder: Folder, kind: type[M], expected: str) -> M:
    """Read and check the manifest of a folder.

    Args:
        folder: a feature set or a model.
        kind: the class of its manifest.
        expected: the format that this version of tlray writes; it also reads those of earlier versions.

    Raises:
        UserError: the folder has another format, or its manifest is damaged.
    """
    name, _, latest = expected.partition("/")
    noun, remedy = _KINDS[name]
    try:
        values = json.loads(folder.read(MANIFEST))
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("format is missing")
        actual = str(values["format"])
        other, _ = _KINDS.get(actual.partition("/")[0], (noun, ""))
        if other != noun:
            raise UserError(f"{folder.uri} is {other}; expected {noun} (did you swap the two?)")
        if actual not in {f"{name}/{version}" for version in range(1, int(latest) + 1)}:
            raise UserError(f"{folder.uri} has the format {actual}; expected {expected}: {remedy}")
        return kind.from_json(values)
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{folder.join(MANIFEST)} is damaged: {error}; {remedy}") from error


def other_job(
    folder: Folder, content: str, written: Mapping[str, Any], given: Mapping[str, Any]
) -> UserError:
    """The error for a folder that holds a job with other settings than those that are given now."""
    return UserError(
        f"{folder.uri} holds {content} ({', '.join(_differences(written, given))}): choose another folder, "
        "or remove this one and run the same command again"
    )


def _differences(written: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*written, *given}):
        old, new = written.get(name), given.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name} {old}, not {new}"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that can change the results."""
    return {"python": platform.python_version(), **package_versions()}


def package_versions(*plugins: str) -> dict[str, str]:
    """The versions of the packages that can change the results, and of `plugins`, e.g. "my-net 1.0"."""
    packages = ["tlray", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow", "simplejpeg"]
    if find_spec("pi_heif"):  # It decides whether HEIC photographs can be decoded.
        packages.append("pi-heif")
    return {name: version(name) for name in (*packages, *(plugin.split()[0] for plugin in plugins))}
