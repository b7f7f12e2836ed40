"""The list of a job's images, cut into shards; the shard of an image never changes."""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import read_stamp, stamp
from tlray.core.storage import Folder
from tlray.images.diff import COLUMNS, IndexDiff
from tlray.images.listing import Listed
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
_SHARDS_PER_PIECE = 64
_FIRST, _LATER = 128, 1024
"""Images in a shard of the first piece and of the later ones: a small set is still spread over many
tasks, a large one makes files of a sensible size, and the total need not be known."""
_THREADS = 16
"""That ask for what the pieces say of themselves."""
_POLL_SECONDS = 0.2
_STOPPED = "index/.stopped.tmp"
"""Tells those who wait for a piece that none will come."""


def piece_name(piece: int) -> str:
    return f"index/part-{piece:05d}.parquet"


class Index:
    """The index of a job. It may still grow: shards are worked on while later images are being listed.

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
        self.known: IndexDiff | None = None
        """What an earlier run had listed, if this one lists on."""
        self._rest: Iterator[_Piece] = iter(())
        self._stopping = Event()

    def __reduce__(self) -> tuple[Any, ...]:
        """What is sent to a task: where the index is, not how much of it is there."""
        return Index, (self.folder, self.job)

    @classmethod
    def start(
        cls,
        folder: Folder,
        images: Iterable[Listed],
        batch_size: int,
        job: Mapping[str, Any],
        copies: int = 1,
        *,
        extend: bool = False,
    ) -> Index:
        """Begin a job in a folder, or go on with the same job there; one piece at least is there then.

        Args:
            folder: that the job writes to.
            images: listed and written down; those that an earlier run has written down are skipped.
            batch_size: of the network; a shard is a multiple of it.
            job: JSON values that say all that the job's result depends on.
            copies: how many rows of the network's input an image makes; shards have so many fewer images.
            extend: look for new images also where an earlier run has listed all that there were.

        Raises:
            UserError: the folder holds another job or other files, or there is no image; nothing
                was written.
            JobError: the index is damaged.
        """
        index = cls(folder, job)
        images = index._unless_stopped(images)
        folder.remove(_STOPPED)
        size = _shard_size(batch_size, copies)
        if folder.is_file(piece_name(0)):
            index._read(job)
            if extend or not index.complete:
                index.known = IndexDiff(index.tables(*COLUMNS))
                index._rest = _pieces(index.known.new(images), size, len(index.shard_sizes))
                first = next(index._rest)
                if first[0] or not index.complete:
                    index._write(first)
            return index
        # A listing that was killed leaves no more than a temporary file.
        strangers = [name for name in folder.names() if name != "index" or folder.is_file(name)]
        if not strangers:
            strangers = [f"index/{name}" for name in folder.names("index") if not name.endswith(".tmp")]
        if strangers:
            raise UserError(
                f"{folder.uri} is not empty and is no job of tlray (it holds {', '.join(strangers[:3])}"
                f"{', ...' if len(strangers) > 3 else ''}): choose a new folder"
            )
        index._rest = _pieces(images, size, 0)
        try:
            index._write(next(index._rest))
        except BaseException as error:
            index.discard()
            if not isinstance(error, OSError):
                raise
            raise UserError(f"cannot write to {folder.uri}: {error.strerror or error}") from error
        return index

    @classmethod
    def open(cls, folder: Folder) -> Index:
        """Open the index of a job that was started before.

        Raises:
            JobError: there is none, or it is damaged.
        """
        index = cls(folder, _read_piece(folder, 0, None, _stamp)[0]["job"])
        index._read(index.job)
        return index

    def grow(self) -> Iterator[None]:
        """List what is left, a piece at each step.

        Raises:
            JobError: a folder cannot be listed, or not be written to.
        """
        try:
            for piece in self._rest:
                self._write(piece)
                yield
        except UserError as error:
            raise JobError(f"{error}; then run it again to go on") from error

    def finish(self) -> None:
        """List all that is left; errors as of `grow`, and JobError if another thread stopped it."""
        try:
            for _ in self.grow():
                pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End the listing; those who wait for what is not listed yet are told that it will not come."""
        if not self.complete:
            self._stopping.set()
            self.folder.write(_STOPPED, b"")

    def discard(self) -> None:
        """Remove it, and the folder if nothing else is in it."""
        self.folder.remove("index")
        self.folder.remove_empty()

    def shards(self, done: Container[int]) -> Iterator[pa.Table]:
        """The rows of each shard but those that are done, in order; waits for what is still being listed.

        Raises:
            JobError: the listing was stopped, or a piece is damaged.
        """

        def is_done(piece: int) -> bool:
            first = piece * _SHARDS_PER_PIECE
            return all(shard in done for shard in range(first, first + _SHARDS_PER_PIECE))

        # Only the last of those that are done is asked, whether another follows.
        piece, last = max(0, next(piece for piece in count() if not is_done(piece)) - 1), False
        while not last or self.folder.is_file(piece_name(piece)):
            while not self.folder.is_file(piece_name(piece)):
                if self.folder.is_file(_STOPPED):
                    raise self._was_stopped()
                time.sleep(_POLL_SECONDS)
            read = _stamp if is_done(piece) else pq.ParquetFile.read
            table, sizes, last = _read_piece(self.folder, piece, self.job, read)
            start = 0
            for number, size in enumerate(sizes, start=piece * _SHARDS_PER_PIECE):
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
        for piece in range(self._pieces):
            yield _read_piece(self.folder, piece, self.job, lambda file: file.read(columns))[0]

    @property
    def _pieces(self) -> int:
        return -(-len(self.shard_sizes) // _SHARDS_PER_PIECE)

    def _unless_stopped(self, images: Iterable[Listed]) -> Iterator[Listed]:
        for image in images:
            if self._stopping.is_set():
                raise self._was_stopped()
            yield image

    def _was_stopped(self) -> JobError:
        return JobError(f"the listing of the images for {self.folder.uri} was stopped")

    def _read(self, job: Mapping[str, Any]) -> None:
        """Take in the pieces that are there, from their footers."""
        there = set(self.folder.names("index"))
        pieces = takewhile(lambda piece: posixpath.basename(piece_name(piece)) in there, count())
        # Side by side, as an object store takes its time for each.
        with ThreadPoolExecutor(_THREADS) as pool:
            for _, sizes, last in pool.map(
                lambda piece: _read_piece(self.folder, piece, job, _stamp), pieces
            ):
                self._add(sizes, last)
                if len(sizes) < _SHARDS_PER_PIECE:  # None comes behind one that is not full.
                    break

    def _add(self, sizes: list[int], last: bool) -> None:
        self.shard_sizes.extend(sizes)
        self.images += sum(sizes)
        self.complete = last

    def _write(self, piece: _Piece) -> None:
        """Write a piece; or add to the last one, which is not full where an earlier listing ended."""
        rows, sizes, last = piece
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        table = pa.table(list(map(pa.array, columns, SCHEMA.types)), schema=SCHEMA)
        before: list[int] = []
        # Without a row, the last one is only told that it is the last.
        number = (len(self.shard_sizes) - (not sizes)) // _SHARDS_PER_PIECE
        if number < self._pieces:
            there, before, _ = _read_piece(self.folder, number, self.job, pq.ParquetFile.read)
            table = pa.concat_tables([there.replace_schema_metadata(), table])
        values = stamp({"job": self.job, "shards": [*before, *sizes], "last": last})
        with self.folder.writing(piece_name(number)) as stream:
            pq.write_table(table.replace_schema_metadata(values), stream, compression="zstd")
        self._add(sizes, last)


_Piece = tuple[list[tuple[Any, ...]], list[int], bool]
"""The listed rows, each with its shard; the sizes of the shards; and whether it is the last."""


def _shard_size(batch_size: int, copies: int) -> Callable[[int], int]:
    """The size of a shard by its number: a multiple of the batch."""

    def size(shard: int) -> int:
        images = max(1, (_FIRST if shard < _SHARDS_PER_PIECE else _LATER) // copies)
        return -(-images // batch_size) * batch_size

    return size


def _pieces(rows: Iterator[Listed], shard_size: Callable[[int], int], shard: int) -> Iterator[_Piece]:
    """The rows of each piece from a shard on, each when it is known whether another follows.

    If there is no row, there is one piece without any.
    """
    ahead = next(rows, None)
    last = False
    while not last:
        found: list[tuple[Any, ...]] = []
        sizes: list[int] = []
        end = (shard // _SHARDS_PER_PIECE + 1) * _SHARDS_PER_PIECE
        for number in range(shard, end):
            first = len(found)
            while ahead is not None and len(found) - first < shard_size(number):
                found.append((*ahead, number))
                ahead = next(rows, None)
            if len(found) > first:
                sizes.append(len(found) - first)
        shard, last = end, ahead is None
        yield found, sizes, last


def _stamp(file: pq.ParquetFile) -> dict[str, Any]:
    return read_stamp(file.schema_arrow.metadata)


def _read_piece(
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
                or not 0 < len(sizes) <= _SHARDS_PER_PIECE
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
