"""A step that is explained: its name, its formula and some of its values; and the same as text.

    4  positional embeddings       pos_emb [4, 768]                      title, tensor
       pos_emb(arange(4)): each position's row of a table [1024, 768]    formula
         token       [0]     [1]     [2]     [3]     [4]  length         header
         'Hello'   0.017   0.010  -0.024   0.018  -0.041   0.559         rows

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptrs.tables import align

WIDTH = 100
"""Columns of a line, at most."""


class Share(float):
    """A probability, shown as a percentage."""


Cell = str | int | float | None
"""None: there is nothing to see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One step of the way."""

    title: str
    """What happens, in the book's words, e.g. "attention weights"."""
    tensor: str = ""
    """The result: its name in the model, and its shape."""
    formula: str = ""
    """How it is computed."""
    header: Sequence[str] = ()
    """Names of the table's columns."""
    rows: Sequence[Sequence[Cell]] = ()
    """Some of the values; each row as long as the header."""
    note: str = ""
    """What the rows leave out, or show."""


def format_section(section: Section) -> str:
    """A section as text, its lines at most 100 columns wide; what follows the first is indented."""
    lines = [f"{section.title:<28}{section.tensor}".rstrip(), section.formula]
    if section.rows:
        cells = [[cell_text(cell) for cell in row] for row in (section.header, *section.rows)]
        sides = "".join(_side(column) for column in zip(*section.rows, strict=True))
        lines += ["  " + line for line in align(cells, sides)]
    lines.append(section.note)
    first, *others = (line for line in lines if line)
    return "\n".join([first, *("    " + line for line in others)])


def _side(column: Sequence[Cell]) -> str:
    return "<" if any(isinstance(cell, str) for cell in column) else ">"


def cell_text(cell: Cell) -> str:
    """A cell as it is shown."""
    if cell is None:
        return "."
    if isinstance(cell, Share):
        # Small ones keep three digits.
        return f"{cell:.2%}" if cell >= 0.001 else f"{100 * cell:.3g}%"
    if isinstance(cell, float):
        # Eight characters at most.
        return f"{cell:.3f}" if abs(cell) < 1_000 else f"{cell:.1e}"
    return str(cell)
