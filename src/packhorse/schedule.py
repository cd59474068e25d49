"""Recurring jobs: what a schedule may be, when its slots are, and which of them become jobs. Values, no I/O.

A schedule has a cursor, `done_ms`: slots up to it are dealt with. `plan` answers the slots from there to the store's
now, chosen by the missed policy, and where the cursor goes. Any number of tickers plan the same; the store takes one.
Times are ms since 1970 UTC and come from the store, never from the clock of a worker (FAILURES B36). Decision 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from . import cron as calendar
from .backends.messages import Firing, Schedule
from .chance import named_id
from .errors import InvalidOption, shown
from .job import JobSpec, Unique, check_name
from .options import AT_MS
from .settings import duration_ms

MISSED = ("skip", "latest", "all")
OVERLAP = ("allow", "skip")

#: Shorter intervals belong into a handler that loops: each slot is a job, stored, claimed and kept.
EVERY_MS_MIN = 1_000
EVERY_MS_MAX = 366 * 86_400_000
JITTER_MS_MAX = 86_400_000

#: A slot that is planned later than this was missed: nobody was there when it was due.
CURRENT_MS = 60_000
#: Slots in one plan; more go to the next. As many as one call to a store may enqueue.
PLAN_SLOTS_MAX = 1_000
#: A schedule that does not come within the search is looked at again this much later.
_LOOK_AGAIN_MS = calendar.SEARCH_DAYS * 86_400_000


# ---- definitions -----------------------------------------------------------------------------------------


def make_schedule(
    name: str,
    spec: JobSpec,
    *,
    cron: str | None = None,
    every: object = None,
    tz: str | None = None,
    missed: str | None = None,
    overlap: str | None = None,
    jitter: object = None,
    source: str = "",
    paused: bool = False,
) -> Schedule:
    """Make a checked definition from what people write; durations as `"30s"` or seconds. Raises as `check_schedule`."""
    definition = Schedule(
        name=name,
        spec=msgspec.structs.replace(spec, id=""),
        cron=cron,
        every_ms=None if every is None else duration_ms(every, "every"),
        tz="UTC" if tz is None else tz,
        missed="latest" if missed is None else missed,
        overlap="allow" if overlap is None else overlap,
        jitter_ms=0 if jitter is None else duration_ms(jitter, "jitter"),
        source=source,
        paused=paused,
    )
    check_schedule(definition)
    return definition


def check_schedule(definition: Schedule) -> None:
    """Refuse a definition that cannot work, within 10 ms, with the remedy. Raises InvalidOption or InvalidName."""
    check_name(definition.name, "schedule")
    _check_times(definition.cron, definition.every_ms, definition.tz)
    for name, value, allowed in (
        ("missed", definition.missed, MISSED),
        ("overlap", definition.overlap, OVERLAP),
    ):
        if value not in allowed:
            raise InvalidOption(f"{name}: {shown(value)} must be one of {', '.join(allowed)}")
    if not 0 <= definition.jitter_ms <= JITTER_MS_MAX:
        raise InvalidOption("jitter: must be from 0 to 1d")
    spec = definition.spec
    if spec.delay_ms:
        raise InvalidOption("delay: a schedule itself says when its jobs are due; leave delay and at out")
    if spec.after:
        raise InvalidOption("after: the jobs of a schedule have no parents; enqueue the others from its handler")
    if spec.unique is not None and definition.overlap == "skip":
        raise InvalidOption("unique: overlap='skip' holds a unique key already; give one of them")


def check_job_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a job that its slot decides; those that a template shows are refused by `check_schedule`."""
    if options.get("at") is not None or options.get(AT_MS) is not None:
        raise InvalidOption("at: a schedule itself says when its jobs are due; leave delay and at out")
    if options.get("idempotency_key") is not None:
        raise InvalidOption(
            "idempotency_key: each slot is one job already, and a schedule is one by its name; leave it out"
        )


def _check_times(cron: object, every_ms: int | None, tz: str) -> None:
    if (cron is None) == (every_ms is None):
        raise InvalidOption("a schedule has cron='0 9 * * *' or every='30s', one of them")
    if every_ms is not None:
        if not EVERY_MS_MIN <= every_ms <= EVERY_MS_MAX:
            raise InvalidOption(
                "every: must be from 1s to 366d; what is more frequent belongs into a handler that loops"
            )
        if tz != "UTC":
            raise InvalidOption("tz: an interval counts time itself, in no zone; use cron for local times")
    else:
        if not isinstance(cron, str):
            raise InvalidOption(f"cron: {shown(cron)} is not text; write it as '0 9 * * *'")
        calendar.read_cron(cron)
        calendar.read_zone(tz)


def definition_of(schedule: Schedule) -> Schedule:
    """Answer a schedule without what the store added, so that two definitions can be compared."""
    spec = msgspec.structs.replace(schedule.spec, id="")
    return msgspec.structs.replace(schedule, spec=spec, paused=False, revision=0, done_ms=0, next_ms=None)


_RECURRING = {
    "cron_expression": "cron",
    "cron": "cron",
    "every": "every",
    "tz": "tz",
    "timezone": "tz",
    "missed": "missed",
    "overlap": "overlap",
    "jitter": "jitter",
    "name": "name",
}


