"""Feature sets: their manifest, and how to read their rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import MANIFEST, Manifest, read_manifest
from tlray.core.record import Record
from tlray.core.results import Account, InferenceCounts
from tlray.core.storage import Folder, StrPath
from tlray.features.part_files import MAX_SHARDS, MAX_VALUES, read_parts, reconcile
from tlray.images.index import Index
from tlray.models.provenance import Provenance

FORMAT = "tlray-features/2"


@dataclass(frozen=True)
class Rows:
    """Features in memory, each with the path, split and label of its image."""

    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]
    """None for a row without a label."""
    features: npt.NDArray[Any]
    """Shape (rows, *shape), float32 or float16."""

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """The rows of a table that was read from a part file."""
        features = table["features"].combine_chunks().to_numpy_ndarray()
        paths, splits, labels = (table[name].to_pylist() for name in ("path", "split", "label"))
        return cls(paths, splits, labels, features)

    @classmethod
    def join(cls, parts: Sequence[Rows], empty: tuple[int, ...]) -> Rows:
        """All rows of the parts. `empty` is the shape of the features if there are no parts."""
        return cls(
            [path for part in parts for path in part.paths],
            [split for part in parts for split in part.splits],
            [label for part in parts for label in part.labels],
            np.concatenate([part.features for part in parts]) if parts else np.empty(empty, np.float32),
        )

    def where(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """The rows where the mask `chosen`, shape (rows,), is true."""
        return Rows(
            list(compress(self.paths, chosen)),
            list(compress(self.splits, chosen)),
            list(compress(self.labels, chosen)),
            self.features[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class ExtractJob(Record):
    """The settings of an extraction that decide what is in its rows. Every file of the set contains them."""

    format: str
    images: str
    """The URI of the images."""
    split: float | None
    """The fraction of the images that `--split` assigned to `train`, by `seed`; None without `--split`."""
    seed: int | None
    max_pixels: int
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    provenance: dict[str, Any]
    """The `identity` of the provenance of the features."""

    def to_json(self) -> dict[str, Any]:
        """The settings except later ones at their default, which files of earlier versions lack."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in super().to_json().items() if value != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class FeatureSetManifest(Manifest, InferenceCounts):
    """The manifest of a feature set: how it was made, and what it contains."""

    job: ExtractJob
    provenance: Provenance
    feature_shape: list[int]
    """The shape of the features of one row."""
    classes: list[str]
    """The labels, sorted, including those of images that became error rows."""
    rows_per_class: dict[str, int]
    splits: dict[str, int]
    """The number of rows in each split; empty if the images have no splits."""
    shards: int
    """The number of part files."""
    account: Account | None = None
    """What was understood of the images; None in sets that tlray 0.1 has made."""
    versions: dict[str, str]
    """The versions of Python and of the packages that influence the features."""
    created: str
    """The time when the set became complete, in ISO 8601, UTC."""

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
            path: the folder or URI of the feature set.

        Raises:
            UserError: there is no feature set, or it is not finished, or its manifest is damaged.
        """
        folder = Folder.open(path)
        if folder.is_file(MANIFEST):
            return cls(folder, read_manifest(folder, FeatureSetManifest, FORMAT))
        if folder.exists("index"):
            raise UserError(f"{folder.uri} is not finished: run the same `tlray extract` again to finish it")
        raise UserError(
            f"{folder.uri} has no {MANIFEST}; expected a feature set, the --out of `tlray extract`"
        )

    @property
    def provenance(self) -> Provenance:
        return self.manifest.provenance

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the features of one row."""
        return tuple(self.manifest.feature_shape)

    @property
    def classes(self) -> list[str]:
        """The labels, sorted, including those of images that became error rows."""
        return self.manifest.classes

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows in each split; empty if the images have no splits."""
        return self.manifest.splits

    @property
    def facts(self) -> dict[str, Any]:
        """The images that the features were extracted from, how they were split and what was understood."""
        job = self.manifest.job
        facts = {"images": job.images, "split": job.split, "split_seed": job.seed}
        return {**facts, "account": self.manifest.account}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that identify these features; a later set in the same folder has other values."""
        return {"features": self.folder.uri, "created": self.manifest.created}

    def check_outside(self, out: Folder) -> None:
        """Raise UserError if a job's output in this folder would be among the images of the features."""
        images = self.manifest.job.images
        is_remote = "://" in images  # Opening it could mean to wait for a server.
        if f"{out.uri}/".startswith(f"{images}/") if is_remote else Folder.open(images).contains(out):
            raise UserError(f"--out {out.uri} lies among the images: choose a place outside {images}")

    def index(self) -> Index:
        """The index of the images, which an unfinished `extract --extend` may have continued.

        Raises:
            JobError: the index is missing or damaged.
        """
        index = Index.open(self.folder, self.manifest.job.to_json())
        if len(index.shard_sizes) < self.manifest.shards:
            raise JobError(
                f"{self.folder.uri}/index has {len(index.shard_sizes)} shards, and the manifest says "
                f"{self.manifest.shards}: files are missing; remove {self.folder.uri} and extract again"
            )
        return index

    def counts(self) -> Counter[tuple[str | None, ...]]:
        """The number of images by split and label, those that became error rows included.

        Raises:
            JobError: the index is missing or damaged.
        """
        return self.index().count("split", "label", shards=self.manifest.shards)

    def check(self) -> int:
        """Check the footers of all files against index and manifest; returns the number of error rows.

        Raises:
            JobError: a file is missing or damaged, or has another number of rows.
        """
        sizes, manifest = self.index().shard_sizes[: self.manifest.shards], self.manifest
        errors = int(reconcile(self.folder, sizes, manifest.job.to_json()).num_rows)
        rows = sum(sizes) - errors
        if (rows, errors) != (manifest.rows, manifest.errors):
            raise JobError(
                f"{self.folder.uri} is damaged: it has {rows} rows and {errors} errors, but its manifest "
                f"says {manifest.rows} and {manifest.errors}; extract again into a new folder"
            )
        return errors

    def batches(self, split: str | None = None, *, labelled: bool = False) -> Iterator[Rows]:
        """Yield the rows in the order of the listing, in batches of bounded size.

        Args:
            split: the split to which the rows are limited.
            labelled: whether to leave out rows without a label.

        Raises:
            JobError: a file is damaged or belongs to another set, or a feature is not finite.
        """
        chosen = pc.field("label").is_valid() if labelled else None
        if split is not None:
            of_split = pc.field("split") == split
            chosen = of_split if chosen is None else chosen & of_split
        for table in read_parts(self.index(), self.manifest.shards):
            rows = Rows.of(table if chosen is None else table.filter(chosen))
            if rows.features.shape[1:] != self.shape:
                raise JobError(
                    f"{self.folder.uri} is damaged: it has features of shape {rows.features.shape[1:]}; "
                    f"expected {self.shape}, as in its manifest"
                )
            if rows.paths:
                yield rows

    def to_numpy(self, split: str | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[np.object_]]:
        """All rows, or the rows of one split, in memory.

        Args:
            split: the split to which the rows are limited.

        Returns:
            The features, shape (rows, *shape), float32 or float16; the labels, shape (rows,), text or None.

        Raises:
            JobError: a file is damaged, or belongs to another feature set.
        """
        rows = Rows.join(list(self.batches(split)), (0, *self.shape))
        return rows.features, np.array(rows.labels, np.object_)
