"""Reads tables of image paths: one that the user gives, or a `metadata.csv` or the like beside the images."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from tlray.core.errors import UserError
from tlray.core.storage import Folder
from tlray.images.archives.base import Duplicates
from tlray.images.conventions import COLUMNS, SPLITS, ColumnNames, is_file_name, split_named
from tlray.images.reader import any_exists

_CHECKED = 100
"""Rows whose images are looked for before the work: if none of them exists, the paths mean something else."""
_Meaning = tuple[str | None, str | None]
"""A split and a label."""


@dataclass
class Table:
    """A table of images (Parquet, CSV, TSV or JSON lines), whose paths are relative to its folder."""

    root: Folder
    """The folder that the table lies in."""
    name: str
    """The name of its file."""
    only_below: bool = False
    """Whether its images must lie below this folder."""
    columns: dict[str, list[str]] = field(default_factory=dict, init=False)
    """The columns that may contain "path", "label" and "split"; the first of each is read."""
    warnings: list[str] = field(default_factory=list, init=False)

    @property
    def place(self) -> str:
        return self.root.join(self.name)

    @classmethod
    def open(cls, root: Folder, name: str, given: ColumnNames, *, only_below: bool = False) -> Table:
        """Open a table and check all of its rows.

        Raises:
            UserError: the table cannot be read, has no rows or no column of paths; a row has no path, the
                path of another row or an unknown split; or none of the first hundred images exists.
        """
        table = cls(root, name, only_below)
        schema = table.schema()
        table.columns = given.find(schema, f"the table {table.place!r}")
        if "path" not in table.columns:
            raise UserError(
                f"the table {table.place!r} needs a column 'path'; its columns are {schema.names}: add "
                "--path-column NAME for the one with the paths, or a first line with the names of the columns"
            )
        rest = [name for name in schema.names if [name] not in table.columns.values()]
        if "label" not in table.columns and given.label is None and rest:
            table.warnings.append(
                f"no column of {name} is named label, class or the like: if one of {', '.join(rest[:5])} "
                f"is the label, add --label-column {rest[0]}"
            )
        paths = [path for path, *_ in islice(table.rows(), _CHECKED)]
        if paths and not any_exists(root, paths):
            raise UserError(
                f"none of the first {len(paths)} paths of the table {table.place!r} exists, "
                f"e.g. {paths[0]!r}:\nexpected full names with slashes, absolute or relative to its folder"
            )
        table._check_duplicates()
        return table

    def schema(self) -> pa.Schema:
        with self._readable():
            return self._dataset().schema

    def rows(self) -> Iterator[tuple[str, str | None, str | None]]:
        """The path, split and label of each row; a UserError for a row that cannot be used."""
        for number, (path, label, split) in enumerate(self._cells(), start=1):
            where = f"row {number} of the table {self.place!r}"
            if not path or path.isspace():
                raise UserError(f"{where} has no path: fill it in, or remove the row")
            if "\0" in path or "\0" in (label or ""):  # Arrow pads a short answer of a store with them.
                raise UserError(f"{where} has null characters: run it again, or write the table anew")
            if self.only_below and ("://" in path or path.startswith("/") or ".." in path.split("/")):
                raise UserError(f"{where} names a file outside its folder: {path!r}")
            known = split_named(split) if split else None
            if split and not split.isspace() and known is None:
                raise UserError(
                    f"{where} has the split {split!r} in its column {self.columns['split'][0]!r}: "
                    f"expected {', '.join(SPLITS)}, or nothing; `--split-column none` ignores the column"
                )
            yield _normal(path), known, label if label and not label.isspace() else None

    def _check_duplicates(self) -> None:
        paths = Duplicates()
        for path, *_ in self.rows():
            paths.add(path)
        if not len(paths):
            raise UserError(f"the table {self.place!r} has no rows: expected one per image")
        if (duplicate := paths.find(path for path, *_ in self.rows())) is not None:
            raise UserError(f"the table {self.place!r} has the path {duplicate!r} twice: remove one")

    def _cells(self) -> Iterator[tuple[str | None, ...]]:
        """The path, label and split of each row as text; None for a missing column."""
        from pyarrow import dataset

        names = [self.columns.get(content, [""])[0] for content in ("path", "label", "split")]
        with self._readable():
            table = self._dataset(*filter(None, names))
            cells = [
                (dataset.field(name) if name else dataset.scalar(None)).cast(pa.string()) for name in names
            ]
            for batch in table.to_batches(columns=dict(zip(COLUMNS, cells, strict=True))):
                columns = [column.to_pylist() for column in batch.columns]
                for number, name in enumerate(names):
                    if name != name.lstrip():  # The separators are commas with a space.
                        columns[number] = [cell and cell.lstrip() for cell in columns[number]]
                yield from zip(*columns, strict=True)

    def _dataset(self, *texts: str) -> Any:
        """The rows of the table; these columns of a CSV are read as text."""
        from pyarrow import csv, dataset  # The imports are slow, and folders do not need them.

        layout: Any = posixpath.splitext(self.name)[1].lower()[1:].replace("jsonl", "json")
        if layout in ("csv", "tsv"):
            with self.root.filesystem.open_input_stream(self.place, compression=None) as stream:
                header = stream.read(1 << 16).partition(b"\n")[0].decode()
            if "\0" in header:
                raise UnicodeError
            parsing = csv.ParseOptions(delimiter=max(",;\t|", key=header.count), newlines_in_values=True)
            # Without types, Arrow would read the label 007 as the number 7.
            typed = csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
            layout = dataset.CsvFileFormat(parsing, convert_options=typed)
        return dataset.dataset(self.place, filesystem=self.root.filesystem, format=layout)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the errors of Arrow and of the storage into a UserError."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0].rpartition("': ")[2]
            if isinstance(error, UnicodeError) or "UTF8" in reason:
                reason = "its text is not UTF-8; save it as UTF-8"
            raise UserError(f"cannot read the table {self.place!r}: {reason}") from error


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
            path: same.setdefault((split, label), (split, label)) for path, split, label in table.rows()
        }
        return table

    def meaning(self, path: str, split: str | None, label: str | None, *, met: bool = True) -> _Meaning:
        """The split and label of an image, given those of its folders; `met` is false if it is not listed."""
        folder = self._folder(path)
        if folder is None:
            return split, label
        row = self._rows[folder].pop if met else self._rows[folder].get
        own = row(path[len(folder) :].lstrip("/"), (None, None))
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


def _normal(path: str) -> str:
    """The same text for all spellings of a path. A URI stays, and `..` too, which may follow a link."""
    if "://" in path:
        return path
    parts = "/".join(part for part in path.split("/") if part not in ("", "."))
    return f"/{parts}" if path.startswith("/") else parts
