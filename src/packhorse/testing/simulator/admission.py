"""The oracle's rules for what an enqueue lets in: unique keys with their windows, and the capacity of queues."""

from __future__ import annotations

from collections.abc import Sequence

from ...backends.base import Enqueued, parents_first
from ...errors import PackhorseError, QueueFull, UniqueConflict, UnknownParent
from ...job import TERMINAL, JobSpec, State
from .book import Book, Entry, Violation
from .family import Families

_REPLACEABLE = frozenset({State.WAITING, State.SCHEDULED, State.PENDING})


class Admission:
    """Enters new jobs as the contract says, and checks the answers."""

    def __init__(self, book: Book, families: Families) -> None:
        self.capacity: dict[str, int] = {}
        self.left_out: set[str] = set()  # follow-ups and slots whose unique key was held
        self._book = book
        self._families = families
        self._takers: dict[tuple[str, str], list[Entry]] = {}  # (queue, unique key) → who took it, the last at the end

    # ---- unique keys -----------------------------------------------------------------------------------

    def holder(self, queue: str, key: str) -> Entry | None:
        """Answer who keeps others from a key: the last that took it, or an earlier one that came back to a state."""
        for entry in reversed(self._takers.get((queue, key), [])):
            if entry.unique is None or entry.id not in self._book.jobs:
                continue
            if entry.state in entry.unique.states or self._book.now_ms() < entry.created_ms + entry.unique.for_ms:
                return entry
        return None

    def _take(self, entry: Entry) -> None:
        if entry.unique is not None:
            slot = (entry.queue, entry.unique.key)
            others = [other for other in self._takers.get(slot, []) if other is not entry and self._book.is_live(other)]
            self._takers[slot] = [*others, entry]

    def takes_key(self, entry: Entry) -> bool:
        """Let a job that starts over take its key, if it has one; answers False where another holds it."""
        if entry.unique is not None:
            if self.holder(entry.queue, entry.unique.key) not in {None, entry}:
                return False
            self._take(entry)
        return True

    def _blocker(self, spec: JobSpec) -> Entry | None:
        """Answer who holds the key of a new job and does not make way for it."""
        if spec.unique is None:
            return None
        holder = self.holder(spec.queue, spec.unique.key)
        if holder is None or (spec.unique.on_conflict == "replace" and holder.state in _REPLACEABLE):
            return None
        return holder

    def _enter(self, spec: JobSpec) -> Entry:
        """Enter a job whose key nobody keeps from it."""
        if spec.unique is not None:
            holder = self.holder(spec.queue, spec.unique.key)
            if holder is not None:
                self._book.count("replaced")
                self._book.say("store", f"{holder.label} is replaced")
                holder.waiting_on = {}
                self._book.move(holder, State.CANCELLED)
        entry = self._book.add(spec)
        self._take(entry)
        return entry

    # ---- enqueue ---------------------------------------------------------------------------------------

    def enqueued(self, who: str, specs: Sequence[JobSpec], answers: Sequence[Enqueued]) -> None:
        """Check an enqueue that was answered. Raises Violation."""
        room = _Room(self._book, self.capacity, specs)
        made: list[tuple[Entry, JobSpec]] = []
        instead: dict[str, str] = {}
        for number in parents_first(specs) or range(len(specs)):
            spec, answer = specs[number], answers[number]
            if answer.id != spec.id and not answer.created:
                instead[spec.id] = answer.id
            entry = self._enqueue(who, spec, answer, room)
            if entry is not None and spec.after:
                made.append((entry, spec))
        for entry, spec in made:
            self._join(who, entry, spec, instead)
        room.check()

    def _enqueue(self, who: str, spec: JobSpec, answer: Enqueued, room: _Room) -> Entry | None:
        book = self._book
        if not answer.created:
            entry = book.known(answer.id)
            if answer.id == spec.id:
                book.say(who, f"enqueue {entry.label} again")
                return None
            book.say(who, f"enqueue → a unique key is held by {entry.label}")
            book.count("unique conflict")
            if self._blocker(spec) is not entry:
                raise Violation(f"{entry.label} ({entry.state}) was named as holder of the unique key {_key(spec)}")
            if spec.unique is not None and spec.unique.on_conflict == "refuse":
                raise Violation(f"{entry.label} holds the unique key {_key(spec)}; that should have been refused")
            return None
        blocker = self._blocker(spec)
        if blocker is not None and spec.id not in book.jobs:
            raise Violation(f"unique key {_key(spec)} is held by {blocker.label}, and another job was stored")
        if spec.unique is not None:
            room.replaces(self.holder(spec.queue, spec.unique.key))
        entry = self._enter(spec)
        room.adds(entry)
        if not spec.after:
            book.say(who, f"enqueue {entry.label} {entry.kind} → {entry.state}")
        return entry

    def _join(self, who: str, entry: Entry, spec: JobSpec, instead: dict[str, str]) -> None:
        """Give a new job its parents. A job that waits when it is new has none yet."""
        parents = entry.after = list(dict.fromkeys(instead.get(parent, parent) for parent in spec.after))
        if entry.state is not State.WAITING:
            return  # replaced by another of this call; a rerun waits for them all the same
        self._families.join(entry)
        names = " ".join(self._book.label(parent) for parent in parents)
        self._book.say(who, f"enqueue {entry.label} {entry.kind} after {names} ({entry.after_failed}) → {entry.state}")

    def followed(self, specs: Sequence[JobSpec]) -> list[Entry]:
        """Enter jobs that follow from a move: one whose id is there or whose key is held is left out."""
        made: list[tuple[Entry, JobSpec]] = []
        instead: dict[str, str] = {}
        for spec in (specs[number] for number in parents_first(specs) or range(len(specs))):
            blocker = self._blocker(spec)
            if spec.id in self._book.jobs or blocker is not None:
                instead[spec.id] = spec.id if blocker is None else blocker.id
                if blocker is not None:
                    self.left_out.add(spec.id)
                    self._book.count("left out for its key")
                    if spec.id in self._book.store.jobs and spec.id not in self._book.jobs:
                        raise Violation(f"a job was stored though {blocker.label} holds its unique key {_key(spec)}")
                continue
            made.append((self._enter(spec), spec))
        for entry, spec in made:
            if spec.after:
                self._join("store", entry, spec, instead)
        return [entry for entry, _ in made]

    # ---- refusals --------------------------------------------------------------------------------------

    def refused(self, who: str, specs: Sequence[JobSpec], error: PackhorseError) -> None:
        """Check that an enqueue was refused for a reason. Raises Violation."""
        book = self._book
        book.count(f"refused: {type(error).__name__}")
        book.say(who, f"enqueue of {len(specs)} is refused: {error}")
        if isinstance(error, QueueFull):
            self._check_full(specs)
        elif isinstance(error, UniqueConflict):
            refusing = [spec for spec in specs if spec.unique is not None and spec.unique.on_conflict == "refuse"]
            keys = [(spec.queue, spec.unique.key) for spec in specs if spec.unique is not None]
            if not any(spec.unique and self.holder(spec.queue, spec.unique.key) for spec in refusing) and len(
                set(keys)
            ) == len(keys):
                raise Violation(f"an enqueue was refused for a unique key that nobody holds: {error}")
        elif isinstance(error, UnknownParent):
            known = {spec.id for spec in specs} | book.jobs.keys()
            if all(parent in known for spec in specs for parent in spec.after):
                raise Violation(f"an enqueue was refused for a parent that is there: {error}")
        else:
            raise Violation(f"an enqueue was refused: {type(error).__name__}: {error}")

    def _check_full(self, specs: Sequence[JobSpec]) -> None:
        for queue, capacity in self.capacity.items():
            new = sum(
                spec.queue == queue and spec.id not in self._book.jobs and _takes_room(self._book, spec)
                for spec in specs
            )
            if new and capacity and _pending(self._book, queue) + new > capacity:
                return
        raise Violation("an enqueue was refused for a full queue, and there was room")


