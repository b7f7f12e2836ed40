"""The manifests of feature sets and models: JSON values, the stamp in Parquet files, and versions."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

_KEY = b"tlray"


def plain(value: Any) -> Any:
    """The value in JSON's own types; None for a number that is not finite, text for what JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def dump(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON text."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


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


def check_manifest(manifest: Mapping[str, Any], **kinds: type) -> None:
    """Raise KeyError or TypeError unless all these values are there and of these types."""
    for name, kind in kinds.items():
        if not isinstance(manifest[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")


def versions() -> dict[str, str]:
    """The versions of all that has a hand in the numbers."""
    return {"python": platform.python_version(), **package_versions()}


def package_versions(*plugins: str) -> dict[str, str]:
    """Those of packages; `plugins` are more of them, each with its version behind it."""
    packages = ("tlray", "ray", "tensorflow", "keras", "numpy", "pyarrow", "pillow")
    return {name: version(name) for name in (*packages, *(plugin.split()[0] for plugin in plugins))}
