"""The record of how features were made; tlray refuses to mix features whose records differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tlray.core.record import Record


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Everything that determines the features of an image, except the image itself."""

    backbone: str
    package: str
    """Name and version of the package that the backbone comes from."""
    weights: str
    """A name such as "imagenet", "none" or a path; only `weights_sha256` identifies the weights."""
    weights_sha256: str
    cut: str
    preprocess: str
    image_size: int
    precision: str
    store: str

    def differences(self, other: Provenance) -> list[str]:
        """One phrase for each difference, e.g. "cut block4_pool, not block5_pool"."""
        ours, others = self.identity(), other.identity()
        return [f"{name} {ours[name]}, not {others[name]}" for name in ours if ours[name] != others[name]]

    def identity(self) -> dict[str, Any]:
        """The fields that must be equal for equal features: all except `package` and `weights`."""
        return {name: value for name, value in asdict(self).items() if name not in ("package", "weights")}
