"""What the commands print: tables and fields for people, one JSON document for programs.

Everything that comes from a store passes `plain`, so that no name or error can move the cursor, hide text or forge a
line (FAILURES C22). JSON is pure ASCII for the same reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..wording import age

if TYPE_CHECKING:
    from ..admin import Progress

__all__ = [
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


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Print a table: by rich on a terminal, as aligned lines elsewhere. Columns named in `right` are numbers."""
    cells = [[plain("" if cell is None else cell) for cell in row] for row in rows]
    numbers = set(right)
    if sys.stdout.isatty():
        _emit_rich(headers, cells, numbers)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [[header.upper() for header in headers], *cells]:
        line = "  ".join(
            cell.rjust(width) if header in numbers else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        )
        click.echo(line.rstrip())


def _emit_rich(headers: Sequence[str], cells: list[list[str]], numbers: set[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header in numbers else "left", overflow="fold")
    for row in cells:
        # Text, not str: rich reads [brackets] in a str as markup.
        table.add_row(*[Text(cell, style=_STYLES.get(cell, "")) for cell in row])
    Console().print(table)


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
        yield lambda count: status.update(f"{verb}: {count:,} jobs")
