"""What lies directly in a folder, local or remote, in an order that never changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs

from tlray import names
from tlray.errors import UserError
from tlray.storage import Folder


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
        return self.is_folder or names.is_archive(self.path)


def below(root: Folder, folder: Entry) -> list[Entry]:
    """What a folder holds, in the order that makes the paths of a whole walk sorted.

    Raises:
        UserError: it cannot be listed, or a name in it reads as if it lay in an archive beside it.
    """
    place = root.join(folder.path)
    try:
        found = sorted(_scan(root, folder, place), key=lambda entry: names.text(entry.path))
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
            if not names.is_hidden(info.base_name):
                slash = "/" if info.type == fs.FileType.Directory else ""
                yield Entry(f"{folder.path}{info.base_name}{slash}", info)
        return
    above = folder.trail or tuple(_identity(os.stat(p)) for p in Path(os.path.realpath(place)).parents)
    trail = (*above, _identity(os.stat(place)))
    with os.scandir(place) as entries:
        for entry in entries:
            if names.is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                yield Entry(folder.path + entry.name, None, trail)
            elif _identity(entry.stat()) not in trail:
                yield Entry(f"{folder.path}{entry.name}/", None, trail)


def _check_distinct(entries: Sequence[Entry], place: str) -> None:
    archives = {entry.path for entry in entries if names.is_archive(entry.path)}
    for entry in entries if archives else ():
        for archive, _ in names.inside(entry.path):
            if archive in archives:
                raise UserError(
                    f"{entry.path!r} in {place!r} may be the name of an image in {archive!r}: rename one"
                )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A link that leads nowhere is no folder; one that may not be followed could be.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or names.is_image(entry.name):
            return False
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
