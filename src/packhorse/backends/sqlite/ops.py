"""What is asked of the threads, what they work with, and how the answers get back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...errors import PackhorseError
from ..rate_limited import RateLimited
from . import changelog
from .placing import QUEUES_WITH_LANES, Places

#: Answer of a probe: there is something to write.
WRITE = object()


class Redo(Exception):  # not an error: a sign to do the batch again, one by one
    """A shortcut for many items does not fit these; do them one by one."""


class Hints:
    """What a process has seen of its store lately, to save questions whose answer only rings bells."""

    __slots__ = ("limits", "rate_limited")

    def __init__(self) -> None:
        self.limits = False  # some types have limits, or had them a moment ago
        self.rate_limited = RateLimited()  # what claims found shut


class Transaction:
    """What an operation works with: the connection, the time, and what to tell whom after COMMIT."""

    __slots__ = (
        "_families",
        "_followed",
        "_moves",
        "_places",
        "db",
        "ended",
        "hints",
        "lapses",
        "new_token",
        "now_ms",
        "pages",
        "settles",
        "topics",
    )

    def __init__(self, db: sqlite3.Connection, now_ms: int, new_token: Callable[[], int], hints: Hints) -> None:
        self.db = db
        self.now_ms = now_ms
        self.new_token = new_token
        self.topics: set[str] = set()
        self.pages = 0  # that this wrote, roughly, beyond what its items say
        self.hints = hints
        self.settles = False  # running jobs were settled,
        self.lapses = False  # or taken from their worker: limits may let others start
        self.ended: list[int] = []  # seqs of jobs that ended, whose children are to be told: families.serve
        self._families: bool | None = None
        self._places: Places | None = None
        self._followed: bool | None = None
        self._moves: changelog.Moves = []

    @property
    def followed(self) -> bool:
        """Tell whether somebody asks for changes: else nothing is done for them, but to ask this once."""
        if self._followed is None:
            self._followed = changelog.is_followed(self.db, self.now_ms)
        return self._followed

    def forget_followers(self) -> None:
        """From here on there may be some."""
        self._followed = None

    def tell(self, state: int, ids: Sequence[str]) -> None:
        """Have it written down that jobs came into a state, where this is `followed`."""
        self._moves.append((state, ids))

    @property
    def places(self) -> Places:
        """Answer who says where jobs that become pending wait."""
        if self._places is None:
            self._places = Places(self.db)
        return self._places

    def next_op(self) -> None:
        """Forget what the operation before may have changed: who is pending, and the limits."""
        if self._places is not None:
            self._places.forget()

    def finish(self) -> None:
        """Write down and find out what is only known at the end. Before COMMIT."""
        if self._places is not None:
            self._places.write()
        if self._moves:
            self.pages += changelog.write(self.db, self.now_ms, self._moves) // 4_096
        if self.lapses or (self.settles and self.hints.limits):
            self.topics.update(f"queue:{queue}" for (queue,) in self.db.execute(QUEUES_WITH_LANES))

    @property
    def families(self) -> bool:
        """Tell whether any job has a parent: where none has, nothing is done about families."""
        if self._families is None:
            self._families = bool(self.db.execute("SELECT EXISTS (SELECT 1 FROM edges)").fetchone()[0])
        return self._families

    def join_families(self) -> None:
        """From here on there are families."""
        self._families = True

    def save(self, savepoint: str) -> int:
        """Begin a savepoint; answers what `roll_back` wants to know."""
        self.db.execute(f"SAVEPOINT {savepoint}")
        return len(self._moves)

    def roll_back(self, savepoint: str, saved: int) -> None:
        """Undo what was done since a savepoint, and forget what was learned since."""
        self.db.execute(f"ROLLBACK TO {savepoint}")
        self.ended.clear()
        del self._moves[saved:]
        self._families = self._places = self._followed = None


class Op:
    """Something asked of the writer.

    `run(tx, args)` does it. It may raise errors of ours only before it has written anything. `many(tx, [args…])`
    does several neighbours at once, or raises Redo; `probe(db, now_ms, args)` finds out whether there is
    anything to write; `abandoned(result)` undoes it where the caller went away meanwhile.
    """

    __slots__ = ("abandoned", "args", "future", "items", "loop", "many", "probe", "run")

    def __init__(
        self,
        run: Callable[[Transaction, Any], Any],
        args: Any,
        items: int = 1,
        *,
        many: Callable[[Transaction, list[Any]], list[Any]] | None = None,
        probe: Callable[[sqlite3.Connection, int, Any], Any] | None = None,
        abandoned: Callable[[Any], None] | None = None,
    ) -> None:
        self.run = run
        self.args = args
        self.items = items
        self.many = many
        self.probe = probe
        self.abandoned = abandoned
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class Call:
    """Something to do in a thread, outside of any transaction of ours."""

    __slots__ = ("abandoned", "action", "future", "items", "last", "loop")

    def __init__(self, action: Callable[[], Any], *, last: bool = False) -> None:
        self.action = action
        self.last = last  # the thread ends after it
        self.items = 0
        self.abandoned = None
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


def outcome_of(action: Callable[[], Any]) -> Any:
    """Answer what `action` answers, or the error it raises, as a value."""
    try:
        return action()
    except Exception as error:  # it belongs to the caller
        return error


def run_op(op: Op, tx: Transaction) -> Any:
    """Run an operation; a refusal is its answer, anything else ends the transaction."""
    try:
        return op.run(tx, op.args)
    except PackhorseError as error:
        return error


def answer(
    asked: Sequence[Op | Call],
    outcomes: Sequence[Any],
) -> None:
    """Hand the outcomes back, in one hop for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = {}
    for one, outcome in zip(asked, outcomes, strict=True):
        by_loop.setdefault(one.loop, []).append((one, outcome))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: list[tuple[Any, Any]]) -> None:
    for one, outcome in pairs:
        future = one.future
        if future.done():
            if one.abandoned is not None and not isinstance(outcome, BaseException):
                one.abandoned(outcome)
        elif isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
