"""Part files and error files of a feature set: each appears as a whole, and is checked when it is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tlray.core import parquet
from tlray.core.errors import JobError
from tlray.core.manifest import read_stamp, stamp
from tlray.core.results import ImageError
from tlray.core.storage import Folder
from tlray.images.index import Index

ERRORS = pa.schema([(name, pa.string()) for name in ("path", "split", "label", "stage", "error", "message")])
_TEXTS = pa.schema(list(ERRORS)[:3])
"""The columns of a part file before the features."""
_AGAIN = "and run again the command that made it"
_ROW_GROUP_BYTES = 16 << 20
_THREADS, _CHUNK = 16, 1024
"""Files that are read in parallel, because an object store takes its time for each; and files in a chunk."""
MAX_VALUES, MAX_SHARDS = 1 << 28, 10_000_000
"""The most values in a row, and the most shards in a set. Larger numbers can only be meant to do harm."""
Result = TypeVar("Result")


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def shard_of(name: str) -> int | None:
    """The shard of a file with this name; None if the name is not that of a part file."""
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
    """Write the part file of one shard; it appears only when it is complete.

    `rows` has the columns path, split and label; `features` yields the features of these rows in batches of
    (n, *shape); `store` is their dtype in the file, "float32" or "float16".
    """
    dtype = np.dtype(store)
    tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), tuple(shape))
    schema = pa.schema([*rows.schema, ("features", tensor)], metadata=stamp({**metadata, "shard": shard}))
    done = 0
    with (
        folder.writing(part_name(shard)) as stream,
        # VGG features are mostly zeros, which the fastest level of zstd compresses as well as slower ones.
        parquet.writer(stream, schema, compression_level=1, use_dictionary=["split", "label"]) as writer,
    ):
        for block in _blocks(features, dtype):
            array = pa.FixedShapeTensorArray.from_numpy_ndarray(block)
            columns = [*rows.slice(done, len(block)).columns, pa.chunked_array([array])]
            writer.write_table(pa.table(columns, schema=schema))
            done += len(block)
        if done != rows.num_rows:
            raise JobError(f"shard {shard} has {done} rows of features; expected {rows.num_rows}")


def write_errors(folder: Folder, shard: int, errors: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write the error file of one shard: its bad images, with the columns of `ERRORS`."""
    parquet.write(folder, error_name(shard), errors.cast(ERRORS.with_metadata(stamp(metadata))))


