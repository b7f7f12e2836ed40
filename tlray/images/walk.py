"""The files below a folder and what is in its archives, in an order that never changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

from pyarrow import fs

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.prefetch import Prefetch

_THREADS = 8
"""That open folders and archives of an object store ahead, each one at a time."""
_FOUND_AHEAD = 10_000
"""Images of an archive that are found ahead: more would fill the memory while others have their turn."""

Found = TypeVar("Found")


class Entry(NamedTuple):
    path: str
    """Relative to the root, as the file system spells it; a folder's is empty or ends in a slash."""
    info: fs.FileInfo | None = None
    """What a remote listing said of it; a local file is asked only when it is its turn."""
    trail: tuple[tuple[int, int], ...] = ()
    """Device and inode of every local folder it lies in."""

    @property
    def is_folder(self) -> bool:
        return not self.path or self.path.endswith("/")

    @property
    def opens(self) -> bool:
        """Whether there can be images in it."""
        return self.is_folder or filetypes.is_archive(self.path)


class _Below(NamedTuple):
    """What a folder holds."""

    entries: list[Entry]
    opening: list[Entry]
    """Those of them in which there can be images."""


def walk(root: Folder, start: Entry, archived: Callable[[Entry], Iterator[Found]]) -> Iterator[Entry | Found]:
    """The files, sorted by path; in the place of an archive what is found in it.

    Folders and archives of an object store are opened in threads ahead of their turn.

    Args:
        root: of the paths.
        start: a folder or a file.
        archived: what is in an archive.

    Raises:
        UserError: as of `below`.
    """

    def opened(entry: Entry, over: Event) -> _Below | Iterator[Found]:
        if entry.is_folder:
            found = below(root, entry)
            return _Below(found, [there for there in found if there.opens])
        images = archived(entry)
        return chain(list(takewhile(lambda _: not over.is_set(), islice(images, _FOUND_AHEAD))), images)

    pending, opening = [start], [start]
    with Prefetch(opened, 0 if root.is_local else _THREADS) as ahead:
        while pending:
            entry = pending.pop()
            if not entry.opens:
                yield entry
                continue
            opening.pop()
            found = ahead.take(entry)
            if isinstance(found, _Below):
                pending += reversed(found.entries)
                opening += reversed(found.opening)
            ahead.begin(islice(_next(opening, ahead), _THREADS))
            if not isinstance(found, _Below):
                yield from found


def _next(opening: list[Entry], ahead: Prefetch[Entry, _Below | Iterator[Found]]) -> Iterator[Entry]:
    """What is opened next, as far as is known; the first of it stands last in the list."""
    pending = opening[-_THREADS:]
    while pending:
        entry = pending.pop()
        found = ahead.peek(entry)
        if isinstance(found, _Below) and found.opening:
            pending += reversed(found.opening[:_THREADS])
        else:
            yield entry


def below(root: Folder, folder: Entry) -> list[Entry]:
    """What a folder holds, in the order that makes the paths of a whole walk sorted.

    Raises:
        UserError: it cannot be listed, or a name in it reads as if it lay in an archive beside it.
    """
    place = root.join(folder.path)
    try:
        found = sorted(_scan(root, folder, place), key=lambda entry: filetypes.text(entry.path))
    except OSError as error:
        raise UserError(
            f"cannot list the folder {place!r}: {error.strerror or error};\n"
            "its images cannot be counted: make it readable, or move it away"
        ) from error
    _check_distinct(found, place)
    return found


def _scan(root: Folder, folder: Entry, place: str) -> Iterator[Entry]:
    if not root.is_local:
        for info in root.filesystem.get_file_info(fs.FileSelector(place.rstrip("/"))):
            if not filetypes.is_hidden(info.base_name):
                slash = "/" if info.type == fs.FileType.Directory else ""
                yield Entry(f"{folder.path}{info.base_name}{slash}", info)
        return
    above = folder.trail or tuple(_identity(os.stat(p)) for p in Path(os.path.realpath(place)).parents)
    trail = (*above, _identity(os.stat(place)))
    with os.scandir(place) as entries:
        for entry in entries:
            if filetypes.is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                yield Entry(folder.path + entry.name, None, trail)
            elif _identity(entry.stat()) not in trail:
                yield Entry(f"{folder.path}{entry.name}/", None, trail)


def _check_distinct(entries: Sequence[Entry], place: str) -> None:
    archives = {entry.path for entry in entries if filetypes.is_archive(entry.path)}
    for entry in entries if archives else ():
        for archive, _ in filetypes.inside(entry.path):
            if archive in archives:
                raise UserError(
                    f"{entry.path!r} in {place!r} may be the name of an image in {archive!r}: rename one"
                )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A link that leads nowhere is no folder; one that may not be followed could be.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or filetypes.is_image(entry.name):
            return False
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
