"""Reads the bytes of an image from its own file, or from a tar or Parquet file that contains it."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import Archive, Damaged
from tlray.images.archives.parquet import Parquet
from tlray.images.archives.tar import Tar
from tlray.images.bad_image import MAX_BYTES, BadImage, refusing
from tlray.images.conventions import ColumnNames

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
_open_folder = functools.lru_cache(maxsize=64)(Folder.open)


def open_archive(root: Folder, path: str, columns: ColumnNames = ColumnNames()) -> Archive | None:  # noqa: B008
    """Open a tar or Parquet file, in which the user names columns; None for a Parquet file without images."""
    return (
        Tar(root, path, columns.label) if path.lower().endswith(".tar") else Parquet.open(root, path, columns)
    )


class Place(NamedTuple):
    """What a `Reader` needs to read an image."""

    path: str
    """The path of the image in the listing."""
    offset: int | None = None
    """The offset of an archived image in the listing; without it, the reader searches the archive once."""
    modified: datetime | None = None
    """The time of change in the listing, to notice that a Parquet file without keys was replaced."""


class Reader:
    """Reads images of one root. Only one thread may use it.

    The archive of the last image stays open, so that reading its neighbours costs little.
    """

    def __init__(self, root: Folder) -> None:
        self.root = root
        self._place: tuple[Folder, str] | None = None
        self._archive: Archive | None = None
        self._modified: datetime | None = None

    def __call__(self, path: str, offset: int | None = None, modified: datetime | None = None) -> bytes:
        """The bytes of one image; the arguments are the fields of a `Place`.

        Raises:
            BadImage: there is no such image, or it cannot be read.
        """
        with refusing("read"):
            place = self._find(path, offset)
            if place is None:
                return read_image(self.root, path)
            root, archive_path, name = place
            try:
                archive = self._open(root, archive_path)
                # A store reports the time of a single object without fractions of a second.
                same = (None, modified, modified and modified.replace(microsecond=0))
                numbered = not archive.has_names or name == str(offset)
                if numbered and modified and self._modified not in same:
                    raise BadImage("read", "Replaced", "the archive was replaced since it was listed")
                return archive.read(name, offset)
            except FileNotFoundError as error:
                raise BadImage("read", type(error).__name__, "removed since it was listed") from error

    def _find(self, path: str, offset: int | None) -> tuple[Folder, str, str] | None:
        """The root and path of the archive that contains an image, and the image's name in it."""
        candidates = filetypes.possible_archives(path)
        for place, name in candidates:
            root, archive = _located(self.root, place)
            # A folder may have such a name too, but an image with an offset is never a file of its own.
            certain = offset is not None and len(candidates) == 1
            if certain or (root, archive) == self._place or root.is_file(archive):
                return root, archive, name
        return None

    def _open(self, root: Folder, path: str) -> Archive:
        if self._archive is None or (root, path) != self._place:
            self._archive = None
            archive = open_archive(root, path)
            if archive is None:
                raise Damaged("the Parquet file has no column of images any more")
            if not isinstance(archive, Tar):
                self._modified = root.status(path)[1]
            self._archive, self._place = archive, (root, path)
        return self._archive


@dataclass(frozen=True)
class ImageProbe:
    """A `tlray.cluster.nodes.Probe` that reads one image: every node of a job must be able to do so."""

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
    """The bytes of an image that is a file of its own, or BadImage; a `Reader` reads archived images too."""
    with refusing("read"):
        root, path = _located(root, path)
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


def any_exists(root: Folder, paths: Iterable[str]) -> bool:
    """Whether the file of one of these images, or an archive that may contain it, exists or may exist."""
    for path in paths:
        for place in (path, *(archive for archive, _ in filetypes.possible_archives(path))):
            try:
                folder, name = _located(root, place)
                if folder.exists(name):
                    return True
            except (UserError, ValueError):  # E.g. a URI that nothing opens, or a path with a null byte.
                continue
            except OSError:  # The storage does not tell.
                return True
    return False


def _located(root: Folder, path: str) -> tuple[Folder, str]:
    """The folder that contains a file, and its path there; a table may give a URI instead of a path."""
    if "://" not in path:
        return root, path
    uri, _, name = path.rpartition("/")
    return _open_folder(uri), name


def _read_local(path: str) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
        raise BadImage("read", "NotAFile", f"a {kind}, not a file")
    if status.st_size > MAX_BYTES:
        raise BadImage("read", "FileTooLarge", f"{status.st_size} bytes, above {MAX_BYTES}")
    # If a pipe has taken the file's place meanwhile, this does not wait for its writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()
