"""What is told of a job that moved, to whom, and the bytes it is told in. Values only, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from msgspec import UNSET, UnsetType

from ...backends.base import CHANGES_MAX, Change
from ...job import State


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job moved. Never its payload or result (FAILURES C20): who may see them asks for the job.

    `state` is null for a job that is gone from the store; then, and where the job went on too quickly to be looked at,
    fields may be missing. `attempt`, `worker` and `error` are what the store had when it was asked.
    """

    id: str
    state: State | None
    at: str
    type: str | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    previous: State | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    worker: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    workflow: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener wants to hear: all given parts must match, within a part any. None: whatever it is.

    `scope` are the queues its caller may see; what is not known to be of them is not told.
    """

    scope: frozenset[str] | None = None
    queues: frozenset[str] | None = None
    types: frozenset[str] | None = None
    states: frozenset[State] | None = None
    workflows: frozenset[str] | None = None
    jobs: frozenset[str] | None = None
    keys: frozenset[str] | None = None
    tags: frozenset[str] | None = None

    def may_admit(self, change: Change) -> bool:
        """Answer whether a change could be wanted, before anything is known of its job."""
        return (self.states is None or change.state in self.states) and (self.jobs is None or change.id in self.jobs)

    def admits(self, event: JobEvent) -> bool:
        """Answer whether an event is wanted."""
        return (
            (self.states is None or event.state in self.states)
            and (self.jobs is None or event.id in self.jobs)
            and (self.scope is None or event.queue in self.scope)
            and (self.queues is None or event.queue in self.queues)
            and (self.types is None or event.type in self.types)
            and (self.workflows is None or event.workflow in self.workflows)
            and (self.keys is None or event.key in self.keys)
            and (self.tags is None or (event.tags is not UNSET and not self.tags.isdisjoint(event.tags)))
        )

    def shows_queue(self, queue: str) -> bool:
        """Answer whether the counts of a queue are wanted."""
        return (self.scope is None or queue in self.scope) and (self.queues is None or queue in self.queues)


_POSITION = re.compile(r"(.+)~([0-9]{1,5})~([0-9a-f]{1,8})", re.ASCII | re.DOTALL)


class Position(NamedTuple):
    """How far somebody has been told: a cursor of the store, and how many of the changes after it.

    The store's cursor stands for all of an answer; who is cut off amidst it goes on amidst it. `sum` says which changes
    these were: where transactions overlap, a store asked again may have others among them.
    """

    cursor: str
    told: int = 0
    sum: int = 0

    def __str__(self) -> str:
        return f"{self.cursor}~{self.told}~{self.sum:x}" if self.told else self.cursor

    def rest(self, changes: Sequence[Change]) -> Sequence[Change] | None:
        """Answer which of the changes after the cursor are to be told yet; None where that cannot be known."""
        told = changes[: self.told]
        if len(told) < self.told or (told and sum_of(told) != self.sum):
            return None
        return changes[self.told :]


def read_position(text: str) -> Position:
    """Read a position. Any text is one: the store says whether it knows the cursor."""
    found = _POSITION.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= CHANGES_MAX:
        return Position(text)
    return Position(found[1], int(found[2]), int(found[3], 16))


def add_to_sum(total: int, change: Change) -> int:
    """Answer the sum of changes with one more."""
    return crc32(b"%b %b" % (change.id.encode(), (change.state or "gone").encode()), total)


def sum_of(changes: Iterable[Change]) -> int:
    """Answer a number that tells these changes, in this order, from others."""
    return reduce(add_to_sum, changes, 0)


class Told:
    """An event with its place in the feed, encoded once for all who listen."""

    __slots__ = ("_frame", "change", "event", "mark")

    def __init__(self, change: Change, event: JobEvent, mark: str) -> None:
        self.change = change
        self.event = event
        self.mark = mark
        self._frame = b""

    @property
    def frame(self) -> bytes:
        """The event as a message of the stream."""
        if not self._frame:
            self._frame = message("job", self.event, self.mark)
        return self._frame


class Batch:
    """The events that one filter lets through, shared by all who listen with it."""

    __slots__ = ("_frames", "events")

    def __init__(self, events: list[Told]) -> None:
        self.events = events
        self._frames = b""

    @property
    def frames(self) -> bytes:
        """All events as messages of the stream."""
        if not self._frames:
            self._frames = b"".join([told.frame for told in self.events])
        return self._frames


def message(kind: str, data: Any, mark: str | None = None) -> bytes:
    """Encode a message of the stream; JSON has no line breaks of its own, so `data` is one line.

    A mark becomes the id that a client sends back. A store's cursor is ours, but one line is made sure of here.
    """
    head = "" if mark is None else f"id: {_one_line(mark)}\n"
    return b"%sevent: %s\ndata: %s\n\n" % (head.encode(), kind.encode(), msgspec.json.encode(data))


def sign_of_life(mark: str | None) -> bytes:
    """Encode a comment that nobody sees and, where there is a mark, the place up to which nothing was missed."""
    return b":\n\n" if mark is None else b": alive\nid: %s\n\n" % _one_line(mark).encode()


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
