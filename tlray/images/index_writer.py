"""Writes the index of a job piece by piece; tasks read the first pieces while images are still listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core import parquet
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import stamp
from tlray.core.record import plain
from tlray.core.results import Account
from tlray.core.storage import Folder, is_temporary
from tlray.images.account import Counts, LabelError, Tally
from tlray.images.index import (
    SCHEMA,
    SHARDS_PER_PIECE,
    STOPPED,
    Index,
    check_exists,
    count_rows,
    piece_name,
    read_piece,
    remove_index,
    stopped,
)
from tlray.images.index_diff import COLUMNS, Changes, IndexDiff
from tlray.images.listing import Images, Listed

_FIRST, _LATER = 128, 1024
"""Images in a shard of the first piece, and of later ones. A small set is still spread over many tasks, and
a large one makes files of a sensible size, although the total is not known in advance."""


def listing_for(folder: Folder, images: Iterable[Listed]) -> Iterable[Listed]:
    """The images for `IndexWriter.start`. If the folder has no index yet, this looks for the first image.

    That image is part of what is returned, so that storage is not asked for anything twice.

    Raises:
        UserError: there is no image.
    """
    if folder.is_file(piece_name(0)):
        return images
    listing = iter(images)
    return chain(list(islice(listing, 1)), listing)


class IndexWriter:
    """Lists the images of a job, and writes them to its index."""

    def __init__(self, index: Index, source: Images | None = None, work: Folder | None = None) -> None:
        self.index = index
        self._source, self._tally, self._work = source, Tally(), work
        self.diff: IndexDiff | None = None
        """The changes since an earlier run listed the images, if this run continues that listing."""
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
        source: Images | None = None,
        extend: bool = False,
        work: Folder | None = None,
    ) -> IndexWriter:
        """Start or continue a job in a folder, and write the first piece if there is none.

        Args:
            folder: the folder that the job writes to.
            images: the images to list; those that an earlier run has listed are skipped.
            batch_size: the images in a batch of the network; each shard is a multiple of it.
            job: JSON values that contain every setting on which the result of the job depends.
            copies: the rows of network input per image; shards have that many times fewer images.
            source: what `images` iterates over, if the index is to have an account of the images.
            extend: look for new images even if an earlier run has listed all images.
            work: the folder to remove, by the message, if images have changed since an earlier run listed
                them; None if that is no fault.

        Raises:
            UserError: the folder contains another job or other files, there is no image, the labels are
                surely wrong, or images have changed. Nothing was written.
            JobError: the index is damaged.
        """
        folder.remove(STOPPED)
        size = partial(shard_size, batch_size=batch_size, copies=copies)
        if folder.is_file(piece_name(0)):
            writer = cls(Index.open(folder, job), source, work)
            if extend or work or not writer.index.complete:
                writer._compare(images, size, extend=extend)
            return writer
        _check_unused(folder)
        writer = cls(Index(folder, job), source)
        writer._rest = _pieces(writer._until_stopped(images), size, 0)
        try:
            writer._write(next(writer._rest))
        except BaseException as error:
            writer.discard()
            if not isinstance(error, OSError):
                raise
            raise UserError(f"cannot write to {folder.uri}: {error.strerror or error}") from error
        return writer

    def _compare(self, images: Iterable[Listed], size: Callable[[int], int], *, extend: bool) -> None:
        """Compare the images with those that an earlier run listed, and write the first piece of new ones."""
        self._count(self.index.count("split", "label") if self._source else {})
        self.diff = IndexDiff(self.index.tables(*COLUMNS))
        new = self.diff.new(self._until_stopped(images))
        if self.index.complete and not extend:
            self._check_unchanged(added=sum(1 for _ in new))
            return
        self._rest = _pieces(new, size, len(self.index.shard_sizes))
        first = next(self._rest)
        if first[0] or not self.index.complete:
            self._write(first)

    def account(self) -> Account | None:
        """What is understood of the images that are listed so far; None without a source."""
        if self.index.account is None and self._source is not None and not self.index.complete:
            return self._tally.account(self._source, complete=False)
        return self.index.account

    def grow(self) -> Iterator[None]:
        """List the remaining images; each step writes one piece.

        Raises:
            JobError: a folder cannot be listed, or the index cannot be written.
        """
        try:
            for piece in self._rest:
                check_exists(self.index.folder)
                self._write(piece)
                yield
            self._check_unchanged()
        except UserError as error:
            # A row that is written keeps its label, so labels can be mended only in a new index.
            remedy = f"remove {self.index.folder.uri}, and " if isinstance(error, LabelError) else ""
            raise JobError(f"{error}; then {remedy}run it again{' to go on' * (not remedy)}") from error

    def finish(self) -> None:
        """List all remaining images; raises what `grow` raises, and JobError once `stop` was called."""
        try:
            for _ in self.grow():
                pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End the listing, and tell the tasks that wait for the rest of it that it will not come."""
        if not self.index.complete and not self._stopping.is_set():
            self._stopping.set()
            if self.index.folder.is_file(piece_name(0)):
                self.index.folder.write(STOPPED, b"")

    def discard(self) -> None:
        """Remove the index, and also the folder if it contains nothing else."""
        remove_index(self.index.folder)
        self.index.folder.remove_empty()

    def _check_unchanged(self, added: int = 0) -> None:
        changes = self.diff.changes() if self.diff is not None else Changes(added=0)
        if self._work is not None and (added or changes.replaced or changes.removed):
            examples = f", e.g. {changes.replaced_paths[0]}" if changes.replaced else ""
            raise UserError(
                f"the images have changed since this job began ({added} added, {changes.replaced} replaced"
                f"{examples}, {changes.removed} removed): remove {self._work.uri}, which has results of the "
                "earlier images"
            )

    def _until_stopped(self, images: Iterable[Listed]) -> Iterator[Listed]:
        for image in images:
            if self._stopping.is_set():
                raise stopped(self.index.folder)
            yield image

    def _write(self, piece: _Piece) -> None:
        """Write a piece, or extend the last one if an earlier listing ended before it was full."""
        rows, sizes, last = piece
        index = self.index
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        table = pa.table(list(map(pa.array, columns, SCHEMA.types)), schema=SCHEMA)
        self._count(count_rows(table, "split", "label"))
        before: list[int] = []
        # Without new images, write the last piece again only to mark it as the last.
        number = (len(index.shard_sizes) - (not sizes)) // SHARDS_PER_PIECE
        if number < index.pieces:
            written, before, _ = read_piece(index.folder, number, index.job, pq.ParquetFile.read)
            table = pa.concat_tables([written.replace_schema_metadata(), table])
        account = self._tally.account(self._source, complete=True) if self._source and last else None
        shards = [*before, *sizes]
        values = stamp({"job": index.job, "shards": shards, "last": last, "account": plain(account)})
        parquet.write(index.folder, piece_name(number), table.replace_schema_metadata(values))
        index.add(sizes, last, account)

    def _count(self, counts: Counts) -> None:
        for (split, label), images in counts.items() if self._source else ():
            self._tally.add(split, label, images)


