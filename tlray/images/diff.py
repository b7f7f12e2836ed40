"""What has changed among the images since they were listed: which are new, replaced or gone."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.core.record import Record
from tlray.images.listing import Listed

COLUMNS = ("path", "size", "modified")
"""Of an index, which are compared."""
_CHUNK = 1024
_EXAMPLES = 3
_MIX = 0x5851F42D4C957F2D
"""Odd and large: sizes times it differ by more than times do."""


@dataclass(frozen=True, kw_only=True)
class Changes(Record):
    """How images differ from those that were listed before."""

    added: int
    replaced: int = 0
    """Images whose file has another size, or another time of change."""
    removed: int = 0
    replaced_paths: list[str] = field(default_factory=list)
    """The first three of the replaced ones."""


class IndexDiff:
    """The images of an index, in 17 bytes each (40 while they are sorted), to compare with those there now.

    A path is known by its 64-bit hash. Among 100 million images a million new ones are all told to be
    new but for a chance of 1 in 180,000.
    """

    def __init__(self, tables: Iterable[pa.Table], *, by_time: bool = True) -> None:
        """Take them in.

        Args:
            tables: the rows of the index, at least one, with `COLUMNS`.
            by_time: whether a file of another time has been replaced; else only one of another size.
        """
        self._by_time = by_time
        hashes, states = array("q"), array("q")  # They grow without being copied.
        for table in tables:
            hashes.extend(map(hash, table["path"].to_pylist()))
            states.frombytes(self._state(*table.columns[1:]).tobytes())
        order = np.argsort(np.frombuffer(hashes, np.int64))
        self._hashes, self._states = (np.frombuffer(column, np.int64)[order] for column in (hashes, states))
        self._seen = np.zeros(len(order), np.bool_)
        self._added = self._replaced = 0
        self._examples: list[str] = []

    def new(self, images: Iterable[Listed]) -> Iterator[Listed]:
        """Those of the images that are not known."""
        rest = iter(images)
        while chunk := list(islice(rest, _CHUNK)):
            hashes = np.fromiter((hash(image.path) for image in chunk), np.int64, len(chunk))
            places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            known = self._hashes[places] == hashes
            self._seen[places[known]] = True
            sizes = pa.array([image.size for image in chunk], pa.int64())
            times = pa.array([image.modified for image in chunk], pa.timestamp("us", "UTC"))
            replaced = np.flatnonzero(known & (self._states[places] != self._state(sizes, times)))
            self._replaced += len(replaced)
            self._examples += [chunk[place].path for place in replaced[: _EXAMPLES - len(self._examples)]]
            for place in np.flatnonzero(~known):
                self._added += 1
                yield chunk[place]

    def _state(self, sizes: Any, times: Any) -> npt.NDArray[np.int64]:
        """(rows,): bytes, and with `by_time` microseconds since 1970, in one number; -1 where not known."""
        size, time = (column.cast(pa.int64()).fill_null(-1).to_numpy() for column in (sizes, times))
        state: npt.NDArray[np.int64] = size * _MIX + time if self._by_time else size
        return state

    def changes(self) -> Changes:
        """What `new` has found, when it has come to its end."""
        removed = int(len(self._seen) - self._seen.sum())
        return Changes(
            added=self._added, replaced=self._replaced, removed=removed, replaced_paths=self._examples
        )
