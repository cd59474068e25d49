"""Bounds of words, numbers and documents that come from outside. Each raises what says what is allowed instead."""

from __future__ import annotations

from collections.abc import Collection

from .. import codec
from ..errors import InvalidOption, shown
from ..job import KEY_CHARS_MAX, check_name

#: Text of people and programs, unless it is said.
TEXT_CHARS_MAX = 4_096
#: A text that was cut is marked as such: a few characters more than its bound.
_SLACK = 100
#: What most payloads and results are.
_PLAIN = frozenset({b"{}", b"null"})


def text(value: str, what: str, chars_max: int = KEY_CHARS_MAX) -> None:
    """Refuse an id, key or other word that is empty, too long, or not printable."""
    if not 1 <= len(value) <= chars_max or not value.isprintable():
        raise InvalidOption(f"{what}: {shown(value)} must be 1 to {chars_max} printable characters")


def named(job_id: str, token: str) -> None:
    """Refuse what no store can look up; an id or token that does not exist is STALE, as everywhere."""
    prose(job_id, "id", KEY_CHARS_MAX)
    prose(token, "token", KEY_CHARS_MAX)


def maybe_text(value: str | None, what: str, chars_max: int = KEY_CHARS_MAX) -> None:
    """Refuse a word that is there and that `text` refuses."""
    if value is not None:
        text(value, what, chars_max)


def prose(value: str | None, what: str, chars_max: int = TEXT_CHARS_MAX) -> None:
    """Refuse text of people or programs that is too long, or that some store cannot keep."""
    if value is not None and (len(value) > chars_max + _SLACK or "\0" in value):
        raise InvalidOption(f"{what}: must be up to {chars_max} characters without NUL, not {shown(value)}")


def number(value: float, what: str, low: int, high: int) -> None:
    """Refuse a number outside these bounds, both included."""
    if not low <= value <= high:
        raise InvalidOption(f"{what}: {shown(value)} must be from {low} to {high}")


def maybe_number(value: int | None, what: str, low: int, high: int) -> None:
    """Refuse a number that is there and outside these bounds."""
    if value is not None:
        number(value, what, low, high)


def count(items: Collection[object], what: str, most: int) -> None:
    """Refuse more items than `most`."""
    if len(items) > most:
        raise InvalidOption(f"{what}: {len(items):,} of them; at most {most:,}")


def names(names: Collection[str], what: str, most: int) -> None:
    """Refuse more names than `most`, and any that cannot name a `what`."""
    count(names, f"{what}s", most)
    for name in names:
        check_name(name, what)


def plain_json(data: bytes | None, bytes_max: int = codec.PAYLOAD_BYTES_MAX) -> None:
    """Refuse bytes that are not the strict JSON that our own clients write (FAILURES C13). None at all are nothing."""
    if data and data not in _PLAIN:
        codec.parse(data, bytes_max)
