"""What features were made with: features of different provenance never meet."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

_KEY = b"tlray"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that decides the value of a feature, but for the picture."""

    backbone: str
    package: str
    """The package the backbone came from."""
    weights: str
    """"imagenet", "none" or the path they were read from; `weights_sha256` is what identifies them."""
    weights_sha256: str
    cut: str
    preprocess: str
    image_size: int
    precision: str
    store: str

    def differences(self, other: Provenance) -> list[str]:
        """One phrase for each thing that differs, e.g. "cut block4_pool, not block5_pool"."""
        theirs = other.identity()
        return [
            f"{name} {value}, not {theirs[name]}"
            for name, value in self.identity().items()
            if value != theirs[name]
        ]

    def identity(self) -> dict[str, Any]:
        """What makes features the same: all but the version of the package and the place of the weights."""
        return {name: value for name, value in asdict(self).items() if name not in ("package", "weights")}

    def options(self) -> dict[str, Any]:
        """As options of `NetworkConfig`, to do the same again."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("package", "weights_sha256")
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Provenance:
        """Raises KeyError or TypeError when a value is missing or of the wrong type."""
        known = {field.name: values[field.name] for field in fields(cls)}
        if not isinstance(known["image_size"], int):
            raise TypeError("image_size is not a whole number")
        if not all(isinstance(value, str) for name, value in known.items() if name != "image_size"):
            raise TypeError("a value is not text")
        return cls(**known)


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