def from_recurring(recurring: object) -> dict[str, Any]:
    """Read the option `recurring={"cron_expression": "0 0 * * *"}` into keywords of `make_schedule`.

    Also takes cron, every, tz (or timezone), missed, overlap, jitter and name. Raises InvalidOption.
    """
    if not isinstance(recurring, Mapping):
        raise InvalidOption("recurring: must be a mapping, as {'cron_expression': '0 0 * * *', 'tz': 'Europe/Paris'}")
    found: dict[str, Any] = {}
    for key, value in recurring.items():
        field = _RECURRING.get(key) if isinstance(key, str) else None
        if field is None:
            raise InvalidOption(f"recurring: there is no {shown(key)}; there are {', '.join(_RECURRING)}")
        if value is None:
            continue
        if found.get(field, value) != value:
            raise InvalidOption(f"recurring: {key} is given by two names that disagree; give one")
        found[field] = value
    return found


# ---- slots -----------------------------------------------------------------------------------------------


def next_slot_ms(definition: Schedule, after_ms: int) -> int | None:
    """Answer the first slot later than `after_ms`; None if there is none within eight years."""
    if definition.every_ms is not None:
        return (after_ms // definition.every_ms + 1) * definition.every_ms
    assert definition.cron is not None
    rule, zone = calendar.read_cron(definition.cron), calendar.read_zone(definition.tz)
    instant = calendar.next_instant(rule, zone, after_ms // 1000)
    return None if instant is None else instant * 1000


def last_slot_ms(definition: Schedule, after_ms: int, until_ms: int) -> int | None:
    """Answer the last slot in (`after_ms`, `until_ms`], without walking through those before it."""
    if definition.every_ms is not None:
        slot_ms = until_ms // definition.every_ms * definition.every_ms
        return slot_ms if slot_ms > after_ms else None
    assert definition.cron is not None
    if until_ms <= after_ms:
        return None
    rule, zone = calendar.read_cron(definition.cron), calendar.read_zone(definition.tz)
    instant = calendar.last_instant(rule, zone, after_ms // 1000, until_ms // 1000)
    return None if instant is None else instant * 1000


def next_slots(definition: Schedule, after_ms: int, count: int) -> list[int]:
    """Answer the first `count` slots later than `after_ms`, at most 1,000; fewer where a search finds no more."""
    if not 0 <= count <= PLAN_SLOTS_MAX:
        raise InvalidOption(f"ask for 0 to {PLAN_SLOTS_MAX} slots, not {shown(count)}")
    slots: list[int] = []
    while len(slots) < count and (slot_ms := next_slot_ms(definition, slots[-1] if slots else after_ms)) is not None:
        slots.append(slot_ms)
    return slots


# ---- planning --------------------------------------------------------------------------------------------


def plan(schedule: Schedule, now_ms: int) -> Firing | None:
    """Answer the move of a schedule at the store's `now_ms`: slots that become jobs, and the cursor; None: no move.

    Of the slots that are due, the latest is current if it is at most a minute old; all others were missed. `skip` takes
    the current one only, `latest` the latest however old, `all` each of them, 1,000 a plan.
    Raises InvalidOption for a definition that this machine cannot read.
    """
    if schedule.paused:
        return None
    done_ms = schedule.done_ms
    latest_ms = last_slot_ms(schedule, done_ms, now_ms)
    chosen: list[int] = []
    if latest_ms is not None:
        if schedule.missed == "all":
            chosen = list(_slots(schedule, done_ms, latest_ms))
        elif schedule.missed == "latest" or now_ms - latest_ms <= CURRENT_MS:
            chosen = [latest_ms]
        done_ms = chosen[-1] if schedule.missed == "all" and chosen else latest_ms
    next_ms = next_slot_ms(schedule, done_ms)
    if next_ms is None:
        done_ms = max(done_ms, now_ms)
        next_ms = done_ms + _LOOK_AGAIN_MS
    if (done_ms, next_ms) == (schedule.done_ms, schedule.next_ms):
        return None
    return Firing(
        name=schedule.name,
        revision=schedule.revision,
        done_ms=schedule.done_ms,
        new_done_ms=done_ms,
        next_ms=next_ms,
        specs=tuple(slot_spec(schedule, slot_ms) for slot_ms in chosen),
    )


def _slots(schedule: Schedule, after_ms: int, until_ms: int) -> Iterator[int]:
    """Answer the first 1,000 slots in (`after_ms`, `until_ms`]; the last of these is one."""
    slot_ms: int | None = after_ms
    for _ in range(PLAN_SLOTS_MAX):
        slot_ms = next_slot_ms(schedule, slot_ms) if slot_ms is not None else None
        if slot_ms is None or slot_ms > until_ms:
            return
        yield slot_ms


def slot_spec(schedule: Schedule, slot_ms: int) -> JobSpec:
    """Make the job of a slot: the same from every planner, so that one slot is one job in any store."""
    return msgspec.structs.replace(
        schedule.spec,
        id=named_id("slot", schedule.name, str(slot_ms)),
        schedule=schedule.name,
        slot_at_ms=slot_ms,
        delay_ms=_jitter_ms(schedule, slot_ms),
        unique=_unique(schedule),
    )


def run_spec(schedule: Schedule, job_id: str) -> JobSpec:
    """Make a job of the schedule that belongs to no slot, due now."""
    return msgspec.structs.replace(schedule.spec, id=job_id, schedule=schedule.name, unique=_unique(schedule))


def _unique(schedule: Schedule) -> Unique | None:
    if schedule.overlap != "skip":
        return schedule.spec.unique
    return Unique(key=f"schedule:{schedule.name}", on_conflict="existing")


def _jitter_ms(schedule: Schedule, slot_ms: int) -> int:
    """Answer 0 to `jitter_ms`, by chance but the same for all who plan this slot."""
    drawn = int(named_id("jitter", schedule.name, str(slot_ms)).rpartition("-")[2], 16)  # 48 bits of a hash
    return drawn % (schedule.jitter_ms + 1)
