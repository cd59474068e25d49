"""What the commands print: tables and fields for people, one JSON document for programs.

Everything that comes from a store passes `plain`, so that no name or error can move the cursor, hide text or forge a
line (FAILURES C22). JSON is pure ASCII for the same reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..wording import age, quantity

if TYPE_CHECKING:
    from ..admin import Progress

__all__ = [
    "Instant",
    "age",
    "counting",
    "emit_fields",
    "emit_json",
    "emit_table",
    "note",
    "plain",
    "say",
    "shorten",
    "warn",
]

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: object) -> str:
    """Answer text with every control, format, private or unassigned character written as an escape."""
    value = str(text)
    return value if value.isprintable() else "".join(map(_escape, value))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return _SHORT.get(char) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def warn(message: str) -> None:
    """Say something on stderr, in one line, and go on."""
    click.echo(f"packhorse: warning: {plain(message)}", err=True)


def note(message: str) -> None:
    """Tell a person something that is no part of the answer; on stderr, so that it stays out of pipes."""
    click.echo(plain(message), err=True)


def say(message: str) -> None:
    """Print one line of the answer."""
    click.echo(plain(message))


def emit_json(value: Any) -> None:
    """Print one JSON document."""
    import json

    # DEL is the one control character that ASCII JSON may hold as it is.
    click.echo(json.dumps(value, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


class Instant(NamedTuple):
    """A cell of a table: an instant, RFC 3339 in UTC; on a terminal too narrow for that, its distance from now."""

    at_ms: int | None

    def __str__(self) -> str:
        from ..shapes import instant_json

        return instant_json(self.at_ms) or ""

    def short(self, now_ms: int) -> str:
        """Answer its distance from now: `5m ago`, `in 5m`."""
        if self.at_ms is None:
            return ""
        left_ms = self.at_ms - now_ms
        return f"in {age(left_ms)}" if left_ms > 0 else f"{age(-left_ms)} ago"


def emit_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = (), below: str | None = None
) -> None:
    """Print a table: with colours on a terminal, as plain aligned lines elsewhere. Columns in `right` are numbers.

    No cell is ever cut or broken, so that ids can be copied. Where a terminal is too narrow, instants become short and
    the text of the column `below` goes on a line of its own below its row.
    """
    given, numbers = [list(row) for row in rows], set(right)
    if sys.stdout.isatty():
        _emit_on_terminal(list(headers), given, numbers, below)
        return
    cells = [list(map(_cell, row)) for row in given]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [[header.upper() for header in headers], *cells]:
        line = "  ".join(
            cell.rjust(width) if header in numbers else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        )
        click.echo(line.rstrip())


def _cell(value: object) -> str:
    return plain("" if value is None else value)


def _emit_on_terminal(headers: list[str], rows: list[list[object]], numbers: set[str], below: str | None) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    from ..clock import SYSTEM_CLOCK

    console = Console(highlight=False, soft_wrap=True)
    cells = [list(map(_cell, row)) for row in rows]

    def widths() -> list[int]:
        return [max(map(cell_len, column)) for column in zip(headers, *cells, strict=True)]

    def fits(gap: int) -> bool:
        return sum(widths()) + gap * (len(headers) - 1) <= console.width

    texts = [""] * len(cells)
    if not fits(1):
        now_ms = SYSTEM_CLOCK.now_ms()
        cells = [
            [value.short(now_ms) if isinstance(value, Instant) else cell for value, cell in zip(*pair, strict=True)]
            for pair in zip(rows, cells, strict=True)
        ]
    if not fits(1) and below in headers:
        at = headers.index(below)
        texts = [row.pop(at) for row in cells]
        headers = [*headers[:at], *headers[at + 1 :]]
    gap = " " * (2 if fits(2) else 1)  # `stats` fits into 80 columns

    def line(row: list[str], *, is_head: bool = False) -> Text:
        parts = Text()
        for header, cell, width in zip(headers, row, widths(), strict=True):
            pad = " " * (width - cell_len(cell))
            parts.append(gap if parts else "")
            # Text, not str: rich reads [brackets] in a str as markup.
            parts.append(pad + cell if header in numbers else cell + pad, "bold" if is_head else _STYLES.get(cell, ""))
        parts.rstrip()
        return parts

    console.print(line(headers, is_head=True))
    for row, text in zip(cells, texts, strict=True):
        console.print(line(row))
        if text:
            console.print(Text(f"  {text}"))


_STYLES = {
    "failed": "red",
    "running": "cyan",
    "succeeded": "green",
    "scheduled": "yellow",
    "paused": "yellow",
    "OK": "green",
    "UNAVAILABLE": "red",
}


def emit_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line; None is left out."""
    pairs = [(name, plain(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {value}".rstrip())


def shorten(text: str, chars_max: int) -> str:
    """Cut text at `chars_max` characters, with a sign that it was cut."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


@contextmanager
def counting(verb: str) -> Iterator[Progress | None]:
    """Show a running count on a terminal while a verb goes through many jobs; nothing elsewhere."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{verb} …") as status:
        yield lambda count: status.update(f"{verb}: {quantity(count, 'job')}")
