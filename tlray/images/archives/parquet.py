"""Images in a Parquet file with a column of image files, as Hugging Face, img2dataset and others write it."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core import parquet
from tlray.core.checked_file import CheckedFile
from tlray.core.schema import fits
from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import ArchivedImage, Damaged, Duplicates, HashIndex, open_file
from tlray.images.bad_image import MAX_BYTES, BadImage
from tlray.images.conventions import SPLITS, ColumnNames, split_named

_IMAGE, _KEYS = ("image", "img"), ("__key__", "key")
_IMAGES = re.compile(r"(image|img|photo|picture)s?([-_ ]?(bytes|data|content))?", re.IGNORECASE)
"""The usual names of the column of images."""
_BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_IMAGE_ROWS = 16
"""Rows in memory at a time when images are read."""
_TEXT_ROWS = 1 << 16
"""Rows in memory at a time when images are listed."""
_BUFFER = 4 << 20
"""Bytes of a request to an object store."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a Parquet file with images, by what they contain."""

    image: str
    bytes: str
    """The path in the schema of the column with the bytes, which may be a field of `image`."""
    key: str | None
    label: str | None
    classes: list[str] | None
    """The class names, if the label is a number."""
    split: str | None
    matches: Mapping[str, list[str]]
    """The columns that may be meant by "label" and "split"; the first of each is read."""

    @classmethod
    def of(cls, schema: pa.Schema, given: ColumnNames, where: str) -> Columns | None:
        """Find the columns in the schema of the file `where`; None if no column contains images."""
        features = _features(schema)
        kinds = {name: feature.get("_type") for name, feature in features.items()}
        images = {
            field.name: path
            for field in schema
            if kinds.get(field.name) == "Image"
            or _IMAGES.fullmatch(field.name)
            or filetypes.is_image(f".{field.name}")
            if (path := _path_of_bytes(field)) is not None
        }
        if not images:
            # A text may be the path of an image, in a table of paths.
            for field in schema:
                if field.name in _IMAGE and field.type not in _TEXT:
                    fault = f"{field.name}: {field.type}"[:200]
                    raise Damaged(f"its images are not bytes of image files: {fault}; expected binary")
            return None
        image = next(name for name in (*_IMAGE, *images) if name in images)
        if image not in _IMAGE and len(images) > 1:
            raise Damaged(f"it has several columns of images ({', '.join(images)}): name one of them 'image'")
        matches = {name: columns for name, columns in given.find(schema, where).items() if name != "path"}
        class_labels = [name for name, kind in kinds.items() if kind == "ClassLabel" and name in schema.names]
        if given.label is None and class_labels:
            matches["label"] = list(dict.fromkeys([*matches.get("label", ()), *class_labels]))
        label, split = (matches.get(content, [None])[0] for content in ("label", "split"))
        used = [image, *_KEYS, label, split]
        if duplicates := [name for name in used if schema.names.count(name) > 1]:
            raise Damaged(f"it has the column {duplicates[0]!r} twice")
        numbered = label is not None and pa.types.is_integer(schema.field(label).type)
        classes = features.get(label or "", {}).get("names") if numbered else None
        if not fits(classes, list[str] | None):
            raise Damaged(f"its class names are {str(classes)[:200]}; expected a list of texts")
        return cls(
            image=image,
            bytes=images[image],
            key=next((name for name in _KEYS if name in schema.names), None),
            label=label,
            classes=classes,
            split=split,
            matches=matches,
        )


