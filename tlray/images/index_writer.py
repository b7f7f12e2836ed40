"""Lists the images of a job and writes its index piece by piece, while work on the first pieces begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import stamp
from tlray.core.storage import Folder
from tlray.images.diff import COLUMNS, IndexDiff
from tlray.images.index import SCHEMA, SHARDS_PER_PIECE, STOPPED, Index, piece_name, read_piece, stopped
from tlray.images.listing import Listed

_FIRST, _LATER = 128, 1024
"""Images in a shard of the first piece and of the later ones: a small set is still spread over many
tasks, a large one makes files of a sensible size, and the total need not be known."""


def listing_for(folder: Folder, images: Iterable[Listed]) -> Iterable[Listed]:
    """The images to start an index with, after a look for the first one if the folder has no index yet.

    The listing that this begins is the one that goes on: nothing is asked for twice.

    Raises:
        UserError: there is no image.
    """
    if folder.is_file(piece_name(0)):
        return images
    listing = iter(images)
    return chain(list(islice(listing, 1)), listing)


class IndexWriter:
    """What is still to be listed for an index, and the index that grows by it."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.diff: IndexDiff | None = None
        """What has changed since an earlier run listed the images, if this one lists on."""
        self._rest: Iterator[_Piece] = iter(())
        self._stopping = Event()

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
    ) -> IndexWriter:
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
        folder.remove(STOPPED)
        size = shard_size(batch_size, copies)
        if not folder.is_file(piece_name(0)):
            _check_unused(folder)
            writer = cls(Index(folder, job))
            writer._begin(images, size)
            return writer
        writer = cls(Index.open(folder, job))
        if extend or not writer.index.complete:
            writer._go_on(images, size)
        return writer

    def _begin(self, images: Iterable[Listed], size: Callable[[int], int]) -> None:
        self._rest = _pieces(self._unless_stopped(images), size, 0)
        try:
            self._write(next(self._rest))
        except BaseException as error:
            self.discard()
            if not isinstance(error, OSError):
                raise
            raise UserError(f"cannot write to {self.index.folder.uri}: {error.strerror or error}") from error

    def _go_on(self, images: Iterable[Listed], size: Callable[[int], int]) -> None:
        self.diff = IndexDiff(self.index.tables(*COLUMNS))
        new = self.diff.new(self._unless_stopped(images))
        self._rest = _pieces(new, size, len(self.index.shard_sizes))
        first = next(self._rest)
        if first[0] or not self.index.complete:
            self._write(first)

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
        if not self.index.complete:
            self._stopping.set()
            self.index.folder.write(STOPPED, b"")

    def discard(self) -> None:
        """Remove the index, and the folder if nothing else is in it."""
        self.index.folder.remove("index")
        self.index.folder.remove_empty()

    def _unless_stopped(self, images: Iterable[Listed]) -> Iterator[Listed]:
        for image in images:
            if self._stopping.is_set():
                raise stopped(self.index.folder)
            yield image

    def _write(self, piece: _Piece) -> None:
        """Write a piece; or add to the last one, which is not full where an earlier listing ended."""
        rows, sizes, last = piece
        index = self.index
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        table = pa.table(list(map(pa.array, columns, SCHEMA.types)), schema=SCHEMA)
        before: list[int] = []
        # Without new images the last piece is written again, only to say that it is the last.
        number = (len(index.shard_sizes) - (not sizes)) // SHARDS_PER_PIECE
        if number < index.pieces:
            there, before, _ = read_piece(index.folder, number, index.job, pq.ParquetFile.read)
            table = pa.concat_tables([there.replace_schema_metadata(), table])
        values = stamp({"job": index.job, "shards": [*before, *sizes], "last": last})
        with index.folder.writing(piece_name(number)) as stream:
            pq.write_table(table.replace_schema_metadata(values), stream, compression="zstd")
        index.add(sizes, last)


_Piece = tuple[list[tuple[Any, ...]], list[int], bool]
"""The listed rows, each with its shard; the sizes of the shards; and whether it is the last."""


def _check_unused(folder: Folder) -> None:
    """Raise UserError if there is anything in a folder that has no index."""
    # A listing that was killed leaves no more than a temporary file.
    strangers = [name for name in folder.names() if name != "index" or folder.is_file(name)]
    if not strangers:
        strangers = [f"index/{name}" for name in folder.names("index") if not name.endswith(".tmp")]
    if strangers:
        raise UserError(
            f"{folder.uri} is not empty and is no job of tlray (it holds {', '.join(strangers[:3])}"
            f"{', ...' if len(strangers) > 3 else ''}): choose a new folder"
        )


def shard_size(batch_size: int, copies: int) -> Callable[[int], int]:
    """The size of a shard by its number: a multiple of the batch."""

    def size(shard: int) -> int:
        images = max(1, (_FIRST if shard < SHARDS_PER_PIECE else _LATER) // copies)
        return -(-images // batch_size) * batch_size

    return size


def _pieces(rows: Iterator[Listed], size: Callable[[int], int], shard: int) -> Iterator[_Piece]:
    """The rows of each piece from a shard on, each when it is known whether another follows.

    If there is no row, there is one piece without any.
    """
    ahead = next(rows, None)
    last = False
    while not last:
        listed: list[tuple[Any, ...]] = []
        sizes: list[int] = []
        end = (shard // SHARDS_PER_PIECE + 1) * SHARDS_PER_PIECE
        for number in range(shard, end):
            first = len(listed)
            while ahead is not None and len(listed) - first < size(number):
                listed.append((*ahead, number))
                ahead = next(rows, None)
            if len(listed) > first:
                sizes.append(len(listed) - first)
        shard, last = end, ahead is None
        yield listed, sizes, last