def _key(spec: JobSpec) -> str:
    return spec.unique.key if spec.unique is not None else "none"


def _pending(book: Book, queue: str) -> int:
    return sum(entry.queue == queue and entry.state is State.PENDING for entry in book.live.values())


def _takes_room(book: Book, spec: JobSpec) -> bool:
    """Tell whether a new job is pending at once: what waits for an instant or for parents is let in."""
    parents = [book.jobs[job_id].state if job_id in book.jobs else State.WAITING for job_id in spec.after]
    good = {State.SUCCEEDED} if spec.after_failed == "cancel" else TERMINAL
    return spec.delay_ms <= 0 and all(state in good for state in parents)


class _Room:
    """What one enqueue takes of the capacity of queues."""

    def __init__(self, book: Book, capacity: dict[str, int], specs: Sequence[JobSpec]) -> None:
        self._capacity = {queue: most for queue, most in capacity.items() if most}
        self._before = {queue: _pending(book, queue) for queue in self._capacity}
        self._takes = {spec.id for spec in specs if spec.queue in self._capacity and _takes_room(book, spec)}
        self._taken: dict[str, int] = {}

    def adds(self, entry: Entry) -> None:
        """Count a new job."""
        if entry.id in self._takes:
            self._taken[entry.queue] = self._taken.get(entry.queue, 0) + 1

    def replaces(self, holder: Entry | None) -> None:
        """Count a job that makes way."""
        if holder is not None and (holder.state is State.PENDING or holder.id in self._takes):
            self._taken[holder.queue] = self._taken.get(holder.queue, 0) - 1

    def check(self) -> None:
        """Check that all of it had room. Raises Violation."""
        for queue, most in self._capacity.items():
            taken = self._taken.get(queue, 0)
            if taken > 0 and self._before[queue] + taken > most:
                raise Violation(
                    f"{taken} jobs were let into {queue}, where {self._before[queue]} are pending of at most {most}"
                )
