"""Reads a table of image paths (Parquet or CSV), in the order of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import fs

from tlray.core.errors import UserError
from tlray.images.archives.base import Duplicates
from tlray.images.conventions import SPLITS, split_named


def check(filesystem: fs.FileSystem, table: str) -> None:
    """Raise UserError if a table has no rows, or a bad row that would end the job only hours later."""
    paths = Duplicates()
    for path, *_ in rows(filesystem, table):
        paths.add(path)
    if not len(paths):
        raise UserError(f"the table {table!r} has no rows: expected one per image")
    if (duplicate := paths.find(path for path, *_ in rows(filesystem, table))) is not None:
        raise UserError(f"the table {table!r} has the path {duplicate!r} twice: remove one")


def rows(filesystem: fs.FileSystem, table: str) -> Iterator[tuple[str, str | None, str | None]]:
    """The path, split and label of each row, or UserError for one without a path or with an unknown split."""
    for number, (path, label, split) in enumerate(_cells(filesystem, table), start=1):
        if not path:
            raise UserError(f"row {number} of the table {table!r} has no path: fill it in, or remove the row")
        name = split_named(split) if split else None
        if split and name is None:
            expected = f"expected {', '.join(SPLITS)}, or nothing"
            raise UserError(f"row {number} of the table {table!r} has the split {split!r}: {expected}")
        yield path, name, label or None


def _cells(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str | None, ...]]:
    """The path, label and split of each row as text; None for a missing column."""
    from pyarrow import csv, dataset  # The imports are slow, and folders do not need them.

    wanted = ("path", "label", "split")
    layout: dataset.FileFormat = dataset.ParquetFileFormat(
        default_fragment_scan_options=dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    if path.lower().endswith(".csv"):
        # Without types, Arrow would read the label 007 as the number 7.
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
