"""Tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tlray.core.text import escaped


def table(rows: Collection[Sequence[str]], right: Collection[int] = ()) -> str:
    """Align the cells of each column, and put two spaces between the columns.

    Args:
        rows: rows with equal numbers of cells.
        right: the columns that are aligned on the right, counted from 0.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
