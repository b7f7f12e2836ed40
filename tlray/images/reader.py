"""Reads the bytes of an image from its own file, or from a tar or Parquet file that contains it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tlray.core.checked_file import CheckedFile, Replaced, StorageError, storage_errors
from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import Archive, Damaged
from tlray.images.archives.parquet import Parquet
from tlray.images.archives.tar import Tar
from tlray.images.bad_image import MAX_BYTES, BadImage, refusing
from tlray.images.conventions import ColumnNames

_open_folder = functools.lru_cache(maxsize=64)(Folder.open)
_NO_COLUMNS = ColumnNames(label="none", split="none")


def open_archive(root: Folder, path: str, columns: ColumnNames) -> Archive | None:
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
    """The time of change in the listing, to notice that an object or a Parquet file was replaced."""
    size: int | None = None
    """The size in the listing, to notice that the image was replaced; None reads it as it is now."""


class Reader:
    """Reads images of one root. Only one thread may use it.

    The archive of the last image stays open, so that reading its neighbours costs little.
    """

    def __init__(self, root: Folder) -> None:
        self.root = root
        self._place: tuple[Folder, str] | None = None
        self._archive: Archive | None = None

    def __call__(
        self, path: str, offset: int | None = None, modified: datetime | None = None, size: int | None = None
    ) -> bytes:
        """The bytes of one image; the arguments are the fields of a `Place`.

        Raises:
            BadImage: there is no such image, or it alone cannot be read, or it was replaced.
            StorageError: the storage refuses or fails; nothing is known about the image.
        """
        place = Place(path, offset, modified, size)
        with refusing("read"):
            archived = self._find(place)
            if archived is None:
                return read_image(self.root, path, modified, size)
            try:
                with suppress(Replaced):
                    return self._read(*archived, place)
                self._archive = None  # The open archive is an earlier version.
                return self._read(*archived, place)
            except FileNotFoundError as error:
                raise _gone(self.root, error, "removed since it was listed") from error

    def _read(self, root: Folder, archive_path: str, name: str, place: Place) -> bytes:
        archive = self._open(root, archive_path)
        numbered = not archive.has_names or name == str(place.offset)
        if numbered and not archive.file.is_from(place.modified):
            raise BadImage("read", "Replaced", "the archive was replaced since it was listed")
        try:
            data = archive.read(name, place.offset)
        except (Damaged, OSError):
            archive.file.check()  # Two versions of an archive may look like a damaged one.
            raise
        archive.file.check()
        if place.size not in (None, len(data)):
            raise _replaced(f"it has {len(data)} bytes, and had {place.size} when it was listed")
        return data

    def _find(self, place: Place) -> tuple[Folder, str, str] | None:
        """The root and path of the archive that contains an image, and the image's name in it."""
        candidates = filetypes.possible_archives(place.path)
        for archive_place, name in candidates:
            root, archive = _located(self.root, archive_place)
            # A folder may have such a name too, but an image with an offset is never a file of its own.
            if place.offset is not None and len(candidates) == 1:
                return root, archive, name
            with storage_errors(root, archive):
                if (root, archive) == self._place or root.is_file(archive):
                    return root, archive, name
        return None

    def _open(self, root: Folder, path: str) -> Archive:
        if self._archive is None or (root, path) != self._place:
            self._archive = None
            archive = open_archive(root, path, _NO_COLUMNS)
            if archive is None:
                raise Damaged("the Parquet file has no column of images any more")
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
        except StorageError as error:
            return str(error)
        return None


def read_image(root: Folder, path: str, modified: datetime | None = None, size: int | None = None) -> bytes:
    """The bytes of an image that is a file of its own; the arguments are those of a `Reader`."""
    with refusing("read"):
        folder, name = _located(root, path)
        try:
            with CheckedFile(folder, name, size, None if size is None else modified) as file:
                if file.size() > MAX_BYTES:
                    raise BadImage("read", "FileTooLarge", f"{file.size()} bytes, above {MAX_BYTES}")
                data = file.read_at(file.size(), 0)
                file.check()
                return data
        except Replaced as error:
            raise _replaced(str(error)) from error
        except (FileNotFoundError, UnicodeEncodeError) as error:
            # A listing writes a byte that is not UTF-8 as \xe9 or as the replacement character.
            if isinstance(error, UnicodeEncodeError) or re.search(r"\\x[89a-f][0-9a-f]|\ufffd", path):
                reason = "its name is not UTF-8: rename it"
            elif folder.is_local and os.path.islink(folder.join(name)):
                reason = "a link to nowhere"
            else:
                reason = "removed since it was listed"
            raise _gone(root, error, reason) from error


def _gone(root: Folder, error: Exception, reason: str) -> BadImage:
    if root.is_local and not os.path.isdir(root.path):
        raise StorageError(f"the folder of the images, {root.uri}, is gone: bring it back, then run it again")
    return BadImage("read", type(error).__name__, reason)


def _replaced(message: str) -> BadImage:
    return BadImage("read", "Replaced", f"{message}; `extract --retry-errors` reads it as it is now")


def any_exists(root: Folder, paths: Iterable[str]) -> bool:
    """Whether the file of one of these images, or an archive that may contain it, exists or may exist."""
    for path in paths:
        for place in (path, *(archive for archive, _ in filetypes.possible_archives(path))):
            try:
                folder, name = _located(root, place)
                if folder.exists(name):
                    return True
            except (BadImage, ValueError):  # E.g. a URI that nothing opens, or a path with a null byte.
                continue
            except (OSError, StorageError):  # The storage does not tell.
                return True
    return False


def _located(root: Folder, path: str) -> tuple[Folder, str]:
    """The folder that contains a file, and its path there; a table may give a URI instead of a path."""
    if "://" not in path:
        return root, path
    uri, _, name = path.rpartition("/")
    try:
        return _open_folder(uri), name
    except UserError as error:
        # There may be no network; a bucket that does not exist is a fault of this row.
        if isinstance(error.__cause__, OSError) and "not found" not in str(error):
            raise StorageError(f"{error}; mend the access to it, then run it again") from error
        raise BadImage("read", type(error).__name__, str(error)) from error
