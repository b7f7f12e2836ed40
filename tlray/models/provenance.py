"""What features were made with: features of different provenance never meet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tlray.core.record import Record


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
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