class Parquet:
    """An open Parquet file with images."""

    def __init__(self, stream: CheckedFile, file: pq.ParquetFile, columns: Columns) -> None:
        self.file, self._file, self._columns = stream, file, columns
        self.warnings: Mapping[str, str] = {}
        self.has_names, self.has_labels = columns.key is not None, columns.label is not None
        self.columns = columns.matches
        groups = range(file.num_row_groups)
        self._ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
        """For each row group, the first row after it."""
        self._count = self._ends[-1] if self._ends else 0
        if sorted(self._ends) != self._ends or not 0 <= self._count <= stream.size():
            raise Damaged(f"it claims to have {self._count} rows, which is impossible")
        self._reader: Iterator[tuple[str, bytes | None]] = iter(())
        self._group = self._next = -1
        """The row group that `_reader` reads, and the row that it yields next."""
        self._numbers = HashIndex()

    @classmethod
    def open(cls, root: Folder, path: str, given: ColumnNames) -> Parquet | None:
        """Open a Parquet file; None if it has no images. The user names some of its columns."""
        stream = open_file(root, path)
        try:
            # With a buffer, pyarrow reads a column page by page, however long a row group is.
            file = parquet.open_file(stream, buffer_size=_BUFFER, pre_buffer=False)
            columns = Columns.of(file.schema_arrow, given, root.join(path))
        except pa.ArrowException as error:
            stream.check()
            raise Damaged(_reason(error)) from error
        return None if columns is None else cls(stream, file, columns)

    def images(self) -> Iterator[ArchivedImage | str]:
        columns, keys, row = self._columns, Duplicates(), 0
        for key, label, split in self._texts(columns.key, columns.label, columns.split):
            if columns.key is not None:
                if not key:
                    raise Damaged(f"its row {row} has no {columns.key!r}")
                keys.add(key)
            split_name = split_named(split) if split else None
            if split and split_name is None:
                raise Damaged(f"its row {row} has the split {split!r}: expected {', '.join(SPLITS)}")
            yield ArchivedImage(key or str(row), row, None, split_name, self._label(label, row))
            row += 1
        if row != self._count:
            raise Damaged(f"it has {row} rows, but claims to have {self._count}")
        if columns.key is not None:
            duplicate = keys.find(key or "" for key, *_ in self._texts(columns.key))
            if duplicate is not None:
                raise Damaged(f"it has the {columns.key} {duplicate!r} twice")

    def read(self, name: str, offset: int | None) -> bytes:
        if self.has_names:
            # The name decides, because the file may have been written anew since it was listed.
            scan = ((key or "", number) for number, (key,) in enumerate(self._texts(self._columns.key)))
            numbers = self._numbers.lookup(name, offset, scan)
        else:
            numbers = iter([int(name)] if name.isdecimal() and len(name) < 19 else [])
        rows = (row for row in map(self._row, numbers) if row and (row[0] == name or not self.has_names))
        row = next(rows, None)
        if row is None:
            raise FileNotFoundError(name)
        if row[1] is None:
            raise BadImage("read", "NoBytes", "the row has no bytes of an image")
        if len(row[1]) > MAX_BYTES:
            raise BadImage("read", "FileTooLarge", f"{len(row[1])} bytes, above {MAX_BYTES}")
        return row[1]

    def _row(self, row: int) -> tuple[str, bytes | None] | None:
        """The key and the bytes of a row; None if there is no such row."""
        if not 0 <= row < self._count:
            return None
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        if group != self._group or not start <= self._next <= row:
            self._reader, self._group, self._next = self._read_group(group), group, start
        try:
            while True:
                content = next(self._reader)
                self._next += 1
                if self._next > row:
                    return content
        except (pa.ArrowException, OSError, StopIteration) as error:
            # The later rows of the group cannot be read either; do not try again for each of them.
            self._reader, self._next = iter(()), row
            raise Damaged(_reason(error)) from error

    def _read_group(self, group: int) -> Iterator[tuple[str, bytes | None]]:
        """The key and the bytes of each row in a row group."""
        columns = self._columns
        key = columns.key
        for batch in self._batches(_IMAGE_ROWS, group, [columns.bytes, *([key] if key else ())]):
            image = batch.column(columns.image)
            if pa.types.is_struct(image.type):
                image = image.flatten()[0]
            keys = batch.column(key).cast(pa.string()).to_pylist() if key else [""] * len(batch)
            for name, value in zip(keys, image, strict=True):
                yield name, value.as_py()

    def _texts(self, *columns: str | None) -> Iterator[tuple[str | None, ...]]:
        """The values of columns as text, row by row; always None for a column that is None."""
        try:
            # Given several row groups at once, pyarrow would open them all at once.
            for group in range(self._file.num_row_groups):
                for batch in self._batches(_TEXT_ROWS, group, [name for name in columns if name is not None]):
                    none = [None] * len(batch)
                    texts = (name and batch.column(name).cast(pa.string()).to_pylist() for name in columns)
                    yield from zip(*(column or none for column in texts), strict=True)
        except pa.ArrowException as error:
            raise Damaged(_reason(error)) from error

    def _batches(self, rows: int, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)

    def _label(self, label: str | None, row: int) -> str | None:
        classes = self._columns.classes
        if self._columns.label is None:
            return None
        # Hugging Face writes -1 for an unknown label.
        if not label or label.isspace() or (label == "-1" and classes):
            return ""
        if classes is None:
            return label
        if not label.isdecimal() or int(label) >= len(classes):
            raise Damaged(
                f"its row {row} has the label {label}, but there are only {len(classes)} class names"
            )
        return classes[int(label)]


def _path_of_bytes(field: pa.Field) -> str | None:
    """The path in the schema of the bytes of files in a field, if it has any."""
    if field.type in _BINARY:
        return str(field.name)
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        if index >= 0 and field.type.field(index).type in _BINARY:
            return f"{field.name}.bytes"
    return None


def _features(schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """What Hugging Face's datasets library has recorded about each column."""
    try:
        values = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = values.get("info", {}).get("features", {})
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise Damaged("its metadata 'huggingface' cannot be read") from error


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300] or "its row group ends early, or cannot be read up to here"