@contextmanager
def _part(folder: Folder, shard: int, job: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """Open and check a part file; any error in the block becomes a JobError."""
    with parquet.reading(folder, part_name(shard), f"remove it {_AGAIN}") as file:
        values = read_stamp(file.schema_arrow.metadata)
        if values.get("job") != job:
            raise ValueError("it was written by another job")
        if values.get("shard") != shard:
            raise ValueError(f"it is a copy of shard {values.get('shard')}")
        *texts, features = file.schema_arrow
        is_tensor = features.name == "features" and isinstance(features.type, pa.FixedShapeTensorType)
        if pa.schema(texts) != _TEXTS or not is_tensor or math.prod(features.type.shape) > MAX_VALUES:
            raise ValueError(f"its columns are {', '.join(map(str, file.schema_arrow))}")
        yield file


def read_shard(folder: Folder, shard: int, job: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Yield the rows of one part file of a job, in tables of bounded size.

    Raises:
        JobError: the file is missing or damaged, or belongs to another job or shard.
    """
    with _part(folder, shard, job) as file:
        tensor = file.schema_arrow.field("features").type
        size = math.prod(tensor.shape) * tensor.value_type.bit_width // 8
        for batch in file.iter_batches(batch_size=max(1, min(1024, 4 * _ROW_GROUP_BYTES // size))):
            yield pa.Table.from_batches([batch])


def read_parts(index: Index, shards: int | None = None) -> Iterator[pa.Table]:
    """Yield the rows of the first `shards` part files of a job, in the order of the listing.

    Raises:
        JobError: a file is damaged, the rows of a shard are not its images, or a feature is not finite.
    """
    folder, all_errors = index.folder, read_errors(index.folder, shards or len(index.shard_sizes))
    for shard, images in enumerate(index.rows(shards)):
        errors = all_errors.filter(pc.field("shard") == shard)["path"].combine_chunks()
        expected, start = images.filter(pc.invert(pc.is_in(images["path"], errors))), 0
        for table in read_shard(folder, shard, index.job):
            if not table.select(_TEXTS.names).equals(expected.slice(start, table.num_rows)):
                raise _mismatch(folder, shard, "other rows than its images in the index")
            start += table.num_rows
            values = table["features"].combine_chunks().to_numpy_ndarray()
            if len(bad := np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))):
                path = table["path"][int(bad[0])]
                raise _mismatch(folder, shard, f"features that are not finite, e.g. those of {path}")
            yield table
        if start != expected.num_rows:
            raise _mismatch(folder, shard, f"{start} rows for {expected.num_rows} images in the index")


def _mismatch(folder: Folder, shard: int, content: str) -> JobError:
    names = f"it and {error_name(shard)}"
    return JobError(f"{folder.join(part_name(shard))} has {content}: remove {names} {_AGAIN}")


def feature_shape(folder: Folder, job: Mapping[str, Any]) -> list[int]:
    """The shape of the features of one row; raises as `read_shard` does."""
    with _part(folder, 0, job) as file:
        return list(file.schema_arrow.field("features").type.shape)


def read_errors(folder: Folder, shards: int) -> pa.Table:
    """All error rows of the first `shards` shards of a feature set, each with the number of its shard."""

    def read(shard: int) -> pa.Table:
        remedy = f"remove it and {part_name(shard)} {_AGAIN}"
        with parquet.reading(folder, error_name(shard), remedy) as file:
            table = file.read(ERRORS.names, use_threads=False).cast(ERRORS)
        return table.append_column("shard", pa.array([shard] * table.num_rows, pa.int64()))

    written = [shard for name in folder.names("errors") if (shard := shard_of(name)) is not None]
    chunks = _in_parallel(read, (shard for shard in written if shard < shards))
    # A small table takes more memory than its content, so combine them.
    tables = [pa.concat_tables(chunk).combine_chunks() for chunk in chunks]
    return pa.concat_tables([ERRORS.append(pa.field("shard", pa.int64())).empty_table(), *tables])


def first_errors(errors: pa.Table) -> list[ImageError]:
    """The first three of these error rows."""
    rows = errors.select(["path", "stage", "error", "message"]).slice(0, 3).to_pylist()
    return [ImageError(**row) for row in rows]


def _in_parallel(read: Callable[[int], Result], shards: Iterable[int]) -> Iterator[list[Result]]:
    """Read shards in parallel; yields the results in order, in chunks that bound the memory."""
    rest = iter(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(rest, _CHUNK)):
            yield list(pool.map(read, chunk))


def _blocks(batches: Iterator[npt.NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Join batches to blocks of the size of a row group."""
    block: list[npt.NDArray[Any]] = []
    for batch in batches:
        block.append(batch)
        if sum(part.nbytes for part in block) >= _ROW_GROUP_BYTES:
            yield np.concatenate(block, dtype=dtype)
            block = []
    if block:
        yield np.concatenate(block, dtype=dtype)


def count_rows(folder: Folder, shards: Sequence[int], job: Mapping[str, Any]) -> list[int]:
    """The number of rows in each of many part files, from their footers; raises as `read_shard` does."""

    def count(shard: int) -> int:
        with _part(folder, shard, job) as file:
            return int(file.metadata.num_rows)

    return list(chain.from_iterable(_in_parallel(count, shards)))


def reconcile(folder: Folder, shard_sizes: Sequence[int], job: Mapping[str, Any]) -> pa.Table:
    """Check in the files that every image has become a row or an error; returns all error rows.

    Raises:
        JobError: an image is missing or occurs twice, or a file is damaged or belongs to another job.
    """
    rows = count_rows(folder, range(len(shard_sizes)), job)
    errors = read_errors(folder, len(shard_sizes))
    bad = Counter(errors["shard"].to_pylist())
    for shard, size in enumerate(shard_sizes):
        if rows[shard] + bad[shard] != size:
            raise _mismatch(folder, shard, f"{rows[shard]} rows and {bad[shard]} errors for {size} images")
    return errors.drop_columns(["shard"])
