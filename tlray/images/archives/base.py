"""What tar files and Parquet files with images have in common: names, and bytes at a place."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tlray.core.storage import Folder

_FIRST, _MOST = 1 << 18, 8 << 20
"""Bytes of a request to an object store: the least, and the most, when one follows the other."""


class Found(NamedTuple):
    """An image in an archive; nothing of it has been read."""

    name: str
    """In the archive."""
    offset: int
    """What finds it again quickly: where its header begins in a tar file, or its row in a Parquet file."""
    size: int | None = None
    """In bytes; None in a Parquet file, which does not say."""
    split: str | None = None
    """None: that of the archive; so is `label`."""
    label: str | None = None


class Damaged(Exception):  # noqa: N818 - it says what the archive is
    """An archive that is not what it should be; the message says why."""


class Archive(Protocol):
    """An open archive."""

    has_names: bool
    """Whether its images have names of their own; else they are numbered, and a change cannot be noticed."""

    def images(self) -> Iterator[Found | str]:
        """Its images in their order, and the names of what is passed over.

        Raises:
            Damaged: it cannot be read to its end, or has a name twice; images may have come before.
        """

    def read(self, name: str, offset: int | None) -> bytes:
        """The bytes of an image, surely of that one.

        Args:
            name: of the image.
            offset: where it was once; None where that is not known.

        Raises:
            FileNotFoundError: there is none of that name.
            BadImage: it is a link or the like, or too large.
            Damaged: the archive is.
        """


class File:
    """The bytes of a file, at any place. On object stores the following ones are read along."""

    def __init__(self, root: Folder, path: str) -> None:
        """Open it; never waits for a writer at the other end of a pipe."""
        self._file = open_file(root, path)
        self._least = 0 if root.is_local else _FIRST
        self._start, self._held, self._window = 0, b"", self._least
        self.size: int = self._file.size()

    def at(self, offset: int, length: int) -> bytes:
        """The bytes of one answer of the store, so never of two versions of the file; fewer at its end."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        end = self._start + len(self._held)
        if not self._start <= offset or offset + length > end:
            goes_on = self._start <= offset <= end + self._window
            self._window = min(2 * self._window, _MOST) if goes_on else self._least
            self._start = offset
            self._held = self._file.read_at(min(max(length, self._window), self.size - offset), offset)
        start = offset - self._start
        return self._held[start : start + length]


def open_file(root: Folder, path: str) -> pa.NativeFile:
    place = root.join(path)
    if root.is_local and not stat.S_ISREG(os.stat(place).st_mode):
        raise Damaged("it is no file")
    return root.filesystem.open_input_file(place)


class Duplicates:
    """Finds names that come twice, in 8 bytes each."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, name: str) -> None:
        self._hashes.append(hash(name))

    def twice(self, again: Iterator[str]) -> str | None:
        """One that was added twice, or None; `again` gives all names once more, and is mostly not used."""
        hashes = np.frombuffer(self._hashes, np.int64)
        hashes.sort()  # In place: a table of how often each comes would take ten times the memory.
        suspects, seen = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()), set[str]()
        for name in again if suspects else ():
            if name in seen:
                return name
            if hash(name) in suspects:
                seen.add(name)
        return None


class HashIndex:
    """Where names are, in 16 bytes each."""

    def __init__(self, found: Iterable[tuple[str, int]]) -> None:
        both = array("q", chain.from_iterable((hash(name), place) for name, place in found))
        hashes, places = np.frombuffer(both, np.int64).reshape(-1, 2).T
        order = np.argsort(hashes)
        self._hashes, self._places = hashes[order], places[order]

    def of(self, name: str) -> list[int]:
        """Where it may be: other names can have the same hash."""
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        first, end = (np.searchsorted(self._hashes, hash(name), side) for side in sides)
        found: list[int] = self._places[first:end].tolist()
        return found
