"""A feature set on storage: its files, what stands in them, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import MANIFEST, Manifest, read_manifest
from tlray.core.record import Record
from tlray.core.results import InferenceCounts
from tlray.core.storage import Folder, StrPath
from tlray.features.part_files import (
    MAX_SHARDS,
    MAX_VALUES,
    read_parts,
)
from tlray.models.provenance import Provenance

FORMAT = "tlray-features/1"


@dataclass(frozen=True)
class Rows:
    """Features in memory, with what they are of."""

    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]
    """None for a row without one, where such rows are read at all."""
    features: npt.NDArray[Any]
    """(rows, *shape), float32 or float16."""

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """The rows of a table of a part file."""
        features = table["features"].combine_chunks().to_numpy_ndarray()
        paths, splits, labels = (table[name].to_pylist() for name in ("path", "split", "label"))
        return cls(paths, splits, labels, features)

    @classmethod
    def join(cls, parts: Sequence[Rows], empty: tuple[int, ...]) -> Rows:
        """All rows of the parts; `empty` is the shape of the features if there are none."""
        return cls(
            [path for part in parts for path in part.paths],
            [split for part in parts for split in part.splits],
            [label for part in parts for label in part.labels],
            np.concatenate([part.features for part in parts]) if parts else np.empty(empty, np.float32),
        )

    def where(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """The rows at which `chosen`, (rows,), is true."""
        return Rows(
            list(compress(self.paths, chosen)),
            list(compress(self.splits, chosen)),
            list(compress(self.labels, chosen)),
            self.features[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class ExtractJob(Record):
    """What an extraction was begun with: all that its rows depend on."""

    format: str
    images: str
    """The URI of the images."""
    split: float | None
    """The fraction of the images that was assigned to `train`; None if none was."""
    seed: int | None
    """Of that assignment."""
    max_pixels: int
    provenance: dict[str, Any]
    """The `identity` of the provenance."""


@dataclass(frozen=True, kw_only=True)
class FeatureSetManifest(Manifest, InferenceCounts):
    """The manifest of a feature set: how it was made, and what is in it."""

    job: ExtractJob
    """Every file of the set carries the same."""
    provenance: Provenance
    feature_shape: list[int]
    """Of one row of features."""
    classes: list[str]
    """The labels, sorted; also those of images that became error rows."""
    rows_per_class: dict[str, int]
    splits: dict[str, int]
    """Rows of each split; empty if the images have no splits."""
    shards: int
    """Part files."""
    passed_over: int
    """Files without an image extension."""
    versions: dict[str, str]
    """Of Python and of the packages that have a part in the numbers."""
    created: str
    """When the set was complete, in ISO 8601, UTC."""

    def __post_init__(self) -> None:
        if math.prod(self.feature_shape) > MAX_VALUES or min(self.feature_shape, default=1) < 1:
            raise ValueError(f"feature_shape is {self.feature_shape}")
        if not 0 <= self.shards <= MAX_SHARDS:
            raise ValueError(f"shards is {self.shards}")


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set."""

    folder: Folder
    manifest: FeatureSetManifest

    @classmethod
    def open(cls, path: StrPath) -> FeatureSet:
        """Open a finished feature set.

        Args:
            path: a local folder or a URI.

        Raises:
            UserError: there is none, it is not finished, or its manifest is damaged.
        """
        folder = Folder.open(path)
        if folder.is_file(MANIFEST):
            return cls(folder, read_manifest(folder, FeatureSetManifest, FORMAT))
        if folder.exists("index"):
            raise UserError(f"{folder.uri} is not finished: run the same `tlray extract` again to finish it")
        raise UserError(
            f"{folder.uri} is no feature set: it has no {MANIFEST}; expected the --out of `tlray extract`"
        )

    @property
    def provenance(self) -> Provenance:
        return self.manifest.provenance

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of features."""
        return tuple(self.manifest.feature_shape)

    @property
    def classes(self) -> list[str]:
        """The labels, sorted."""
        return self.manifest.classes

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split; empty if the images have no splits."""
        return self.manifest.splits

    @property
    def facts(self) -> dict[str, Any]:
        """Which images the features are of, and how they were split."""
        job = self.manifest.job
        return {"images": job.images, "split": job.split, "split_seed": job.seed}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that tell these features from any others, also from later ones in the same folder."""
        return {"features": self.folder.uri, "created": self.manifest.created}

    def batches(self, split: str | None = None, *, labelled: bool = False) -> Iterator[Rows]:
        """The rows in the order of the listing, a bounded number at a time.

        Args:
            split: only the rows of this split.
            labelled: only rows that have a label.

        Raises:
            JobError: a file is damaged, or is of another feature set.
        """
        chosen = pc.field("label").is_valid() if labelled else None
        if split is not None:
            of_split = pc.field("split") == split
            chosen = of_split if chosen is None else chosen & of_split
        for table in read_parts(self.folder, self.manifest.shards, self.manifest.job.to_json()):
            rows = Rows.of(table if chosen is None else table.filter(chosen))
            if rows.features.shape[1:] != self.shape:
                raise JobError(
                    f"{self.folder.uri} is damaged: features of shape {rows.features.shape[1:]}, "
                    f"the manifest says {self.shape}"
                )
            if rows.paths:
                yield rows

    def to_numpy(self, split: str | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[np.object_]]:
        """All rows, or those of one split, in memory.

        Args:
            split: only the rows of this split.

        Returns:
            The features, (rows, *shape), float32 or float16; and their labels, (rows,), text or None.

        Raises:
            JobError: a file is damaged, or is of another feature set.
        """
        rows = Rows.join(list(self.batches(split)), (0, *self.shape))
        return rows.features, np.array(rows.labels, np.object_)
