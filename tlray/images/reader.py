"""The bytes of an image, wherever it is: a file of its own, or one in a tar or Parquet file."""

from __future__ import annotations

import functools
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import Archive, Damaged
from tlray.images.archives.parquet import Parquet
from tlray.images.archives.tar import Tar
from tlray.images.bad_image import MAX_BYTES, BadImage, refusing

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}


def open_archive(root: Folder, path: str) -> Archive | None:
    """Open a tar or Parquet file; None for a Parquet file without images.

    Raises:
        Damaged: it is not what its name says, or cannot be used.
        OSError: it is not there, or cannot be read.
    """
    if path.lower().endswith(".tar"):
        return Tar(root, path)
    return Parquet.open(root, path)


class Place(NamedTuple):
    """Where an image is, as `Reader` takes it."""

    path: str
    offset: int | None = None
    modified: datetime | None = None


class Reader:
    """Reads images of one root, one after the other; not for several threads.

    The archive of the last image stays open, with what was read ahead: its neighbours cost little.
    """

    def __init__(self, root: Folder) -> None:
        self.root = root
        self._place: tuple[Folder, str] | None = None
        self._archive: Archive | None = None
        self._modified: datetime | None = None

    def __call__(self, path: str, offset: int | None = None, modified: datetime | None = None) -> bytes:
        """The bytes of one image.

        Args:
            path: its identity.
            offset: as it was listed; without it, an archive's contents are looked through once.
            modified: as it was listed, to notice that a Parquet file whose rows have no names was replaced.

        Raises:
            BadImage: there is no such image, or it cannot be read.
        """
        with refusing("read"):
            place = self._find(path, offset)
            if place is None:
                return read_image(self.root, path)
            root, archive, name = place
            try:
                found = self._opened(root, archive)
                numbered = not found.has_names or name == str(offset)
                if numbered and not _same(modified, self._modified):
                    raise BadImage("read", "Replaced", "the archive was replaced since it was listed")
                return found.read(name, offset)
            except FileNotFoundError as error:
                raise BadImage("read", type(error).__name__, "removed since it was listed") from error

    def _find(self, path: str, offset: int | None) -> tuple[Folder, str, str] | None:
        """The root and path of the archive that an image lies in, and its name there."""
        candidates = filetypes.inside(path)
        for place, name in candidates:
            root, archive = self.root, place
            if "://" in place:
                uri, _, archive = place.rpartition("/")
                root = folder(uri)
            # Folders may have such names as well; what has an offset is certain not to be a file of its own.
            surely = offset is not None and len(candidates) == 1
            if surely or (root, archive) == self._place or root.is_file(archive):
                return root, archive, name
        return None

    def _opened(self, root: Folder, path: str) -> Archive:
        if self._archive is None or (root, path) != self._place:
            self._archive = None
            found = open_archive(root, path)
            if found is None:
                raise Damaged("the Parquet file has no column of images any more")
            if not isinstance(found, Tar):
                self._modified = root.status(path)[1]
            self._archive, self._place = found, (root, path)
        return self._archive


def _same(listed: datetime | None, now: datetime | None) -> bool:
    """Whether a time is the one that was listed; of a single object a store tells no parts of seconds."""
    return listed is None or now is None or now in (listed, listed.replace(microsecond=0))


@dataclass(frozen=True)
class ImageProbe:
    """One image as a `tlray.cluster.nodes.Probe`: every node of a job must be able to read it."""

    root: Folder
    at: Place

    @property
    def place(self) -> str:
        return self.root.join(self.at.path)

    def fault(self) -> str | None:
        try:
            Reader(self.root)(*self.at)
        except BadImage as bad:
            return bad.message
        return None


def read_image(root: Folder, path: str) -> bytes:
    """The bytes of an image that is a file of its own; `tlray.images.reader` has all kinds.

    It never waits for a writer at the other end of a pipe.

    Raises:
        BadImage: there is no such file, or it cannot be read.
    """
    with refusing("read"):
        if "://" in path:  # A table may name images anywhere.
            uri, _, path = path.rpartition("/")
            root = folder(uri)
        try:
            return _read_local(root.join(path)) if root.is_local else root.read(path)
        except (FileNotFoundError, UnicodeEncodeError) as error:
            # A listing writes a byte that is not UTF-8 as \xe9 or as the replacement character.
            if isinstance(error, UnicodeEncodeError) or re.search(r"\\x[89a-f][0-9a-f]|\ufffd", path):
                reason = "its name is not UTF-8: rename it"
            elif root.is_local and os.path.islink(root.join(path)):
                reason = "a link to nowhere"
            else:
                reason = "removed since it was listed"
            raise BadImage("read", type(error).__name__, reason) from error


@functools.lru_cache(maxsize=64)
def folder(uri: str) -> Folder:
    return Folder.open(uri)


def _read_local(path: str) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
        raise BadImage("read", "NotAFile", f"a {kind}, not a file")
    if status.st_size > MAX_BYTES:
        raise BadImage("read", "FileTooLarge", f"{status.st_size} bytes, above {MAX_BYTES}")
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()
