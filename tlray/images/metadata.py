"""Labels from a `metadata.csv`, `.jsonl` or `.parquet` beside the images, as Hugging Face has them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa

from tlray.core.storage import Folder
from tlray.images.archives.base import HashIndex
from tlray.images.conventions import ColumnNames, is_file_name
from tlray.images.table import Table

_ROWS = 1 << 16
_SCHEMA = pa.schema([(name, pa.string()) for name in ("path", "split", "label")])


class Metadata:
    """The metadata files that a walk has met. Each applies to the images in its folder and the folders there.

    They take about 50 bytes of memory for each row.
    """

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        """The files by their folders."""

    def read(self, root: Folder, path: str, given: ColumnNames) -> Table | None:
        """Read a file; None if no column is named `file_name`. Raises what `Table.open` raises."""
        folder, name = posixpath.split(path)
        inside = root.child(folder) if folder else root
        column = given.path or next(filter(is_file_name, Table(inside, name).schema().names), None)
        if column is None:
            return None
        table = Table.open(inside, name, replace(given, path=column))
        self._files[folder] = _File(table)
        return table

    def meaning(self, path: str, split: str | None, label: str | None) -> tuple[str | None, str | None]:
        """The split and label of an image, given those that its folders name."""
        folder = self._folder(path)
        if folder is None:
            return split, label
        return self._files[folder].meaning(path[len(folder) :].lstrip("/"), split, label)

    def unused(self) -> Iterator[tuple[str, str | None, str | None]]:
        """The path, split and label of each row whose image was not met."""
        for folder, file in self._files.items():
            for name, split, label in file.unused():
                path = name if "://" in name else posixpath.join(folder, name)
                if self._folder(path) in (folder, None):
                    yield path, split, label

    def _folder(self, path: str) -> str | None:
        """The folder of the metadata that applies to an image."""
        while path and self._files:
            path = posixpath.dirname(path) if path != "/" else ""
            if path in self._files:
                return path
        return None


class _File:
    def __init__(self, table: Table) -> None:
        self._has_labels = "label" in table.columns
        rows, chunks = table.rows(), [_SCHEMA.empty_table()]
        while chunk := list(islice(rows, _ROWS)):
            columns = map(pa.array, zip(*chunk, strict=True), _SCHEMA.types)
            chunks.append(pa.table(list(columns), _SCHEMA))
        self._columns = [column.combine_chunks() for column in pa.concat_tables(chunks).columns]
        self._numbers = HashIndex()
        self._used = np.zeros(len(self._columns[0]), np.bool_)

    def meaning(self, name: str, split: str | None, label: str | None) -> tuple[str | None, str | None]:
        # A column of labels replaces the labels of all folders, as in Hugging Face's datasets.
        label = None if self._has_labels else label
        scan = ((path, row) for row, path in enumerate(self._columns[0].to_pylist()))
        for row in self._numbers.lookup(name, None, scan):
            path, own_split, own_label = (column[row].as_py() for column in self._columns)
            if path == name:
                self._used[row] = True
                return own_split or split, own_label or label
        return split, label

    def unused(self) -> Iterator[tuple[str, str | None, str | None]]:
        for row in np.flatnonzero(~self._used):
            path, split, label = (column[row].as_py() for column in self._columns)
            yield path, split, label
