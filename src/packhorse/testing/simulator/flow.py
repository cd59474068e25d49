"""The oracle's rules for what a claim may take: limits over all workers, and the turns of keys."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...backends.base import EACH_KEY, Limit
from ...job import State
from .book import Book, Entry, Violation

Name = tuple[str, str | None]

#: So many jobs of one key may go before a job of another that is pending already: those that lined up before it,
#: and retries, which come back to the front of the line.
OVERTAKEN_MAX = 4


class _Bucket:
    """Starts under one rate. `level` counts in parts of a start, `period_ms` to one, so that all is whole numbers."""

    __slots__ = ("at_ms", "level", "limit")

    def __init__(self, limit: Limit, now_ms: int) -> None:
        self.limit = limit
        self.level = burst_of(limit) * limit.period_ms
        self.at_ms = now_ms

    def start(self, now_ms: int) -> bool:
        """Take a start; answers False where there were none left."""
        rate, period_ms = self.limit.rate or 0, self.limit.period_ms
        self.level = min(burst_of(self.limit) * period_ms, self.level + (now_ms - self.at_ms) * rate) - period_ms
        self.at_ms = now_ms
        return self.level >= -rate  # a ms of slack: instants are whole ms


def burst_of(limit: Limit) -> int:
    """Answer how many may start at once, as the contract says: what 100 ms give, at least one."""
    return limit.burst or max(1, (limit.rate or 0) * 100 // limit.period_ms)


class Flow:
    """Watches claims and changes of limits."""

    def __init__(self, book: Book, paused: set[str]) -> None:
        self.limits: dict[Name, Limit] = {}  # by an operator
        #: In force from the beginning: no worker may start anything before the store knows them.
        self.declared: dict[Name, Limit] = {}
        self._book = book
        self._paused = paused
        self._buckets: dict[Name, _Bucket] = {}
        self._turns: dict[tuple[str, int], int] = {}  # (queue, priority) → jobs with a key that were claimed
        self._last_ms: dict[Name, int] = {}  # the last start under a name
        self._unsure: set[Name] = set()  # names whose limit was changed and under which nothing has started since

    # ---- limits ----------------------------------------------------------------------------------------

    def changed(self, who: str, changes: Sequence[Limit], answer: Sequence[Limit]) -> None:
        """Take over changes of limits, each of which names all parts. Raises Violation."""
        for change in changes:
            name = (change.type, change.key)
            if change.source:
                if _told(_plain(change)) != _told(self.declared.get(name)):
                    raise Violation(f"a worker declared {change}, and the code says {self.declared.get(name)}")
                self._book.count("limit declared")
                continue
            old = self.limits.get(name)
            if change.cleared or not (change.rate or change.concurrency):
                self.limits.pop(name, None)
            else:
                self.limits[name] = _plain(change)
            self._book.count("limit changed" if old is not None else "limit set")
            self._book.say(who, f"limit {name}: {_told(self.limits.get(name))}")
            if _told(old) != _told(self.limits.get(name)):
                self._forget(name)
        found = {(limit.type, limit.key): _told(limit) for limit in answer if not limit.source}
        if found != {name: _told(limit) for name, limit in self.limits.items()}:
            raise Violation(f"the limits in force are {self.limits}, the store says {answer}")

    def _forget(self, changed: Name) -> None:
        """A new limit may begin with a full bucket, or with what the old one left."""
        job_type, key = changed
        for name in [*self._buckets]:
            if name[0] == job_type and (name[1] is None) == (key is None):
                del self._buckets[name]
                self._unsure.add(name)

    def of(self, entry: Entry) -> list[tuple[Limit, Name]]:
        """Answer the limits a job must pass, with the name under which its starts are counted."""
        if not self.limits and not self.declared:
            return []
        found: list[tuple[Limit, Name]] = []
        whole = self.limits.get((entry.type, None)) or self.declared.get((entry.type, None))
        if whole is not None:
            found.append((whole, (entry.type, None)))
        if entry.key is not None:
            own = self.limits.get((entry.type, entry.key)) or self.limits.get((entry.type, EACH_KEY))
            if own is not None:
                found.append((own, (entry.type, entry.key)))
        return found

    def _running(self, name: Name) -> int:
        job_type, key = name
        return sum(
            entry.state is State.RUNNING and entry.type == job_type and (key is None or entry.key == key)
            for entry in self._book.live.values()
        )

    def claimed(self, entries: Sequence[Entry], queues: Sequence[str], room: int) -> None:
        """Check a claim that is in the book already; it could have taken `room` more. Raises Violation."""
        if self.limits or self.declared:
            for entry in entries:
                for limit, name in self.of(entry):
                    self._check_start(entry, limit, name)
        if room > 0:
            self._check_nothing_left(queues)

    def _check_start(self, entry: Entry, limit: Limit, name: Name) -> None:
        now_ms = self._book.now_ms()
        self._book.count("start under a limit")
        if limit.concurrency is not None and self._running(name) > limit.concurrency:
            raise Violation(
                f"{entry.label} makes {self._running(name)} running jobs of {_shown(name)}; "
                f"the limit is {limit.concurrency}"
            )
        self._last_ms[name] = now_ms
        self._unsure.discard(name)
        if not limit.rate:
            return
        bucket = self._buckets.get(name)
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[name] = _Bucket(limit, now_ms)
        if not bucket.start(now_ms):
            raise Violation(f"{entry.label} is one start too many of {_shown(name)}; the limit is {_told(limit)}")

    def _check_nothing_left(self, queues: Sequence[str]) -> None:
        """A claim that was not full must have taken all that no limit held back."""
        for entry in self._book.live.values():
            if entry.state is State.PENDING and entry.queue in queues and entry.queue not in self._paused:
                closed = self._closed(entry)
                if closed is None:
                    raise Violation(f"{entry.label} was left by a claim that had room, and no limit holds it back")
                self._book.count(f"held back by {closed}")

    def _closed(self, entry: Entry) -> str | None:
        """Answer what may hold a job back now."""
        for limit, name in self.of(entry):
            if limit.concurrency is not None and self._running(name) >= limit.concurrency:
                return "concurrency"
            if limit.rate:
                # After a start the next comes no later than one interval.
                since_ms = self._book.now_ms() - self._last_ms.get(name, -1_000_000_000)
                if name in self._unsure or since_ms * limit.rate <= limit.period_ms + limit.rate:
                    return "rate"
        return None

    # ---- turns of keys ---------------------------------------------------------------------------------

    def took_turn(self, entry: Entry) -> None:
        """Check that a claimed job with a key did not leave those of other keys behind for long. Raises Violation."""
        if entry.key is None:
            return
        line = (entry.queue, entry.priority)
        self._turns[line] = self._turns.get(line, 0) + 1
        for other in self._book.live.values():
            if (
                other.state is State.PENDING
                and other.key not in {None, entry.key}
                and other.queue == entry.queue
                and other.priority >= entry.priority
            ):
                self._overtake(other, entry)

    def _overtake(self, other: Entry, entry: Entry) -> None:
        if other.priority != entry.priority or self.of(other):
            return
        assert entry.key is not None
        first = not any(
            older.state is State.PENDING
            and (older.key, older.queue, older.priority) == (other.key, other.queue, other.priority)
            for older in self._book.live.values()
            if older.label != other.label and older.turn < other.turn
        )
        if not first:
            return
        count = other.overtaken[entry.key] = other.overtaken.get(entry.key, 0) + 1
        self._book.count("a turn of another key")
        # How far the keys of a queue have come is one number: jobs of other priorities move it on, too.
        elsewhere = sum(n for (queue, _), n in self._turns.items() if queue == entry.queue)
        elsewhere -= self._turns[entry.queue, entry.priority]
        if count > OVERTAKEN_MAX + elsewhere:
            raise Violation(f"{other.label} waits for its turn while {count} jobs of the key {entry.key} went first")


def _plain(change: Limit) -> Limit:
    parts = {"rate": change.rate or None, "burst": change.burst or None, "concurrency": change.concurrency or None}
    return msgspec.structs.replace(change, **parts)


def _shown(name: Name) -> str:
    return name[0] if name[1] is None else f"{name[0]} with key {name[1]}"


def _told(limit: Limit | None) -> str:
    if limit is None:
        return "none"
    rate = f"{limit.rate}/{limit.period_ms} ms, burst {burst_of(limit)}" if limit.rate else "any rate"
    return f"{rate}, {limit.concurrency} at once" if limit.concurrency else rate
