"""A feature set on storage: its files, what stands in them, and how they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import check_manifest
from tlray.core.storage import Folder
from tlray.features.part_files import (
    MAX_SHARDS,
    MAX_VALUES,
    read_parts,
)
from tlray.models.provenance import Provenance

MANIFEST = "manifest.json"
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


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set."""

    folder: Folder
    manifest: Mapping[str, Any]
    provenance: Provenance

    @classmethod
    def open(cls, uri: str) -> FeatureSet:
        """Open a finished feature set.

        Raises:
            UserError: there is none, it is not finished, or its manifest is not one.
        """
        folder = Folder.open(uri)
        if not folder.is_file(MANIFEST):
            if folder.exists("index"):
                raise UserError(
                    f"{folder.uri} is not finished: run the same `tlray extract` again, it goes on"
                )
            raise UserError(
                f"{folder.uri} is no feature set: it has no {MANIFEST}; expected the --out of `tlray extract`"
            )
        try:
            manifest = json.loads(folder.read(MANIFEST))
            if manifest["format"] != FORMAT:
                raise UserError(f"{folder.uri} is a {manifest['format']}; expected a {FORMAT}")
            check_manifest(
                manifest,
                job=dict,
                feature_shape=list,
                classes=list,
                splits=dict,
                shards=int,
                rows=int,
                errors=int,
                created=str,
            )
            shape, shards = manifest["feature_shape"], manifest["shards"]
            if not all(isinstance(size, int) and size > 0 for size in shape):
                raise ValueError(f"feature_shape is {shape}")
            if math.prod(shape) > MAX_VALUES or not 0 <= shards <= MAX_SHARDS:
                raise ValueError(f"{shards} shards of features of shape {shape}")
            return cls(folder, manifest, Provenance.from_json(manifest["provenance"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder.join(MANIFEST)} is damaged: {error!r}; extract again") from error

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.manifest["feature_shape"])

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split; a set without splits has none."""
        return dict(self.manifest["splits"])

    @property
    def facts(self) -> dict[str, Any]:
        """Which images the features are of, and how they were split."""
        job = self.manifest["job"]
        return {"images": job["images"], "split": job["split"], "split_seed": job["seed"]}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that tell these features from any others, also from later ones in the same folder."""
        return {"features": self.folder.uri, "created": self.manifest["created"]}

    def batches(self, split: str | None) -> Iterator[Rows]:
        """The labelled rows of one split, or of all, a bounded number at a time, in the order of the listing.

        Raises:
            JobError: a file is damaged or of another provenance.
        """
        chosen = pc.field("label").is_valid()
        if split is not None:
            chosen &= pc.field("split") == split
        for table in read_parts(self.folder, self.manifest["shards"], self.manifest["job"]):
            rows = Rows.of(table.filter(chosen))
            if rows.features.shape[1:] != self.shape:
                raise JobError(
                    f"{self.folder.uri} is damaged: features of shape {rows.features.shape[1:]}, "
                    f"the manifest says {self.shape}"
                )
            if rows.paths:
                yield rows
