"""Images in a Parquet file with a column of image files, as Hugging Face, img2dataset and others write it."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import Damaged, Duplicates, Found, HashIndex, open_file
from tlray.images.bad_image import MAX_BYTES, BadImage

_IMAGE, _KEYS, _LABELS = ("image", "img"), ("__key__", "key"), ("label", "cls")
_ROWS = 16
"""Images in memory at a time."""
_LISTED = 1 << 16
"""Rows without their images."""
_BUFFER = 4 << 20
"""Bytes of a request to an object store."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file mean what."""

    image: str
    bytes: str
    """The path of that column, or of its field with the bytes, in the schema."""
    key: str | None
    label: str | None
    classes: list[str] | None
    """The names of the label's numbers."""
    split: str | None

    @classmethod
    def of(cls, schema: pa.Schema) -> Columns | None:
        """Find them; None if no column is of images.

        Raises:
            Damaged: the column of the images is of another type, or there are several.
        """
        features = _features(schema)
        kinds = {name: feature.get("_type") for name, feature in features.items()}
        images = {
            field.name: path
            for field in schema
            if kinds.get(field.name) == "Image"
            or field.name in _IMAGE
            or filetypes.is_image(f".{field.name}")
            if (path := _bytes_in(field)) is not None
        }
        if not images:
            # A text may be the name of a file: then it is a table, of paths or about them.
            wrong = [field for field in schema if field.name in _IMAGE and not _is_text(field.type)]
            if wrong:
                fault = f"{wrong[0].name}: {wrong[0].type}"[:200]
                raise Damaged(f"its column of images has no bytes of image files: {fault}; expected binary")
            return None
        image = next((name for name in _IMAGE if name in images), None)
        if image is None and len(images) > 1:
            raise Damaged(f"it has several columns of images ({', '.join(images)}): call one 'image'")
        image = image or next(iter(images))
        labels = [*_LABELS, *(name for name, kind in kinds.items() if kind == "ClassLabel")]
        used = [image, *_KEYS, *labels, "split"]
        if twice := [name for name in used if schema.names.count(name) > 1]:
            raise Damaged(f"it has the column {twice[0]!r} twice")
        label = next((name for name in labels if name in schema.names), None)
        numbered = label is not None and pa.types.is_integer(schema.field(label).type)
        classes = features.get(label or "", {}).get("names") if numbered else None
        if classes is not None and not (
            isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        ):
            raise Damaged(f"the names of its classes are {str(classes)[:200]}")
        return cls(
            image=image,
            bytes=images[image],
            key=next((name for name in _KEYS if name in schema.names), None),
            label=label,
            classes=classes,
            split="split" if "split" in schema.names else None,
        )


