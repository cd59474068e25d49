"""What the backends that keep jobs in SQL tables share: codes of states, rows that move, what families and keys read.

No SQL and no I/O: how rows are read and written is each backend's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import msgspec

from ..job import JobError, State, Unique
from .messages import Lapse
from .rules import add_error, holds_key

WAITING, SCHEDULED, PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED = range(1, 8)
#: Added to the state of an ended job that was deleted before its children were told. Nobody sees such rows.
BURIED = 3
#: A job that is in another store: it left, or is still to come. Nobody sees it, but its children wait for it.
ABSENT = 11

#: In the column `cancel`: somebody asked for it, or a parent of the job ended badly.
ASKED, FOR_PARENT = 1, 2

#: What an edge says of its child: it waits for the parent, it was told of its end, or it is cancelled because of it.
#: Ticks make OVER of TOLD where they see that the child has ended.
WAITS, TOLD, OVER, HELD = range(4)

STATES = {
    WAITING: State.WAITING,
    SCHEDULED: State.SCHEDULED,
    PENDING: State.PENDING,
    RUNNING: State.RUNNING,
    SUCCEEDED: State.SUCCEEDED,
    FAILED: State.FAILED,
    CANCELLED: State.CANCELLED,
}
CODES = {state: code for code, state in STATES.items()}


def lives(state: int) -> bool:
    """Tell whether a job of this code has not ended, as far as is known here."""
    return state <= RUNNING or state == ABSENT


#: A queue and a key of it.
Slot = tuple[str, str]

UNTIL_IT_ENDS = Unique(key="").states

to_json = msgspec.json.Encoder().encode
errors_from_json = msgspec.json.Decoder(tuple[JobError, ...]).decode
_tags_from_json = msgspec.json.Decoder(tuple[str, ...]).decode
_meta_from_json = msgspec.json.Decoder(dict[str, str]).decode


def read_tags(text: str | None) -> tuple[str, ...]:
    """Read the column `tags`."""
    return () if text is None else _tags_from_json(text)


def read_meta(text: str | None) -> dict[str, str] | None:
    """Read the column `meta`."""
    return None if text is None else _meta_from_json(text)


@lru_cache(maxsize=1_024)
def read_token(token: str) -> int | None:
    """Answer the number of a claim; None for a text that is no token of ours."""
    if not (token.isascii() and token.isdigit() and len(token) <= 19):
        return None
    number = int(token)
    return number if number < 1 << 63 and str(number) == token else None


# ---- rows that move ----------------------------------------------------------------------------------------


class Places(Protocol):
    """Says where a job that becomes pending waits."""

    def of(self, queue: str, job_type: str, key: str | None, priority: int, ready_at_ms: int) -> tuple[int, str | None]:
        """Answer rank and lane of one more job that becomes pending."""


class Moment(Protocol):
    """What a row asks of the transaction that moves it."""

    @property
    def now_ms(self) -> int:
        """The time of the move."""

    @property
    def places(self) -> Places:
        """Who says where jobs that become pending wait."""


class Row(msgspec.Struct, array_like=True):
    """What a move may look at and change. The fields are the columns each backend loads, in this order."""

    seq: int
    id: str
    type: str
    key: str | None
    queue: str
    state: int
    rank: int
    lane: str | None
    attempt: int
    max_attempts: int
    priority: int
    created_at_ms: int
    due_at_ms: int
    cancel: int
    worker: int | None
    token: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    parked_at_ms: int | None
    unique_key: str | None
    children: int  # as it was read; only what keeps families writes it
    errors: str | int | None
    parents: int
    waiting_for: int
    after_failed: int
    held_by: int | None
    # Not columns: what a save is to do, and what it checks.
    result: bytes | None = None
    was_state: int = 0
    was_token: int | None = None
    dirty: bool = False
    extras_dirty: bool = False  # result or errors changed
    family_dirty: bool = False  # waiting_for or held_by changed

    def lapsed_to(self, state: State) -> Lapse:
        """Name its lapse, by which it went to `state`."""
        return Lapse(
            id=self.id,
            queue=self.queue,
            type=self.type,
            attempt=self.attempt,
            max_attempts=self.max_attempts,
            state=state,
        )

    def start_over(self, delay_ms: int, tx: Moment) -> None:
        """Make it run, again or at last: now, or in `delay_ms`."""
        self.due_at_ms = tx.now_ms + max(0, delay_ms)
        self.dirty = True
        if delay_ms > 0:
            self.state = SCHEDULED
        else:
            self.state = PENDING
            self.rank, self.lane = tx.places.of(self.queue, self.type, self.key, self.priority, self.due_at_ms)

    def end(self, state: int, now_ms: int) -> None:
        """Make it terminal. Its children are told by whoever saves it; nobody need free its key."""
        self.state = state
        self.finished_at_ms = now_ms
        self.dirty = True
        self.wait_for(0)

    def wait_for(self, parents: int) -> None:
        """Note how many parents it waits for."""
        if self.waiting_for != parents:
            self.waiting_for = parents
            self.dirty = self.family_dirty = True

    def let_go(self) -> None:
        """Take it from its worker: the token is void from here on."""
        self.worker = self.token = None
        self.dirty = True

    def add_error(self, error: JobError) -> None:
        """Add an error to its history, by the rule of the contract."""
        old: tuple[JobError, ...] = errors_from_json(self.errors) if isinstance(self.errors, str) else ()
        self.errors = to_json(add_error(old, error)).decode()
        self.extras_dirty = True


def moved(rows: Iterable[Row]) -> dict[int, list[str]]:
    """Answer the ids of the rows that are to be saved in another state than they were read in, by that state."""
    found: dict[int, list[str]] = {}
    for row in rows:
        if row.state != row.was_state:
            found.setdefault(row.state, []).append(row.id)
    return found


# ---- families ----------------------------------------------------------------------------------------------


class Parent(msgspec.Struct, array_like=True):
    """What a child wants to know of a parent."""

    id: str
    seq: int
    state: int

    @property
    def lives(self) -> bool:
        """Tell whether its children wait for it."""
        return lives(self.state)

    @property
    def is_bad(self) -> bool:
        """Tell whether it ended other than succeeded."""
        return self.state in {FAILED, CANCELLED}


def missing_parent(job_id: str) -> Parent:
    """Answer what a parent that is not there counts as: one that failed."""
    return Parent(job_id, 0, FAILED)


class Ties(msgspec.Struct):
    """The edges of one child: how they are to stand now, and what its parents are."""

    all: set[int] = msgspec.field(default_factory=set)  # parents
    live: list[int] = []
    bad: bool = False
    changed: list[tuple[int, int, int]] = []


# ---- unique keys -------------------------------------------------------------------------------------------


class Holder(msgspec.Struct, array_like=True):
    """A job that took a key. `no` is the order in which keys were taken."""

    no: int
    queue: str
    key: str
    seq: int
    id: str
    state: int
    created_at_ms: int
    for_ms: int
    states: int | None

    def holds(self, now_ms: int) -> bool:
        """Tell whether it keeps others from its key, by the rule of the contract."""
        rule = Unique(key=self.key, for_ms=self.for_ms, states=states_of(self.states))
        return self.state in STATES and holds_key(rule, STATES[self.state], self.created_at_ms, now_ms)


def mask_of(states: Iterable[State]) -> int:
    """Write states as one number."""
    return sum({1 << CODES[State(state)] for state in states})


def states_of(mask: int | None) -> tuple[State, ...]:
    """Read states from a number; None: until the job ends."""
    if mask is None:
        return UNTIL_IT_ENDS
    return tuple(state for code, state in STATES.items() if mask >> code & 1)
