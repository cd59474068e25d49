"""The rules of the state machine for what an operator sets: limits, capacity, pauses, schedules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ..backends.base import EACH_KEY, Firing, Limit, QueueChange, Schedule, ScheduleChange, Verdict
from ..errors import NotFound
from .machine_base import KEYS, QUEUES, TYPES, Draft, MachineBase, drafts, picks, queues

_NAMES = ("s0", "s1")
_names = st.sampled_from(_NAMES)
#: A bucket of any of these is full again within this time.
_FULL_MS = 7_000


class SettingsRules(MachineBase):
    """Limits, capacity, pauses and schedules."""

    # ---- queues ------------------------------------------------------------------------------------------

    @rule(queue=queues, paused=st.sampled_from((True, False, False, None)))
    def pause(self, queue: str, paused: bool | None) -> None:
        """Pause or resume a queue."""
        self.model.paused[queue] = self.model.paused.get(queue, False) if paused is None else paused
        changed = self.run(self.backend.queues([QueueChange(queue=queue, paused=paused)]))
        assert {name: bool(change.paused) for name, change in changed.items()} == self.model.paused

    @precondition(lambda self: self.can("capacity"))
    @rule(queue=queues, capacity=st.sampled_from((0, 0, 2, 5)))
    def bound(self, queue: str, capacity: int) -> None:
        """Give a queue a capacity, or lift it."""
        self.model.paused.setdefault(queue, False)
        self.model.capacity.pop(queue, None)
        if capacity:
            self.model.capacity[queue] = capacity
        changed = self.run(self.backend.queues([QueueChange(queue=queue, capacity=capacity)]))
        assert {name: change.capacity for name, change in changed.items() if change.capacity} == self.model.capacity

    # ---- limits ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.can("limits"))
    @rule(
        job_type=st.sampled_from(TYPES),
        by_key=st.booleans(),
        rate=st.sampled_from((None, None, 1, 3)),
        burst=st.sampled_from((None, 1, 2)),
        concurrency=st.sampled_from((None, 0, 1, 2)),
        source=st.sampled_from(("", "", "app")),
        cleared=st.sampled_from((False, False, True)),
    )
    def limit(
        self,
        job_type: str,
        by_key: bool,
        rate: int | None,
        burst: int | None,
        concurrency: int | None,
        source: str,
        cleared: bool,
    ) -> None:
        """Change a limit: of a type, of each key of the one type, of one key of the other.

        Whether a bucket outlives a limit is open, so that it is full when one is cleared.
        """
        key = None if not by_key else EACH_KEY if job_type == TYPES[0] else KEYS[1]
        change = Limit(
            type=job_type, key=key, rate=rate, burst=burst, concurrency=concurrency, source=source, cleared=cleared
        )
        if cleared:
            self.run(self.harness.advance(_FULL_MS))
        self.model.limits.change(change)
        assert self.run(self.backend.limits([change])) == self.model.limits.all()

    @precondition(lambda self: self.can("limits"))
    @rule(job_type=st.sampled_from(TYPES), key=st.sampled_from(KEYS))
    def ask_about(self, job_type: str, key: str | None) -> None:
        """Ask what holds a type and key."""
        answer = self.run(self.backend.limits(about=(job_type, key)))
        assert answer == self.model.limits.about(job_type, key, self.now_ms)

    # ---- schedules ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.can("schedules"))
    @rule(
        name=_names,
        every_ms=st.sampled_from((None, 5_000, 5_000, 20_000)),
        payload=st.sampled_from((b"[1]", b"[2]")),
        paused=st.sampled_from((None, None, True, False)),
        removed=st.sampled_from((False, False, False, True)),
    )
    def schedule(self, name: str, every_ms: int | None, payload: bytes, paused: bool | None, removed: bool) -> None:
        """Define, pause, resume or remove a schedule."""
        spec = self.harness.spec(payload=payload, queue=QUEUES[0])
        define = None if every_ms is None else Schedule(name=name, spec=spec, every_ms=every_ms)
        change = ScheduleChange(name=name, define=define, paused=paused, removed=removed)
        try:
            self.model.schedules.change(change, self.now_ms)
        except KeyError:
            try:
                self.run(self.backend.schedules([change]))
            except NotFound:
                return
            raise AssertionError("a schedule that does not exist was paused") from None
        assert plain(self.run(self.backend.schedules([change]))) == plain(self.model.schedules.all())

    @precondition(lambda self: self.can("schedules"))
    @rule(
        name=_names,
        draft=st.none() | drafts,
        again=st.none() | picks,
        ahead_ms=st.sampled_from((1, 5_000)),
        stale=st.sampled_from(("", "", "", "revision", "done")),
        twice=st.booleans(),
    )
    def fire(self, name: str, draft: Draft | None, again: int | None, ahead_ms: int, stale: str, twice: bool) -> None:
        """Fire a slot, most often from where the schedule stands."""
        if not self.model.schedules.schedules:
            self.schedule(name=name, every_ms=5_000, payload=b"[1]", paused=None, removed=False)
        known = self.model.schedules.schedules
        now = known.get(name, next(iter(known.values())))
        specs = [self.make_spec(draft)] if draft is not None else []
        if again is not None and self.pick(again) in self.model.jobs:
            specs.append(self.harness.spec(id=self.pick(again), queue="a"))
        firing = Firing(
            name=name,
            revision=now.revision + (stale == "revision"),
            done_ms=now.done_ms - (stale == "done"),
            new_done_ms=now.done_ms + ahead_ms,
            next_ms=self.now_ms + 2 * ahead_ms,
            specs=tuple(specs),
        )
        firings = [firing, firing] if twice else [firing]
        expected: list[Verdict] = [self.model.fire(each, self.now_ms) for each in firings]
        assert self.run(self.backend.fire(firings)) == expected


def plain(schedules: Sequence[Schedule]) -> list[Schedule]:
    """Answer schedules without the ids of their templates, which nobody keeps."""
    return [msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, id="")) for each in schedules]
