"""Numbers and columns as plain text: rows of cells to aligned lines. Knows no subject."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "
"""Between two columns."""


def align(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """Each row as a line, cells of a column below each other; no line ends in blanks.

    >>> align([["a", "1"], ["bcd", "23"]], "<>")
    ['a     1', 'bcd  23']

    Args:
        rows: cells; every row has as many as `alignment` has characters.
        alignment: "<" (left) or ">" (right) for each column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(alignment, widths, strict=True))
    return [
        GAP.join(
            f"{cell:{side}{width}}" for cell, (side, width) in zip(row, columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def size(num_bytes: int) -> str:
    """`num_bytes` in the decimal unit that suits it, to three digits, e.g. "652 MB"."""
    number = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB" if number < 999.5 else f"{number:,.0f} TB"
