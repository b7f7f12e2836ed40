"""A feature set on storage: its files, what stands in them, and how they are read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, compress, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import check_manifest, read_stamp, stamp
from tlray.core.storage import Folder
from tlray.models.provenance import Provenance

MANIFEST = "manifest.json"
FORMAT = "tlray-features/1"
ERRORS = pa.schema([(name, pa.string()) for name in ("path", "split", "label", "stage", "error", "message")])
_ROW_GROUP_BYTES = 16 << 20
_THREADS, _BEGUN = 16, 1024
"""Files that are read side by side, as an object store takes its time for each; and that wait for it."""
_MOST_VALUES, _MOST_SHARDS = 1 << 28, 10_000_000
"""Of a row, and of a set: what is above was written to do harm."""

Result = TypeVar("Result")


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def shard_of(name: str) -> int | None:
    """The shard whose part file has this name; None if it is no part file."""
    number = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return int(number[1]) if number else None


def error_name(shard: int) -> str:
    return f"errors/part-{shard:05d}.parquet"


def write_part(
    folder: Folder,
    shard: int,
    rows: pa.Table,
    features: Iterator[npt.NDArray[Any]],
    shape: Sequence[int],
    store: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write the features of one shard; the file is there whole or not at all.

    Args:
        folder: of the feature set.
        shard: its number.
        rows: columns path, split, label; one row for each feature, in the same order.
        features: batches of rows, (n, *shape).
        shape: of one row of features.
        store: "float32" or "float16".
        metadata: for the file, as in `pipeline.Pass`.
    """
    dtype = np.dtype(store)
    tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), tuple(shape))
    schema = pa.schema([*rows.schema, ("features", tensor)], metadata=stamp({**metadata, "shard": shard}))
    done = 0
    with (
        folder.writing(part_name(shard)) as stream,
        # VGG features are mostly zeros: zstd at its fastest does as well as anything slower.
        pq.ParquetWriter(
            stream, schema, compression="zstd", compression_level=1, use_dictionary=["split", "label"]
        ) as writer,
    ):
        for block in _blocks(features, dtype):
            array = pa.FixedShapeTensorArray.from_numpy_ndarray(block)
            columns = [*rows.slice(done, len(block)).columns, pa.chunked_array([array])]
            writer.write_table(pa.table(columns, schema=schema))
            done += len(block)
        if done != rows.num_rows:
            raise JobError(f"shard {shard}: {done} rows of features for {rows.num_rows} images")


def write_errors(folder: Folder, shard: int, errors: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write the images of one shard that gave no features; columns as in `ERRORS`."""
    with folder.writing(error_name(shard)) as stream:
        pq.write_table(errors.cast(ERRORS.with_metadata(stamp(metadata))), stream, compression="zstd")


@contextmanager
def _part(folder: Folder, shard: int, job: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """An open part file that has been checked; errors that leave the block become a JobError."""
    path = folder.join(part_name(shard))
    try:
        with folder.filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            found = read_stamp(file.schema_arrow.metadata)
            if found.get("job") != job:
                raise ValueError("it was written by another job")
            if found.get("shard") != shard:
                raise ValueError(f"it is a copy of shard {found.get('shard')}")
            names, kinds = file.schema_arrow.names, file.schema_arrow.types
            if names != ["path", "split", "label", "features"] or kinds[:3] != [pa.string()] * 3:
                raise ValueError(f"its columns are {', '.join(map(str, file.schema_arrow))}")
            tensor = kinds[3]
            if not isinstance(tensor, pa.FixedShapeTensorType) or math.prod(tensor.shape) > _MOST_VALUES:
                raise ValueError(f"its features are {tensor}")
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise JobError(f"{path} cannot be read: {error}; remove it and run the job again") from error


def read_shard(folder: Folder, shard: int, job: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The rows of one part file of a job, a bounded number of bytes at a time.

    Raises:
        JobError: the file is missing, damaged, or of another job or shard.
    """
    with _part(folder, shard, job) as file:
        tensor = file.schema_arrow.field("features").type
        size = math.prod(tensor.shape) * tensor.value_type.bit_width // 8
        for batch in file.iter_batches(batch_size=max(1, min(1024, 4 * _ROW_GROUP_BYTES // size))):
            yield pa.Table.from_batches([batch])


def read_parts(folder: Folder, shards: int, job: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The rows of all part files of a job, in the order of the listing; errors as in `read_shard`."""
    for shard in range(shards):
        yield from read_shard(folder, shard, job)


def read_errors(folder: Folder, shards: int) -> pa.Table:
    """All error rows of these many first shards of a feature set, each with its shard."""

    def read(shard: int) -> pa.Table:
        name = error_name(shard)
        try:
            table = pq.read_table(pa.BufferReader(folder.read(name)), use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise JobError(f"{folder.join(name)} cannot be read: {error}; extract again") from error
        table = table.replace_schema_metadata()
        return table.append_column("shard", pa.array([shard] * table.num_rows, pa.int64()))

    there = [shard for name in folder.names("errors") if (shard := shard_of(name)) is not None]
    some = _side_by_side(read, (shard for shard in there if shard < shards))
    # Small tables take more memory each than what is in them.
    tables = [pa.concat_tables(few).combine_chunks() for few in some]
    return pa.concat_tables([ERRORS.append(pa.field("shard", pa.int64())).empty_table(), *tables])


def _side_by_side(read: Callable[[int], Result], shards: Iterable[int]) -> Iterator[list[Result]]:
    """What is read of the shards, in order, of many at a time; not of all: what is begun takes memory."""
    rest = iter(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(rest, _BEGUN)):
            yield list(pool.map(read, some))


def _blocks(batches: Iterator[npt.NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Batches put together until they make a row group."""
    held: list[npt.NDArray[Any]] = []
    for batch in batches:
        held.append(batch)
        if sum(part.nbytes for part in held) >= _ROW_GROUP_BYTES:
            yield np.concatenate(held, dtype=dtype)
            held = []
    if held:
        yield np.concatenate(held, dtype=dtype)


def count_rows(folder: Folder, shards: Sequence[int], job: Mapping[str, Any]) -> list[int]:
    """The rows of many part files, from their footers.

    Raises:
        JobError: a file is damaged, of another job or of another shard.
    """

    def count(shard: int) -> int:
        with _part(folder, shard, job) as file:
            rows: int = file.metadata.num_rows
            return rows

    return list(chain.from_iterable(_side_by_side(count, shards)))


def reconcile(folder: Folder, shard_sizes: Sequence[int], job: Mapping[str, Any]) -> pa.Table:
    """Check that every image of every shard has become a row or an error, by what is in the files.

    Returns:
        All error rows, with the columns of `ERRORS`.

    Raises:
        JobError: an image is missing or is there twice, or a file is damaged or of another job.
    """
    rows = count_rows(folder, range(len(shard_sizes)), job)
    errors = read_errors(folder, len(shard_sizes))
    bad = Counter(errors["shard"].to_pylist())
    for shard, size in enumerate(shard_sizes):
        if rows[shard] + bad[shard] != size:
            raise JobError(
                f"{folder.join(part_name(shard))} holds {rows[shard]} rows, with {bad[shard]} errors in "
                f"{error_name(shard)}, for {size} images; remove both files and run again"
            )
    return errors.drop_columns(["shard"])


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
            if math.prod(shape) > _MOST_VALUES or not 0 <= shards <= _MOST_SHARDS:
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
