"""The list of a job's images, cut into shards; the shard of an image never changes."""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import read_stamp
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
"""Tells those who wait for a piece that none will come."""
_THREADS = 16
"""That ask for what the pieces say of themselves."""
_POLL_SECONDS = 0.2


def piece_name(piece: int) -> str:
    return f"index/part-{piece:05d}.parquet"


class Index:
    """The index of a job, as far as it is written; a `tlray.images.index_writer.IndexWriter` writes it.

    A piece of it is one Parquet file with 64 shards. The last piece says that it is the last. Images that
    are found later are put into shards behind it.
    """

    def __init__(self, folder: Folder, job: Mapping[str, Any]) -> None:
        self.folder = folder
        self.job = job
        """What the job was started with."""
        self.shard_sizes: list[int] = []
        """Images in each shard, of the pieces that are there."""
        self.images = 0
        """In those shards."""
        self.complete = False
        """Whether all images are listed."""

    def __reduce__(self) -> tuple[Any, ...]:
        """What is sent to a task: where the index is, not how much of it is there."""
        return Index, (self.folder, self.job)

    @classmethod
    def open(cls, folder: Folder, job: Mapping[str, Any] | None = None) -> Index:
        """Open the index of a job that was started before.

        Args:
            folder: that the job writes to.
            job: what it must have been started with; None stands for anything.

        Raises:
            UserError: it is of another job.
            JobError: there is none, or it is damaged.
        """
        if job is None:
            job = read_piece(folder, 0, None, _stamp)[0]["job"]
        index = cls(folder, job)
        names = set(folder.names("index"))
        pieces = takewhile(lambda piece: posixpath.basename(piece_name(piece)) in names, count())
        # Side by side, as an object store takes its time for each.
        with ThreadPoolExecutor(_THREADS) as pool:
            for _, sizes, last in pool.map(lambda piece: read_piece(folder, piece, job, _stamp), pieces):
                index.add(sizes, last)
                if len(sizes) < SHARDS_PER_PIECE:  # None comes behind one that is not full.
                    break
        return index

    @property
    def pieces(self) -> int:
        """How many there are."""
        return -(-len(self.shard_sizes) // SHARDS_PER_PIECE)

    def add(self, sizes: list[int], last: bool) -> None:
        """Count the shards that a piece has more than before; `last` says whether it is the last piece."""
        self.shard_sizes.extend(sizes)
        self.images += sum(sizes)
        self.complete = last

    def shards(self, done: Container[int]) -> Iterator[pa.Table]:
        """The rows of each shard but those that are done, in order; waits for what is still being listed.

        Raises:
            JobError: the listing was stopped, or a piece is damaged.
        """

        def is_done(piece: int) -> bool:
            first = piece * SHARDS_PER_PIECE
            return all(shard in done for shard in range(first, first + SHARDS_PER_PIECE))

        # Of the pieces that are done only the last is read: its footer says whether another piece follows.
        piece, last = max(0, next(piece for piece in count() if not is_done(piece)) - 1), False
        while not last or self.folder.is_file(piece_name(piece)):
            while not self.folder.is_file(piece_name(piece)):
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
        """Where the first image is."""
        (row,) = next(self.tables(*Place._fields)).slice(0, 1).to_pylist()
        return Place(**row)

    def count(self, *columns: str) -> Counter[tuple[str | None, ...]]:
        """How many images there are of each combination of values of these columns."""
        counts: Counter[tuple[str | None, ...]] = Counter()
        for table in self.tables(*columns):
            for row in table.group_by(list(columns)).aggregate([([], "count_all")]).to_pylist():
                counts[tuple(row[name] for name in columns)] += row["count_all"]
        return counts

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """These columns of each piece."""
        for piece in range(self.pieces):
            yield read_piece(self.folder, piece, self.job, lambda file: file.read(columns))[0]


def stopped(folder: Folder) -> JobError:
    return JobError(f"the listing of the images for {folder.uri} was stopped")


def _stamp(file: pq.ParquetFile) -> dict[str, Any]:
    return read_stamp(file.schema_arrow.metadata)


def read_piece(
    folder: Folder, piece: int, job: Mapping[str, Any] | None, read: Callable[[pq.ParquetFile], Any]
) -> tuple[Any, list[int], bool]:
    """What `read` finds in a piece, the sizes of its shards, and whether it is the last.

    Raises:
        UserError: it is of another job.
        JobError: it is no piece of an index.
    """
    path = folder.join(piece_name(piece))
    try:
        with folder.filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError(f"columns {file.schema_arrow.names}, expected {SCHEMA.names}")
            found = _stamp(file)
            sizes, last, theirs = list(found["shards"]), bool(found["last"]), dict(found["job"])
            if (
                sum(sizes) != file.metadata.num_rows
                or not 0 < len(sizes) <= SHARDS_PER_PIECE
                or min(sizes) < 1
            ):
                raise ValueError(f"{file.metadata.num_rows} rows, expected shards of {sizes[:3]}...")
            if job is None or theirs == job:
                return read(file), sizes, last
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise JobError(f"{path} cannot be read: {error}; if it is damaged, remove {folder.uri}") from error
    raise UserError(
        f"{folder.uri} holds another job ({', '.join(_differences(theirs, job))}): "
        "choose another folder, or remove this one"
    )


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*there, *asked}):
        old, new = there.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name} {old}, not {new}"
