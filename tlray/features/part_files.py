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
import pyarrow.parquet as pq

from tlray.core.errors import JobError
from tlray.core.manifest import read_stamp, stamp
from tlray.core.results import ImageError
from tlray.core.storage import Folder

ERRORS = pa.schema([(name, pa.string()) for name in ("path", "split", "label", "stage", "error", "message")])
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
            raise JobError(f"shard {shard} has {done} rows of features; expected {rows.num_rows}")


def write_errors(folder: Folder, shard: int, errors: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write the error file of one shard: its bad images, with the columns of `ERRORS`."""
    with folder.writing(error_name(shard)) as stream:
        pq.write_table(errors.cast(ERRORS.with_metadata(stamp(metadata))), stream, compression="zstd")


@contextmanager
def _part(folder: Folder, shard: int, job: Mapping[str, Any]) -> Iterator[pq.ParquetFile]:
    """Open and check a part file; any error in the block becomes a JobError."""
    path = folder.join(part_name(shard))
    try:
        with folder.filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            values = read_stamp(file.schema_arrow.metadata)
            if values.get("job") != job:
                raise ValueError("it was written by another job")
            if values.get("shard") != shard:
                raise ValueError(f"it is a copy of shard {values.get('shard')}")
            names, kinds = file.schema_arrow.names, file.schema_arrow.types
            if names != ["path", "split", "label", "features"] or kinds[:3] != [pa.string()] * 3:
                raise ValueError(f"its columns are {', '.join(map(str, file.schema_arrow))}")
            tensor = kinds[3]
            if not isinstance(tensor, pa.FixedShapeTensorType) or math.prod(tensor.shape) > MAX_VALUES:
                raise ValueError(f"its features are {tensor}")
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise JobError(f"{path} cannot be read: {error}; remove it and run the job again") from error


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


def read_parts(folder: Folder, shards: int, job: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Yield the rows of all part files of a job, in the order of the listing; raises as `read_shard` does."""
    for shard in range(shards):
        yield from read_shard(folder, shard, job)


def read_errors(folder: Folder, shards: int) -> pa.Table:
    """All error rows of the first `shards` shards of a feature set, each with the number of its shard."""

    def read(shard: int) -> pa.Table:
        name = error_name(shard)
        try:
            table = pq.read_table(pa.BufferReader(folder.read(name)), use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise JobError(f"{folder.join(name)} cannot be read: {error}; extract again") from error
        table = table.replace_schema_metadata()
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
            raise JobError(
                f"{folder.join(part_name(shard))} has {rows[shard]} rows, and {error_name(shard)} has "
                f"{bad[shard]}, for {size} images; remove both files and run again"
            )
    return errors.drop_columns(["shard"])
