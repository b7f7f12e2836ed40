"""How images have changed since they were listed: which are new, replaced or removed."""

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

COLUMNS = ("path", "split", "label", "size", "modified")
"""The columns of an index that are compared."""
_CHUNK = 1024
_EXAMPLES = 3
_MIX = 0x5851F42D4C957F2D
"""An odd number so large that sizes multiplied by it differ by more than times do."""


@dataclass(frozen=True, kw_only=True)
class Changes(Record):
    """How the images differ from those that were listed before."""

    added: int
    replaced: int = 0
    """Images whose file has another size or time of change, or that have another split or label."""
    removed: int = 0
    replaced_paths: list[str] = field(default_factory=list)
    """The first three replaced images."""


class IndexDiff:
    """Compares images with an index, in 17 bytes of memory for each image of the index (40 while sorting).

    A path is identified by its 64-bit hash. If a million new images are compared with 100 million, the
    probability that one of them is not recognised as new is 1 in 180,000.
    """

    def __init__(self, tables: Iterable[pa.Table], *, by_time: bool = True) -> None:
        """`tables` are the rows of the index, at least one, with `COLUMNS`; `by_time` compares times too."""
        self._by_time = by_time
        hashes, states = array("q"), array("q")  # They grow without being copied.
        for table in tables:
            hashes.extend(map(hash, table["path"].to_pylist()))
            classes = zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True)
            states.frombytes(self._state(classes, table["size"], table["modified"]).tobytes())
        order = np.argsort(np.frombuffer(hashes, np.int64))
        self._hashes, self._states = (np.frombuffer(column, np.int64)[order] for column in (hashes, states))
        self._present = np.zeros(len(order), np.bool_)
        self._added = self._replaced = 0
        self._examples: list[str] = []

    def new(self, images: Iterable[Listed]) -> Iterator[Listed]:
        """Yield the images that the index does not contain, and count all changes."""
        rest = iter(images)
        while chunk := list(islice(rest, _CHUNK)):
            hashes = np.fromiter((hash(image.path) for image in chunk), np.int64, len(chunk))
            rows = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            known = self._hashes[rows] == hashes
            self._present[rows[known]] = True
            sizes = pa.array([image.size for image in chunk], pa.int64())
            times = pa.array([image.modified for image in chunk], pa.timestamp("us", "UTC"))
            classes = ((image.split, image.label) for image in chunk)
            replaced = np.flatnonzero(known & (self._states[rows] != self._state(classes, sizes, times)))
            self._replaced += len(replaced)
            self._examples += [chunk[number].path for number in replaced[: _EXAMPLES - len(self._examples)]]
            for number in np.flatnonzero(~known):
                self._added += 1
                yield chunk[number]

    def _state(self, classes: Iterable[Any], sizes: Any, times: Any) -> npt.NDArray[np.int64]:
        """One number for split, label, size and, with `by_time`, the time of each image; -1 is unknown."""
        size, time = (column.cast(pa.int64()).fill_null(-1).to_numpy() for column in (sizes, times))
        state: npt.NDArray[np.int64] = size * _MIX + time if self._by_time else size
        return state + np.fromiter(map(hash, classes), np.int64, len(state))

    def changes(self) -> Changes:
        """All changes, once `new` has come to its end."""
        removed = len(self._present) - int(self._present.sum())
        return Changes(
            added=self._added, replaced=self._replaced, removed=removed, replaced_paths=self._examples
        )
