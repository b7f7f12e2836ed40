"""Walks through the files of a folder and the images of its archives, always in the same order."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, takewhile
from operator import attrgetter
from pathlib import Path
from threading import Event
from typing import Generic, NamedTuple, TypeVar

from pyarrow import fs

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.conventions import METADATA, is_hidden, name_classes

_THREADS = 8
"""Threads that open folders and archives of an object store ahead of their turn, one at a time each."""
_IMAGES_AHEAD = 10_000
"""The most images of an archive that are listed ahead of its turn, because they fill the memory."""

_identity = attrgetter("st_dev", "st_ino")
Image = TypeVar("Image")


class Entry(NamedTuple):
    path: str
    """The path relative to the root, as the file system spells it. A folder's is empty or ends in a slash."""
    info: fs.FileInfo | None = None
    """What a remote listing reports about it; a local file is asked only when its turn comes."""
    ancestors: tuple[tuple[int, int], ...] = ()
    """Device and inode of every local folder that contains it."""
    class_name: str | None = None
    """The class in a tar file's name, if the tar files in its folder are named like one for each class."""
    hidden: bool = False
    """Whether its name begins with a dot, or is that of a folder which a system makes. It is never opened."""

    @property
    def is_folder(self) -> bool:
        return not self.path or self.path.endswith("/")

    @property
    def is_metadata(self) -> bool:
        return os.path.basename(self.path) in METADATA

    @property
    def is_container(self) -> bool:
        """Whether it may contain images, or their labels."""
        return not self.hidden and (self.is_folder or self.is_metadata or filetypes.is_archive(self.path))


class _Folder(NamedTuple):
    entries: list[Entry]
    containers: list[Entry]
    """The entries that may contain images."""


class _Prefetch(Generic[Image]):
    """Opens folders and archives; `begin` does so in threads, before their turn."""

    def __init__(self, root: Folder, open_archive: Callable[[Entry], Iterator[Image]]) -> None:
        self._root, self._open_archive = root, open_archive
        self._over = Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="prefetch")
        self._begun: dict[Entry, Future[_Folder | Iterator[Image]]] = {}

    def __enter__(self) -> _Prefetch[Image]:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry not in self._begun:
                self._begun[entry] = self._pool.submit(self._open, entry)

    def peek(self, entry: Entry) -> _Folder | Iterator[Image] | None:
        """What is in a folder or archive, if a thread has opened it."""
        future = self._begun.get(entry)
        if future is None or not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    def take(self, entry: Entry) -> _Folder | Iterator[Image]:
        """What is in a folder or archive; it is opened now if no thread has begun to do so."""
        future = self._begun.pop(entry, None)
        return self._open(entry) if future is None or future.cancel() else future.result()

    def _open(self, entry: Entry) -> _Folder | Iterator[Image]:
        if entry.is_folder:
            entries = list_folder(self._root, entry)
            return _Folder(entries, [inner for inner in entries if inner.is_container])
        images = self._open_archive(entry)
        return chain(
            list(takewhile(lambda _: not self._over.is_set(), islice(images, _IMAGES_AHEAD))), images
        )


def walk(
    root: Folder, start: Entry, open_archive: Callable[[Entry], Iterator[Image]]
) -> Iterator[Entry | Image]:
    """Yield the files below `start`, sorted by path; in place of an archive, what `open_archive` yields."""
    pending, unopened = [start], [start]
    with _Prefetch(root, open_archive) as prefetch:
        while pending:
            entry = pending.pop()
            if not entry.is_container:
                yield entry
                continue
            unopened.pop()
            content = prefetch.take(entry)
            if isinstance(content, _Folder):
                pending += reversed(content.entries)
                unopened += reversed(content.containers)
            if not root.is_local:
                prefetch.begin(islice(_next(unopened, prefetch), _THREADS))
            if not isinstance(content, _Folder):
                yield from content


def _next(unopened: list[Entry], prefetch: _Prefetch[Image]) -> Iterator[Entry]:
    """The folders and archives whose turn comes next, as far as is known. `unopened` ends with the first."""
    pending = unopened[-_THREADS:]
    while pending:
        entry = pending.pop()
        content = prefetch.peek(entry)
        if isinstance(content, _Folder) and content.containers:
            pending += reversed(content.containers[:_THREADS])
        else:
            yield entry


def list_folder(root: Folder, folder: Entry) -> list[Entry]:
    """The files and folders in a folder: metadata, then in the order that sorts the paths of a complete walk.

    Raises:
        UserError: the folder cannot be listed, or a name in it looks like an image of an archive beside it.
    """
    place = root.join(folder.path)
    try:
        entries = sorted(
            _scan(root, folder, place),
            key=lambda entry: (not entry.is_metadata, filetypes.valid_text(entry.path)),
        )
    except OSError as error:
        raise UserError(
            f"cannot list the folder {place!r}: {error.strerror or error};\n"
            "its images would be missing: make it readable, or move it away"
        ) from error
    archives = {entry.path for entry in entries if entry.is_container and not entry.is_folder}
    for entry in entries if archives else ():
        for archive, _ in filetypes.possible_archives(entry.path):
            if archive in archives:
                raise UserError(
                    f"{entry.path!r} in {place!r} may be the name of an image in {archive!r}: rename one"
                )
    tars = [path for path in archives if path.lower().endswith(".tar")]
    classes = {path: filetypes.valid_text(posixpath.basename(path))[:-4] for path in tars}
    if not name_classes([*classes.values()]):
        return entries
    return [entry._replace(class_name=classes.get(entry.path)) for entry in entries]


def _scan(root: Folder, folder: Entry, place: str) -> Iterator[Entry]:
    if not root.is_local:
        for info in root.filesystem.get_file_info(fs.FileSelector(place.rstrip("/"))):
            if info.path.rstrip("/") == place.rstrip("/"):
                raise _without_name(root, place.rstrip("/"))
            hidden = is_hidden(info.base_name)
            slash = "/" if info.type == fs.FileType.Directory and not hidden else ""
            yield Entry(f"{folder.path}{info.base_name}{slash}", info, hidden=hidden)
        return
    above = folder.ancestors or tuple(_identity(os.stat(p)) for p in Path(os.path.realpath(place)).parents)
    ancestors = (*above, _identity(os.stat(place)))
    with os.scandir(place) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                yield Entry(folder.path + entry.name, None, ancestors, hidden=True)
            elif not _is_folder(entry):
                yield Entry(folder.path + entry.name, None, ancestors)
            elif _identity(entry.stat()) not in ancestors:  # A link may lead back to a folder above.
                yield Entry(f"{folder.path}{entry.name}/", None, ancestors)


def _without_name(root: Folder, place: str) -> UserError:
    """The error for a folder that contains a folder without a name, which Arrow cannot open."""
    infos = root.filesystem.get_file_info(fs.FileSelector(place, recursive=True))
    keys = [info.path for info in infos if "//" in info.path and info.type == fs.FileType.File]
    return UserError(
        f"the key {(keys or [place + '//'])[0]!r} has a folder without a name (//), which cannot be read:\n"
        "rename or move the objects with such keys, because their images would be missing"
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A broken link is no folder. A link that tlray has no permission to follow could be one.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or filetypes.is_image(entry.name):
            return False
        raise
