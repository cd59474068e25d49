"""Who listens to the feed: how many may, and what each is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..problems import Problem
from .events import Batch, Filter, Told

if TYPE_CHECKING:
    from ...backends.base import Change

#: Listeners of one server, and of one caller. Each may hold `streaming.HELD_BYTES_MAX` at worst.
LISTENERS_MAX = 256
OF_ONE_CALLER_MAX = 128


class Listener(ABC):
    """Somebody who is told. All methods return at once; whoever is slow keeps nobody waiting."""

    def __init__(self, wanted: Filter, *, owner: str = "", after: str | None = None, jobs: bool = True) -> None:
        self.filter = wanted
        #: Who is counted for it; empty: it is the server's own and is always let in.
        self.owner = owner
        #: The place to go on from; None: from now on.
        self.after = after
        self.wants_jobs = jobs
        self.wants_counts = False
        self.began = False
        #: The place up to which it was told all, where that is not the feed's.
        self.own_mark: str | None = None
        #: What it was told already, of what the next round tells all others.
        self._has: frozenset[Change] = frozenset()

    def begin(self, mark: str | None, *, resumed: bool) -> None:
        """Say that from now on everything is told, from the place it gave (`resumed`) or from `mark`."""
        self.began = True

    @abstractmethod
    def take(self, batch: Batch) -> None:
        """Be told events."""

    @abstractmethod
    def take_counts(self, text: bytes) -> None:
        """Be told new counts, as a message of the stream, if it wants any."""

    @abstractmethod
    def gap(self, reason: str, mark: str | None) -> None:
        """Be told that some were lost."""

    @abstractmethod
    def end(self) -> None:
        """Be told that nothing more will come."""

    def has(self, changes: frozenset[Change], mark: str) -> None:
        """Leave these out when they come again in the next round."""
        self._has = changes
        self.own_mark = mark

    def take_rest(self, batch: Batch) -> None:
        """Be told events but for those that it was told when it joined."""
        if self._has:
            batch = Batch([told for told in batch.events if told.change not in self._has])
        if batch.events:
            self.take(batch)

    def round_is_over(self) -> None:
        """Stand where all others stand."""
        self._has = frozenset()
        self.own_mark = None


class Listeners:
    """All listeners of one server, and those that have joined by what they want."""

    def __init__(self) -> None:
        self._all: dict[Listener, None] = {}
        self._owners: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, listener: Listener) -> None:
        """Count a listener. Raises Problem: 429 where its caller has too many, 503 where there are too many."""
        if listener.owner:
            wait: dict[str, Any] = {"headers": {"Retry-After": "5"}}
            if self._owners[listener.owner] >= OF_ONE_CALLER_MAX:
                detail = f"this caller listens {OF_ONE_CALLER_MAX} times already; end one of them"
                raise Problem(429, "too-many-listeners", "Too many event streams", detail, **wait)
            if len(self._all) >= LISTENERS_MAX:
                detail = f"{LISTENERS_MAX} listen already; try again later"
                raise Problem(503, "too-many-listeners", "Too many event streams", detail, **wait)
        self._owners[listener.owner] += 1
        self._all[listener] = None

    def remove(self, listener: Listener) -> None:
        """Count a listener no more. Idempotent."""
        if self._all.pop(listener, 0) is None:
            self._owners[listener.owner] -= 1
            if not self._owners[listener.owner]:
                del self._owners[listener.owner]

    def filters(self) -> set[Filter]:
        """Answer what those who have joined want to hear of jobs."""
        return {listener.filter for listener in self._all if listener.began and listener.wants_jobs}

    def tell(self, events: list[Told]) -> None:
        """Tell each what it wants of `events`; those who want the same share the work."""
        batches: dict[Filter, Batch] = {}
        for listener in list(self._all):
            if not listener.began or not listener.wants_jobs:
                continue
            batch = batches.get(listener.filter)
            if batch is None:
                admits = listener.filter.admits
                batch = batches[listener.filter] = Batch([told for told in events if admits(told.event)])
            if batch.events:
                listener.take_rest(batch)

    def round_is_over(self) -> None:
        """Let those that joined of late stand where all others stand."""
        for listener in self._all:
            listener.round_is_over()
