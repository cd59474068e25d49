"""Lines and columns of text that fit a width exactly, whatever is written in them.

All that comes from a store passes `Paint.text`: control characters are escaped, and what a terminal shows two cells
wide counts as two (FAILURES C22).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from rich.cells import cell_len, set_cell_size

from ..output import plain
from ..sparkline import BLOCKS, can_show, ramp_for, sparkline


class Piece(NamedTuple):
    """Text in one style, as rich names it; without control characters."""

    text: str
    style: str = ""


Line = list[Piece]

GAP = " "


class Column(NamedTuple):
    """A column of a table. Of those that do not fit, the one with the highest `spare` goes first; 0 stays.

    `width` 0: takes what the others leave, `least` cells at least.
    """

    head: str
    width: int = 0
    right: bool = False
    spare: int = 0
    least: int = 8


class Paint(msgspec.Struct, frozen=True):
    """How things are drawn on this terminal: with blocks and dots, or in ASCII only."""

    ramp: str = BLOCKS
    full: str = "█"
    empty: str = "░"
    cut: str = "…"
    rule: str = "─"
    ascii: bool = False

    def text(self, text: object, width: int) -> str:
        """Answer text that is safe to show and no wider than `width` cells, with a sign where it was cut."""
        shown = plain(str(text)[: 4 * width + 16])
        if self.ascii:
            shown = shown.encode("ascii", "backslashreplace").decode()
        if cell_len(shown) <= width:
            return shown
        if width <= 0:
            return ""
        return set_cell_size(shown, width - 1).rstrip() + self.cut

    def fit(self, text: object, width: int, *, right: bool = False) -> str:
        """Answer text that is exactly `width` cells wide."""
        shown = self.text(text, width)
        pad = " " * (width - cell_len(shown))
        return pad + shown if right else shown + pad

    def spark(self, values: Sequence[float | None]) -> str:
        """Draw numbers as a row of bars."""
        return sparkline(values, self.ramp)

    def bar(self, part: int, whole: int, width: int) -> str:
        """Draw how much of a whole is used."""
        filled = min(width, round(part / whole * width)) if whole > 0 else 0
        if part > 0:
            filled = max(1, filled)
        return self.full * filled + self.empty * (width - filled)


def paint_for(encoding: str | None) -> Paint:
    """Answer how to draw on a stream of this encoding."""
    if can_show("█░…─" + BLOCKS, encoding):
        return Paint()
    return Paint(ramp_for("ascii"), "#", "-", "~", "-", ascii=True)


def table(
    paint: Paint, columns: Sequence[Column], rows: Sequence[Sequence[str | Piece]], width: int, *, indent: str = ""
) -> list[Line]:
    """Draw a head and rows; what does not fit is left out, column by column."""
    kept = _kept(columns, width - len(indent))
    wide = [columns[at].width for at in kept]
    rest = width - len(indent) - sum(wide) - len(GAP) * (len(kept) - 1)
    wide = [size or max(1, rest) for size in wide]
    head = GAP.join(
        paint.fit(columns[at].head, size, right=columns[at].right) for at, size in zip(kept, wide, strict=True)
    )
    lines: list[Line] = [[Piece(indent + head, "bold")]]
    for row in rows:
        line: Line = [Piece(indent)] if indent else []
        for position, (at, size) in enumerate(zip(kept, wide, strict=True)):
            cell = row[at]
            text, style = cell if isinstance(cell, Piece) else (cell, "")
            gap = GAP if position else ""
            line.append(Piece(gap + paint.fit(text, size, right=columns[at].right), style))
        lines.append(line)
    return lines


def _kept(columns: Sequence[Column], width: int) -> list[int]:
    kept = list(range(len(columns)))
    while len(kept) > 1:
        needed = sum(columns[at].width or columns[at].least for at in kept) + len(GAP) * (len(kept) - 1)
        spare = max(kept, key=lambda at: columns[at].spare)
        if needed <= width or not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def crop(paint: Paint, line: Line, width: int) -> Line:
    """Answer a line no wider than `width`."""
    found: Line = []
    left = width
    for piece in line:
        wide = cell_len(piece.text)
        if wide > left:
            found.append(Piece(paint.text(piece.text, left), piece.style))
            break
        found.append(piece)
        left -= wide
    return found


def beside(paint: Paint, left: Line, right: str, width: int, style: str = "dim") -> Line:
    """Put text at the right end of a line, or leave it out where there is no room."""
    room = width - sum(cell_len(piece.text) for piece in left) - cell_len(right)
    if room < len(GAP):
        return crop(paint, left, width)
    return [*left, Piece(" " * room), Piece(right, style)]
