"""Columns, padded so that they stand one below the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(rows: Collection[Sequence[str]], right: Collection[int] = ()) -> str:
    """The rows as lines whose columns are aligned, two spaces apart.

    Args:
        rows: each with the same number of cells.
        right: numbers of the columns that are aligned on the right, counted from 0.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
