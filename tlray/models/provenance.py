"""What features were made with: features of different provenance never meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


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
