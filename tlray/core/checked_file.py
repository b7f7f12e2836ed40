"""Reads files so that every answer is whole, and tells the faults of a storage from those of a file.

A storage that refuses a request, e.g. because credentials have expired, says nothing about the file: the job
must stop and go on later. Only a file that is gone, or that cannot be read alone, is bad.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tlray.core import private
from tlray.core.errors import JobError
from tlray.core.storage import Folder

_BAD_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO,
    errno.ENODEV, errno.ESPIPE, errno.EACCES, errno.EPERM, errno.EOVERFLOW, errno.EBADMSG, errno.EUCLEAN,
}  # fmt: skip
"""Errors of a local file system that are about one file. All others, such as EIO and ESTALE, are not."""
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PAUSES = (0.0, 0.0, 0.1, 0.4)
"""Seconds before each request; there is another one only if an answer is too short."""


class StorageError(JobError):
    """A storage refused or failed a request, which says nothing about the file."""


class Replaced(OSError):  # noqa: N818 - The name describes the file in its error row.
    """A file is another one now than when it was listed or opened."""


class NotAFile(OSError):  # noqa: N818 - The name describes the file in its error row.
    """A folder, pipe or device has the place of a file."""


@contextmanager
def storage_errors(folder: Folder, name: str) -> Iterator[None]:
    """Raise StorageError in place of an error that is about the storage, and not about this one file."""
    try:
        yield
    except (Replaced, NotAFile, JobError):
        raise
    except Exception as error:
        if _is_about_file(error, is_local=folder.is_local):
            raise
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StorageError(
            f"cannot read {folder.join(name)} now: {words}; mend the access to it, then run it again"
        ) from error


def _is_about_file(error: Exception, *, is_local: bool) -> bool:
    if is_local:
        return not isinstance(error, OSError | MemoryError) or getattr(error, "errno", None) in _BAD_FILE
    # S3 refuses a single object that must first be restored from an archive, because of its storage class.
    return isinstance(error, (*_GONE, UnicodeError, pa.ArrowInvalid)) or "storage class" in str(error)


class CheckedFile(io.RawIOBase):
    """A file whose reads are whole and, after `check`, known to be of the expected version.

    Its methods raise StorageError, Replaced, or an OSError that is about this file.
    """

    def __init__(
        self, folder: Folder, name: str, size: int | None = None, modified: datetime | None = None
    ) -> None:
        """Open a file; `size` and, in an object store, the time `modified` are those of the right version.

        A local file that was only touched is the same one, so its time counts from now on only.
        """
        super().__init__()
        self._folder, self._name = folder, name
        self._position, self._is_checked = 0, True
        with storage_errors(folder, name):
            self._file = _open(folder, name)
            self._size: int = self._file.seek(0, os.SEEK_END)
            self.modified = self._status()[1] if folder.is_local else modified
        """The time of the last change; None if it is not known."""
        if size is not None and size != self._size:
            raise Replaced(f"it has {self._size} bytes, and had {size} when it was listed")

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position; fewer bytes are read only at the end of the file."""
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        if view:
            self._fill(view)
        self._position += len(view)
        return len(view)

    def size(self) -> int:
        """The size in bytes."""
        return self._size

    def read_at(self, length: int, offset: int) -> bytes:
        """The bytes at an offset; fewer than `length` only at the end of the file."""
        self.seek(offset)
        return self.read(length) or b""

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def check(self) -> None:
        """Raise Replaced unless everything that was read is from the expected version of the file."""
        if self._is_checked:
            return
        with storage_errors(self._folder, self._name):
            size, modified = self._status()
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "removed since it was listed", self._name)
        if size != self._size or not self.is_from(modified):
            raise Replaced("it was replaced since it was listed")
        self._is_checked = True

    def is_from(self, modified: datetime | None) -> bool:
        """Whether a time, if it is known, is that of the last change."""
        if modified is None or self.modified is None:
            return True
        # A store reports the time of a single object without fractions of a second.
        whole = 0 in (modified.microsecond, self.modified.microsecond)
        first, second = (t.replace(microsecond=0) if whole else t for t in (modified, self.modified))
        return first == second

    def _status(self) -> tuple[int | None, datetime | None]:
        if not self._folder.is_local:
            return self._folder.status(self._name)
        status = os.fstat(self._file.fileno())
        return status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)

    def _fill(self, view: memoryview) -> None:
        self._is_checked = False
        for mark, pause in enumerate(_PAUSES, start=0x5A):
            time.sleep(pause)
            try:
                with storage_errors(self._folder, self._name):
                    self._file.seek(self._position)
                    if private.fills(self._file, view, mark):
                        return
            except (StorageError, OSError):
                with suppress(StorageError):  # The first error says more.
                    self.check()
                raise
            self.check()
        place = self._folder.join(self._name)
        raise StorageError(f"cannot read {place} now: the storage sends only a part of it; run it again")


def _open(folder: Folder, name: str) -> Any:
    path = folder.join(name)
    if not folder.is_local:
        return folder.filesystem.open_input_file(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotAFile("a folder, pipe or device")
    # If a pipe has taken the file's place meanwhile, this does not wait for its writer.
    return io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
