"""A table of paths (Parquet or CSV) -> rows, as they stand in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
from pyarrow import csv, fs

from tlray.core.errors import UserError
from tlray.images.archives.base import Duplicates
from tlray.images.filetypes import SPLITS


class Row(NamedTuple):
    """What a table says of an image."""

    path: str
    split: str | None
    label: str | None


def check(filesystem: fs.FileSystem, table: str) -> None:
    """Raise UserError for a table that has no rows, or a bad one: now rather than after hours."""
    seen = Duplicates()
    for row in rows(filesystem, table):
        seen.add(row.path)
    if not len(seen):
        raise UserError(f"the table {table!r} has no rows: expected one per image")
    if (path := seen.twice(row.path for row in rows(filesystem, table))) is not None:
        raise UserError(f"the table {table!r} has the path {path!r} twice: remove one")


def rows(filesystem: fs.FileSystem, table: str) -> Iterator[Row]:
    """The rows in their order.

    Raises:
        UserError: the table cannot be read, or a row has no path or an unknown split.
    """
    for number, (path, label, split) in enumerate(_cells(filesystem, table), start=1):
        if not path or (split and split.lower() not in SPLITS):
            fault = f"the split {split!r}: expected {', '.join(SPLITS)}, or nothing"
            fault = fault if path else "no path: fill it in, or remove the row"
            raise UserError(f"row {number} of the table {table!r} has {fault}")
        yield Row(path, SPLITS[split.lower()] if split else None, label or None)


def _cells(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str | None, ...]]:
    """The path, label and split of every row of a table as text; None for all of a missing column."""
    from pyarrow import dataset  # Slow to import, and folders do without.

    wanted = ("path", "label", "split")
    layout = "parquet"
    if path.lower().endswith(".csv"):
        # Typed, because inference would make 7 of the label 007.
        typed = csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()))
        layout = dataset.CsvFileFormat(csv.ParseOptions(newlines_in_values=True), convert_options=typed)
    try:
        table = dataset.dataset(path, filesystem=filesystem, format=layout)
        names = table.schema.names
        if "path" not in names:
            raise UserError(f"the table {path!r} needs a column 'path'; its columns are {names}")
        cells = {name: dataset.field(name) if name in names else dataset.scalar(None) for name in wanted}
        for batch in table.to_batches(columns={name: cells[name].cast(pa.string()) for name in wanted}):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rpartition("': ")[2]
        raise UserError(f"cannot read the table {path!r}: {reason}") from error
