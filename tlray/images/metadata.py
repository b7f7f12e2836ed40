"""Labels from a `metadata.csv`, `.jsonl` or `.parquet` beside the images, as Hugging Face has them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace

from tlray.core.storage import Folder
from tlray.images.conventions import ColumnNames, is_file_name
from tlray.images.table import Table

_Meaning = tuple[str | None, str | None]
"""A split and a label."""


class Metadata:
    """The metadata files that a walk has met. Each applies to the images in its folder and the folders there.

    A row takes about 200 bytes of memory until its image is met.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, _Meaning]] = {}
        """For each folder with a file, the names in its rows."""
        self._has_labels: dict[str, bool] = {}

    def read(self, root: Folder, path: str, given: ColumnNames) -> Table | None:
        """Read a file; None if no column is named `file_name`. Raises what `Table.open` raises."""
        folder, name = posixpath.split(path)
        inside = root.child(folder) if folder else root
        column = given.path or next(filter(is_file_name, Table(inside, name).schema().names), None)
        if column is None:
            return None
        table = Table.open(inside, name, replace(given, path=column), only_below=True)
        same: dict[_Meaning, _Meaning] = {}
        self._has_labels[folder] = "label" in table.columns
        self._rows[folder] = {
            name: same.setdefault((split, label), (split, label)) for name, split, label in table.rows()
        }
        return table

    def meaning(self, path: str, split: str | None, label: str | None) -> _Meaning:
        """The split and label of an image, given those that its folders name."""
        folder = self._folder(path)
        if folder is None:
            return split, label
        own = self._rows[folder].pop(path[len(folder) :].lstrip("/"), (None, None))
        # A column of labels replaces the labels of all folders, as in Hugging Face's datasets.
        return own[0] or split, own[1] if self._has_labels[folder] else label

    def unmet(self) -> Iterator[tuple[str, str | None, str | None]]:
        """The path, split and label of each row whose image was not met."""
        for folder, rows in self._rows.items():
            for name, meaning in rows.items():
                if self._folder(path := posixpath.join(folder, name)) == folder:
                    yield path, *meaning

    def _folder(self, path: str) -> str | None:
        """The folder of the metadata that applies to an image."""
        while path and self._rows:
            path = posixpath.dirname(path)
            if path in self._rows:
                return path
        return None
