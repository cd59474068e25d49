"""The oracle's rules for schedules: which slots become jobs, who may fire them, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...backends.base import Firing, Schedule, ScheduleChange, Ticked, Verdict
from ...job import JobSpec
from .book import Book, Entry, Violation

#: A slot planned later than this was missed; see `missed="skip"`.
_CURRENT_MS = 60_000
#: While all is calm, a slot is fired no later than this: the longest gap between two ticks, and their way.
LATE_MS_MAX = 1_600


class _Plan:
    """One schedule as it must stand."""

    __slots__ = ("definition", "done_ms", "handed_ms", "paused", "revision")

    def __init__(self, definition: Schedule, now_ms: int) -> None:
        self.definition = definition
        self.paused = definition.paused
        self.revision = 1
        self.done_ms = now_ms
        self.handed_ms: set[int] = set()  # when ticks handed it out as it stands now

    def stand(self, done_ms: int) -> None:
        """Move it to another place: what was planned before is void."""
        if done_ms != self.done_ms:
            self.handed_ms.clear()
        self.done_ms = done_ms

    def last(self, until_ms: int) -> int | None:
        """Answer the last slot that is due."""
        every_ms = self.definition.every_ms or 0
        slot_ms = until_ms - until_ms % every_ms
        return slot_ms if slot_ms > self.done_ms else None

    def following(self, after_ms: int) -> int:
        """Answer the first slot after an instant."""
        every_ms = self.definition.every_ms or 0
        return after_ms - after_ms % every_ms + every_ms


class Slots:
    """Watches schedules, the ticks that hand them out, and the firings of their slots."""

    def __init__(self, book: Book, follow: Callable[[Sequence[JobSpec]], list[Entry]]) -> None:
        self.plans: dict[str, _Plan] = {}
        self._book = book
        self._follow = follow
        self._fired: set[tuple[str, int]] = set()

    def _now_ms(self) -> int:
        """Answer the store's now: slots are instants of its clock."""
        return self._book.store.clock.now_ms()

    # ---- changes ---------------------------------------------------------------------------------------

    def changed(self, who: str, changes: Sequence[ScheduleChange], answer: Sequence[Schedule]) -> None:
        """Take over changes, and check what the store makes of them. Raises Violation."""
        for change in changes:
            self._change(who, change)
        found = {one.name: (one.paused, one.revision, one.done_ms) for one in answer}
        book = {name: (plan.paused, plan.revision, plan.done_ms) for name, plan in self.plans.items()}
        if found != book:
            raise Violation(f"schedules stand (paused, revision, done) at {book}, the store says {found}")

    def _change(self, who: str, change: ScheduleChange) -> None:
        plan, now_ms = self.plans.get(change.name), self._now_ms()
        if change.define is not None:
            self._book.count("schedule redefined" if plan is not None else "schedule defined")
            self._book.say(who, f"schedule {change.name}: {_told(change.define)}")
            if plan is None:
                plan = self.plans[change.name] = _Plan(change.define, now_ms)
            elif _told(plan.definition) != _told(change.define):
                other_times = plan.definition.every_ms != change.define.every_ms
                plan.definition = change.define
                plan.revision += 1
                plan.handed_ms.clear()
                plan.stand(max(now_ms, plan.done_ms) if other_times else plan.done_ms)
        if change.removed:
            self._book.count("schedule removed")
            self._book.say(who, f"schedule {change.name} is removed")
            self.plans.pop(change.name, None)
        elif change.paused is not None and plan is not None and plan.paused != change.paused:
            self._book.count("schedule paused" if change.paused else "schedule resumed")
            self._book.say(who, f"schedule {change.name} is {'paused' if change.paused else 'resumed'}")
            plan.paused = change.paused
            if not change.paused:
                plan.stand(max(now_ms, plan.done_ms))

    # ---- ticks and firings -----------------------------------------------------------------------------

    def ticked(self, ticked: Ticked) -> None:
        """Check what a tick hands out. Raises Violation."""
        for one in ticked.schedules:
            plan = self.plans.get(one.name)
            if plan is None or plan.paused or (one.revision, one.done_ms) != (plan.revision, plan.done_ms):
                raise Violation(f"a tick hands out the schedule {one.name}, which does not stand like that")
            plan.handed_ms.add(ticked.now_ms)

    def fired(self, who: str, firings: Sequence[Firing], verdicts: Sequence[Verdict]) -> None:
        """Check firings that were judged. Raises Violation."""
        for firing, verdict in zip(firings, verdicts, strict=True):
            plan = self.plans.get(firing.name)
            stands = (
                plan is not None
                and not plan.paused
                and (plan.revision, plan.done_ms) == (firing.revision, firing.done_ms)
            )
            self._book.count(f"fire: {verdict}")
            if stands != (verdict is Verdict.APPLIED):
                raise Violation(f"a firing of {firing.name} from {firing.done_ms} was {verdict}; it stands: {stands}")
            if plan is not None and stands:
                self._apply(who, plan, firing)
            elif any(spec.id in self._book.store.jobs and spec.id not in self._book.jobs for spec in firing.specs):
                raise Violation(f"a firing of {firing.name} was stale, and its jobs were stored")

    def _apply(self, who: str, plan: _Plan, firing: Firing) -> None:
        slots = [spec.slot_at_ms or 0 for spec in firing.specs]
        self._book.say(who, f"fire {firing.name}: {', '.join(str(slot % 1_000_000) for slot in slots) or 'nothing'}")
        self._check_slots(plan, firing, slots)
        for spec in firing.specs:
            self._check_spec(plan, spec)
        before = {entry.id for entry in self._live(firing.name)}
        made = self._follow(firing.specs)
        if plan.definition.overlap == "skip":
            for entry in made:
                entry.skips = True
            alive = [entry.label for entry in self._live(firing.name) if entry.skips]
            self._book.count("slot skipped", len(firing.specs) - len(made))
            if len(alive) > 1:
                raise Violation(f"{', '.join(alive)} of {firing.name} live at once, and its overlap is skip")
        elif len(made) < len(firing.specs) and plan.definition.spec.unique is None:
            raise Violation(f"a slot of {firing.name} made no job, and nothing kept it from that (live: {before})")
        self._book.count("slot fired", len(made))
        plan.stand(firing.new_done_ms)

    def _live(self, name: str) -> list[Entry]:
        return [entry for entry in self._book.live.values() if entry.schedule == name]

    def _check_slots(self, plan: _Plan, firing: Firing, slots: list[int]) -> None:
        """The slots must be those that the policy chooses at an instant when a tick handed the schedule out."""
        name, now_ms = firing.name, self._now_ms()
        for slot_ms in slots:
            if (name, slot_ms) in self._fired:
                raise Violation(f"the slot {slot_ms} of {name} made a second job")
            self._fired.add((name, slot_ms))
            if slot_ms > now_ms:
                raise Violation(f"the slot {slot_ms} of {name} was fired {slot_ms - now_ms} ms too early")
            if slot_ms <= plan.done_ms:
                raise Violation(f"the slot {slot_ms} of {name} was fired, and it is dealt with up to {plan.done_ms}")
        plans = [_choose(plan, at_ms) for at_ms in sorted(plan.handed_ms)]
        if (slots, firing.new_done_ms) not in plans:
            raise Violation(
                f"{name} ({plan.definition.missed}) was fired with the slots {slots} up to {firing.new_done_ms}; "
                f"by its policy it is {plans}"
            )
        if firing.next_ms != plan.following(firing.new_done_ms):
            raise Violation(f"the next slot of {name} after {firing.new_done_ms} is not {firing.next_ms}")
        if len(slots) > 1:
            self._book.count("slots made good")

    def _check_spec(self, plan: _Plan, spec: JobSpec) -> None:
        template = plan.definition.spec
        same = (spec.type, spec.payload, spec.queue, spec.key) == (
            template.type,
            template.payload,
            template.queue,
            template.key,
        )
        if not same or spec.schedule != plan.definition.name or not 0 <= spec.delay_ms <= plan.definition.jitter_ms:
            raise Violation(f"a slot of {plan.definition.name} made another job than its definition says: {spec}")

    def check_calm(self) -> None:
        """Check that no slot is overdue while nothing keeps anybody from firing it. Raises Violation."""
        now_ms = self._now_ms()
        for name, plan in self.plans.items():
            late_ms = now_ms - plan.following(plan.done_ms)
            if not plan.paused and late_ms > LATE_MS_MAX:
                raise Violation(f"a slot of {name} is {late_ms} ms late, and all is calm")

    def close(self) -> None:
        """Check at the end that each slot in the store is there once, and none that nobody fired. Raises Violation."""
        seen: set[tuple[str, int]] = set()
        for job in self._book.store.jobs.values():
            if job.schedule is None or job.slot_at_ms is None:
                continue
            slot = (job.schedule, job.slot_at_ms)
            if slot in seen or slot not in self._fired:
                raise Violation(f"the slot {slot} has {'two jobs' if slot in seen else 'a job nobody fired'}")
            seen.add(slot)


def _choose(plan: _Plan, at_ms: int) -> tuple[list[int], int]:
    """Answer what a policy makes of a schedule at an instant: slots that become jobs, and how far it is dealt with."""
    last_ms, missed = plan.last(at_ms), plan.definition.missed
    if last_ms is None:
        return [], plan.done_ms
    if missed == "all":
        first_ms, every_ms = plan.following(plan.done_ms), plan.definition.every_ms or 1
        return list(range(first_ms, last_ms + 1, every_ms)), last_ms
    late = missed == "skip" and at_ms - last_ms > _CURRENT_MS
    return ([] if late else [last_ms]), last_ms


def _told(definition: Schedule) -> str:
    spec = definition.spec
    return (
        f"every {definition.every_ms} ms, missed {definition.missed}, overlap {definition.overlap}, "
        f"jitter {definition.jitter_ms} ms, {spec.type} in {spec.queue} with key {spec.key}: {spec.payload.decode()}"
    )