_Piece = tuple[list[tuple[Any, ...]], list[int], bool]
"""The listed rows, each with its shard; the sizes of the shards; and whether this is the last piece."""


def _check_unused(folder: Folder) -> None:
    """Raise UserError if a folder without an index contains anything."""
    # A killed listing leaves nothing but a temporary file.
    others = [name for name in folder.names() if name != "index" or folder.is_file(name)]
    others = others or [f"index/{name}" for name in folder.names("index") if not is_temporary(name)]
    if others:
        raise UserError(
            f"{folder.uri} is not empty and is no job of tlray (it holds {', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): choose a new folder"
        )


def shard_size(shard: int, batch_size: int, copies: int) -> int:
    """The number of images in a shard, a multiple of the batch."""
    images = max(1, (_FIRST if shard < SHARDS_PER_PIECE else _LATER) // copies)
    return -(-images // batch_size) * batch_size


def _pieces(images: Iterator[Listed], size: Callable[[int], int], shard: int) -> Iterator[_Piece]:
    """The images in pieces that begin with this shard; without images, one empty piece.

    A piece comes only when it is known whether another one follows.
    """
    following = list(islice(images, 1))
    last = False
    while not last:
        rows: list[tuple[Any, ...]] = []
        sizes: list[int] = []
        end = (shard // SHARDS_PER_PIECE + 1) * SHARDS_PER_PIECE
        for number in range(shard, end):
            if chunk := list(islice(chain(following, images), size(number))):
                rows += [(*image, number) for image in chunk]
                sizes.append(len(chunk))
                following = list(islice(images, 1))
        shard, last = end, not following
        yield rows, sizes, last
