"""The part files and error files of a feature set: written whole, checked and read, never trusted."""

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
_THREADS, _BEGUN = 16, 1024
"""Files that are read side by side, as an object store takes its time for each; and that wait for it."""
MAX_VALUES, MAX_SHARDS = 1 << 28, 10_000_000
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
        metadata: for the file, as in `InferenceJob`.
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
            if not isinstance(tensor, pa.FixedShapeTensorType) or math.prod(tensor.shape) > MAX_VALUES:
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


def first_errors(errors: pa.Table) -> list[ImageError]:
    """The first three of these error rows."""
    rows = errors.select(["path", "stage", "error", "message"]).slice(0, 3).to_pylist()
    return [ImageError(**row) for row in rows]


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
