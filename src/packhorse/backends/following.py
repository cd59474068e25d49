"""What the backends share that write changes down (decision 19): how long, and the cursor where a log counts them.

A log begins when somebody asks for changes and ends when nobody did for a while. A change is named by how many the log
had with it, so a cursor is the log and a count: what is to be told can be counted without being read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..chance import secret_hex
from .messages import CHANGES_KEPT_MS

#: Who asks writes down that somebody does at most this often, ms: all other calls only read.
RENEW_MS = 10_000

#: A cursor is read only up to so many characters.
CURSOR_CHARS_MAX = 16_384

_MARK = re.compile(r"([0-9a-f]{16})\.([0-9]{1,15})", re.ASCII)


class Mark(NamedTuple):
    """How far somebody has followed: a log, and how many of its changes."""

    log: str
    upto: int


def new_log() -> str:
    """Make a name for a log that no other one has, of this store or another."""
    return secret_hex(8)


def until_ms(now_ms: int) -> int:
    """Answer until when changes are written down for a call that is made now."""
    return now_ms + CHANGES_KEPT_MS + RENEW_MS


def is_to_renew(listens_until_ms: int, now_ms: int) -> bool:
    """Tell whether a call that is made now has to write down that somebody asks."""
    return listens_until_ms < now_ms + CHANGES_KEPT_MS


def write_mark(log: str, count: int) -> str:
    """Write a cursor."""
    return f"{log}.{count}"


def read_mark(cursor: str) -> Mark | None:
    """Read a cursor; None for any text that is none."""
    found = _MARK.fullmatch(cursor)
    return Mark(found[1], int(found[2])) if found is not None else None
