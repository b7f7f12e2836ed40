"""What tar and Parquet archives share: their images, reads at any offset, and indexes of names."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tlray.core.checked_file import CheckedFile, storage_errors
from tlray.core.errors import UserError
from tlray.core.storage import Folder

_SMALLEST_REQUEST, _LARGEST_REQUEST = 1 << 18, 8 << 20
"""Bytes of a single request to an object store, and the most bytes when requests follow each other."""


class ArchivedImage(NamedTuple):
    """An image in an archive; its bytes have not been read."""

    name: str
    """The name of the image in the archive."""
    offset: int
    """Where to find it quickly: the offset of its header in a tar file, or its row in a Parquet file."""
    size: int | None = None
    """Size in bytes; None in a Parquet file, which does not record it."""
    split: str | None = None
    """None if the image has the split of the archive."""
    label: str | None = None
    """None if the image has the label of the archive, and empty if it has none."""


class Damaged(Exception):  # noqa: N818 - The name describes the archive.
    """An archive that cannot be used; the message says why."""


def compressed(place: str) -> UserError:
    """The error for a compressed tar file."""
    return UserError(
        f"{place!r} is a compressed tar file, which can be read only from its beginning:\n"
        "unpack it to a .tar or to files (images are compressed already), or move it away"
    )


class Archive(Protocol):
    """An open archive. Its methods raise Damaged if it cannot be read, or has two images of one name."""

    file: CheckedFile
    has_names: bool
    """Whether its images have names; otherwise they are numbered, and a replaced image goes unnoticed."""
    warnings: Mapping[str, str]
    """What is doubtful, by kind, once its images are listed."""
    columns: Mapping[str, list[str]]
    """The columns that may contain "label" and "split"; the first of each is read."""

    @property
    def has_labels(self) -> bool:
        """Whether there are labels or folders in it, as far as its images are listed."""

    def images(self) -> Iterator[ArchivedImage | str]:
        """The images in their order, and the names of all other files."""

    def read(self, name: str, offset: int | None) -> bytes:
        """The bytes of an image, which may have another offset by now.

        Raises:
            FileNotFoundError: there is no image of that name.
            BadImage: the image is too large, or is not a regular file.
        """


class ReadAheadFile:
    """A file that can be read at any offset; in an object store, each request also reads ahead."""

    def __init__(self, root: Folder, path: str) -> None:
        self.file = open_file(root, path)
        self._smallest = 0 if root.is_local else _SMALLEST_REQUEST
        self._start, self._buffer, self._window = 0, b"", self._smallest
        self.size = self.file.size()

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes from one request, so never from two versions of the file; fewer at the end of the file."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        end = self._start + len(self._buffer)
        if not self._start <= offset or offset + length > end:
            sequential = self._start <= offset <= end + self._window
            self._window = min(2 * self._window, _LARGEST_REQUEST) if sequential else self._smallest
            self._start = offset
            self._buffer = self.file.read_at(min(max(length, self._window), self.size - offset), offset)
        start = offset - self._start
        return self._buffer[start : start + length]


def open_file(root: Folder, path: str) -> CheckedFile:
    """Open an archive, whose size and time of change must then stay as they are."""
    with storage_errors(root, path):
        return CheckedFile(root, path, modified=root.status(path)[1])


class Duplicates:
    """Finds a name that occurs twice, with 8 bytes of memory for each name."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, name: str) -> None:
        self._hashes.append(hash(name))

    def find(self, names: Iterator[str]) -> str | None:
        """A name that was added twice, or None. `names` yields all names again, if hashes are equal."""
        hashes = np.frombuffer(self._hashes, np.int64)
        hashes.sort()  # Sorting in place takes a tenth of the memory of counting each hash.
        suspects, checked = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()), set[str]()
        for name in names if suspects else ():
            if name in checked:
                return name
            if hash(name) in suspects:
                checked.add(name)
        return None


class HashIndex:
    """Finds the offset of a name, with 16 bytes of memory for each name (40 while sorting)."""

    def __init__(self) -> None:
        self._sorted: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def lookup(self, name: str, expected: int | None, scan: Iterable[tuple[str, int]]) -> Iterator[int]:
        """The possible offsets of a name, the expected one first: other names may have the same hash.

        `scan` yields all names with their offsets; it is used at most once, and only if it is needed.
        """
        if expected is not None:
            yield expected
        if self._sorted is None:
            pairs = array("q", chain.from_iterable((hash(name), offset) for name, offset in scan))
            hashes, offsets = np.frombuffer(pairs, np.int64).reshape(-1, 2).T
            order = np.argsort(hashes)
            self._sorted = hashes[order], offsets[order]
        hashes, offsets = self._sorted
        first, end = np.searchsorted(hashes, hash(name)), np.searchsorted(hashes, hash(name), "right")
        yield from offsets[first:end].tolist()