class Parquet:
    """An open Parquet file with images."""

    def __init__(self, file: pq.ParquetFile, size: int, columns: Columns) -> None:
        self._file, self._columns = file, columns
        self.has_names = columns.key is not None
        groups = range(file.num_row_groups)
        self._ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
        """The row after the last one of each row group."""
        self._rows = self._ends[-1] if self._ends else 0
        if sorted(self._ends) != self._ends or not 0 <= self._rows <= size:
            raise Damaged(f"it cannot hold the {self._rows} rows that it claims")
        self._ahead: Iterator[tuple[str, bytes | None]] = iter(())
        self._group = self._next = -1
        """The row group that it goes through, and the row that comes next."""
        self._places: HashIndex | None = None

    @classmethod
    def open(cls, root: Folder, path: str) -> Parquet | None:
        """Open it; None if it has no images.

        Raises:
            Damaged: as of `Columns.of`, or it is no Parquet file.
        """
        stream = open_file(root, path)
        try:
            # Buffered, a column is read page by page, however long a row group is.
            file = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
            columns = Columns.of(file.schema_arrow)
        except pa.ArrowException as error:
            raise Damaged(_reason(error)) from error
        return None if columns is None else cls(file, stream.size(), columns)

    def images(self) -> Iterator[Found | str]:
        columns, seen, row = self._columns, Duplicates(), 0
        wanted = [columns.key, columns.label, columns.split]
        for key, label, split in self._cells(*wanted):
            if columns.key is not None:
                if not key:
                    raise Damaged(f"its row {row} has no {columns.key!r}")
                seen.add(key)
            if split and split.lower() not in filetypes.SPLITS:
                raise Damaged(
                    f"its row {row} has the split {split!r}: expected {', '.join(filetypes.SPLITS)}"
                )
            known = filetypes.SPLITS[split.lower()] if split else None
            yield Found(key or str(row), row, None, known, self._label(label, row))
            row += 1
        if row != self._rows:
            raise Damaged(f"it has {row} rows and claims {self._rows}")
        if columns.key is not None:
            name = seen.twice(key or "" for key, *_ in self._cells(columns.key))
            if name is not None:
                raise Damaged(f"it has the {columns.key} {name!r} twice")

    def read(self, name: str, offset: int | None) -> bytes:
        if not self.has_names:
            offset = int(name) if name.isdecimal() and len(name) < 19 else None
        # As in a tar file the name decides.
        for row in chain(() if offset is None else (offset,), self._rows_of(name)):
            found = self._row(row)
            if found is not None and (found[0] == name or not self.has_names):
                return _checked(found[1])
        raise FileNotFoundError(name)

    def _rows_of(self, name: str) -> Iterator[int]:
        if self.has_names:
            if self._places is None:
                keys = self._cells(self._columns.key)
                self._places = HashIndex((key or "", row) for row, (key,) in enumerate(keys))
            yield from self._places.of(name)

    def _row(self, row: int) -> tuple[str, bytes | None] | None:
        """The key and the bytes of a row; None if there is no such row."""
        if not 0 <= row < self._rows:
            return None
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        if group != self._group or not start <= self._next <= row:
            self._ahead, self._group, self._next = self._images(group), group, start
        try:
            while True:
                found = next(self._ahead)
                self._next += 1
                if self._next > row:
                    return found
        except (pa.ArrowException, OSError, StopIteration) as error:
            # The rows behind it cannot be reached either: it is not tried again for each of them.
            self._ahead, self._next = iter(()), row
            raise Damaged(_reason(error)) from error

    def _images(self, group: int) -> Iterator[tuple[str, bytes | None]]:
        """Key and bytes of the rows of a row group."""
        columns = self._columns
        key = columns.key
        for batch in self._batches(_ROWS, group, [columns.bytes, *([key] if key else ())]):
            image = batch.column(columns.image)
            if pa.types.is_struct(image.type):
                image = image.flatten()[0]
            keys = batch.column(key).cast(pa.string()).to_pylist() if key else [""] * len(batch)
            for name, value in zip(keys, image, strict=True):
                yield name, value.as_py()

    def _cells(self, *columns: str | None) -> Iterator[tuple[str | None, ...]]:
        """The values of columns as text; None for a column that is not there."""
        wanted = [column for column in columns if column is not None]
        if not wanted:
            yield from repeat((None,) * len(columns), self._rows)
            return
        try:
            # Group by group: given several, pyarrow opens them all at once.
            for group in range(self._file.num_row_groups):
                for batch in self._batches(_LISTED, group, wanted):
                    cells = {name: batch.column(name).cast(pa.string()).to_pylist() for name in wanted}
                    none = [None] * len(batch)
                    yield from zip(*(cells.get(name or "", none) for name in columns), strict=True)
        except pa.ArrowException as error:
            raise Damaged(_reason(error)) from error

    def _batches(self, rows: int, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)

    def _label(self, label: str | None, row: int) -> str | None:
        classes = self._columns.classes
        if not label or classes is None:
            return label or None
        if label == "-1":  # How Hugging Face writes that it is not known.
            return None
        if not label.isdecimal() or int(label) >= len(classes):
            raise Damaged(f"its row {row} has the label {label}: it names {len(classes)} classes")
        return classes[int(label)]


def _checked(data: bytes | None) -> bytes:
    if data is None:
        raise BadImage("read", "NoBytes", "the row has no bytes of an image")
    if len(data) > MAX_BYTES:
        raise BadImage("read", "FileTooLarge", f"{len(data)} bytes, above {MAX_BYTES}")
    return data


def _bytes_in(field: pa.Field) -> str | None:
    """The path of the column with the bytes of files, if there is one in this field."""
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type):
        place = field.type.get_field_index("bytes")
        if place >= 0 and _is_binary(field.type.field(place).type):
            return f"{field.name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _features(schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """What Hugging Face's datasets say of the columns."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise Damaged("its metadata 'huggingface' cannot be read") from error


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300] or "its row group ends early, or cannot be read up to here"
