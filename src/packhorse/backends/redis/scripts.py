"""The scripts of the verbs: put together from `lua/`, named by their hash as the server names them."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from ...job import AGEING_MS
from ...limits import BURST_MS
from ..base import (
    ABSENT_KEPT_MS,
    BATCH_MAX,
    CHANGES_KEPT_MS,
    CHANGES_MAX,
    EACH_KEY,
    ERRORS_KEPT_MAX,
    SCHEDULES_A_TICK,
    TRANSFER_BYTES_MAX,
)
from .records import HEAD_BYTES, SCHEMA

#: What the scripts know from the rest of packhorse, so that no number is written down twice.
_CONSTANTS = {
    "SCHEMA": SCHEMA,
    "HEAD_BYTES": HEAD_BYTES,
    "ABSENT_KEPT_MS": ABSENT_KEPT_MS,
    "AGEING_MS": AGEING_MS,
    "BATCH_MAX": BATCH_MAX,
    "BURST_MS": BURST_MS,
    "CHANGES_KEPT_MS": CHANGES_KEPT_MS,
    "CHANGES_MAX": CHANGES_MAX,
    "ERRORS_KEPT_MAX": ERRORS_KEPT_MAX,
    "SCHEDULES_A_TICK": SCHEDULES_A_TICK,
    "TRANSFER_BYTES_MAX": TRANSFER_BYTES_MAX,
}

_MOVES = ("store", "told", "job", "place", "family")
_RUNS = (*_MOVES, "running")
#: The files that come before the verb's own.
_PARTS = {
    "enqueue": (*_MOVES, "adding"),
    "claim": (*_RUNS, "limit", "choice"),
    "settle": (*_RUNS, "adding"),
    "release": _RUNS,
    "heartbeat": _RUNS,
    "retire": _RUNS,
    "tick": (*_RUNS, "limit", "away", "sweep"),
    "fire": (*_MOVES, "adding"),
    "get": ("store", "job", "records"),
    "find": ("store", "job", "records"),
    "counts": ("store", "job"),
    "workflows": ("store", "job"),
    "workers": ("store",),
    "changes": ("store",),
    "cancel": _RUNS,
    "rerun": _MOVES,
    "delete": _MOVES,
    "queues": ("store",),
    "limits": (*_MOVES, "limit"),
    "gates": ("store", "limit"),
    "schedules": ("store",),
    "hand_over": (*_MOVES, "records", "away"),
    "take_over": (*_MOVES, "away"),
}

VERBS = tuple(_PARTS)


@cache
def script(verb: str) -> tuple[str, str]:
    """Answer the script of a verb and its SHA-1."""
    folder = resources.files(__package__) / "lua"
    constants = "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items())
    constants += f'local EACH_KEY = "{EACH_KEY}"\n'
    names = (*_PARTS[verb], verb)
    source = constants + "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
