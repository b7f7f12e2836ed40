"""The index of a job: its images, divided into shards. The shard of an image never changes."""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core import parquet
from tlray.core.errors import JobError
from tlray.core.manifest import other_job, read_stamp
from tlray.core.results import Account
from tlray.core.storage import Folder
from tlray.images.reader import Place

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("offset", pa.int64()),
        ("shard", pa.int32()),
    ]
)
SHARDS_PER_PIECE = 64
STOPPED = "index/.stopped.tmp"
"""This file tells the tasks that wait for a piece that no more will come."""
_THREADS = 16
"""Threads that read footers of pieces, because an object store takes its time for each."""
_POLL_SECONDS = 0.2


def piece_name(piece: int) -> str:
    return f"index/part-{piece:05d}.parquet"


class Index:
    """The part of a job's index that is already written; `tlray.images.index_writer.IndexWriter` writes it.

    The index consists of pieces: Parquet files of 64 shards each. The last piece states that it is the last.
    Images that are added later get new shards after it.
    """

    def __init__(self, folder: Folder, job: Mapping[str, Any]) -> None:
        self.folder = folder
        self.job = job
        """The settings that the job was started with."""
        self.shard_sizes: list[int] = []
        """The number of images in each shard of the written pieces."""
        self.images = 0
        """The number of images in all these shards."""
        self.complete = False
        """Whether all images are listed."""
        self.account: Account | None = None
        """What was understood of the images, once all are listed; None for images that are not a data set."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A task only needs to know where the index is, and not how much of it is written.
        return Index, (self.folder, self.job)

    @classmethod
    def open(cls, folder: Folder, job: Mapping[str, Any] | None = None) -> Index:
        """Open the index of a job that was started before.

        Args:
            folder: the folder that the job writes to.
            job: the settings that the job must have been started with; None accepts any.

        Raises:
            UserError: the index belongs to another job.
            JobError: the index is missing or damaged.
        """
        if job is None:
            job = read_piece(folder, 0, None, _stamp)[0]["job"]
        index = cls(folder, job)
        names = set(folder.names("index"))
        pieces = takewhile(lambda piece: posixpath.basename(piece_name(piece)) in names, count())
        with ThreadPoolExecutor(_THREADS) as pool:
            for account, sizes, last in pool.map(lambda n: read_piece(folder, n, job, _account), pieces):
                index.add(sizes, last, account)
                if len(sizes) < SHARDS_PER_PIECE:  # Only the last piece is not full.
                    break
        return index

    @property
    def pieces(self) -> int:
        """The number of written pieces."""
        return -(-len(self.shard_sizes) // SHARDS_PER_PIECE)

    def add(self, sizes: list[int], last: bool, account: Account | None) -> None:
        """Add the sizes of a piece's new shards; `last` states whether the piece is the last one."""
        self.account = account
        self.shard_sizes.extend(sizes)
        self.images += sum(sizes)
        self.complete = last

    def shards(self, done: Container[int]) -> Iterator[pa.Table]:
        """The rows of each shard that is not done, in order; waits for shards that are not listed yet.

        Raises:
            JobError: the listing was stopped, or a piece is damaged.
        """

        def is_done(piece: int) -> bool:
            first = piece * SHARDS_PER_PIECE
            return all(shard in done for shard in range(first, first + SHARDS_PER_PIECE))

        # Skip finished pieces; read only the last of them, because its footer says whether another follows.
        piece, last = max(0, next(piece for piece in count() if not is_done(piece)) - 1), False
        while not last or self.folder.is_file(piece_name(piece)):
            while not self.folder.is_file(piece_name(piece)):
                check_exists(self.folder)
                if self.folder.is_file(STOPPED):
                    raise stopped(self.folder)
                time.sleep(_POLL_SECONDS)
            read = _stamp if is_done(piece) else pq.ParquetFile.read
            table, sizes, last = read_piece(self.folder, piece, self.job, read)
            start = 0
            for number, size in enumerate(sizes, start=piece * SHARDS_PER_PIECE):
                if number not in done:
                    yield table.slice(start, size)
                start += size
            piece += 1

    def first(self) -> Place:
        """The place of the first image."""
        (row,) = next(self.tables(*Place._fields)).slice(0, 1).to_pylist()
        return Place(**row)

    def count(self, *columns: str, shards: int | None = None) -> Counter[tuple[str | None, ...]]:
        """The number of images, in the first `shards`, for each combination of values in these columns."""
        return sum((count_rows(table, *columns) for table in self.tables(*columns, shards=shards)), Counter())

    def tables(self, *columns: str, shards: int | None = None) -> Iterator[pa.Table]:
        """These columns of the rows of each piece, as far as the first `shards`; None stands for all."""
        for first in range(0, len(self.shard_sizes[:shards]), SHARDS_PER_PIECE):
            piece = first // SHARDS_PER_PIECE
            table = read_piece(self.folder, piece, self.job, lambda file: file.read(columns))[0]
            yield table.slice(0, sum(self.shard_sizes[first:shards][:SHARDS_PER_PIECE]))

    def rows(self, shards: int | None = None) -> Iterator[pa.Table]:
        """The path, split and label of the images of each of the first `shards`; None stands for all."""
        sizes = iter(self.shard_sizes[:shards])
        for table in self.tables("path", "split", "label", shards=shards):
            start = 0
            for size in islice(sizes, SHARDS_PER_PIECE):
                yield table.slice(start, size)
                start += size


def count_rows(table: pa.Table, *columns: str) -> Counter[tuple[str | None, ...]]:
    """The number of rows for each combination of values in these columns."""
    groups = table.group_by(list(columns)).aggregate([([], "count_all")]).to_pylist()
    return Counter({tuple(row[name] for name in columns): row["count_all"] for row in groups})


def remove_index(folder: Folder) -> None:
    """Remove an index, the last piece first: a listing whose last pieces are missing can go on."""
    for name in reversed(folder.names("index")):
        folder.remove(f"index/{name}")
    folder.remove("index")


def check_exists(folder: Folder) -> None:
    """Raise JobError if the index is gone. Whatever is written after that would block the next run."""
    if not folder.is_file(piece_name(0)):
        raise JobError(f"{folder.uri} was moved or removed during the job: run it again to begin anew")


def stopped(folder: Folder) -> JobError:
    return JobError(f"the listing of the images for {folder.uri} was stopped")


def _stamp(file: pq.ParquetFile) -> dict[str, Any]:
    return read_stamp(file.schema_arrow.metadata)


def _account(file: pq.ParquetFile) -> Account | None:
    values = _stamp(file).get("account")
    return None if values is None else Account.from_json(values)


def read_piece(
    folder: Folder, piece: int, job: Mapping[str, Any] | None, read: Callable[[pq.ParquetFile], Any]
) -> tuple[Any, list[int], bool]:
    """What `read` returns for the file of a piece, the sizes of its shards, and whether it is the last."""
    remedy = f"remove {folder.uri} and run again the command that made it"
    with parquet.reading(folder, piece_name(piece), remedy) as file:
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError(f"columns {file.schema_arrow.names}, expected {SCHEMA.names}")
        values, rows = _stamp(file), file.metadata.num_rows
        sizes, last, written = list(values["shards"]), bool(values["last"]), dict(values["job"])
        if sum(sizes) != rows or not 0 < len(sizes) <= SHARDS_PER_PIECE or min(sizes) < 1:
            raise ValueError(f"{rows} rows, expected shards of {sizes[:3]}...")
        if job is None or written == job:
            return read(file), sizes, last
    raise other_job(folder, "another job", written, job)
