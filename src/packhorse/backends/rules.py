"""Rules that every backend shares, kept here so that none of them has its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import InvalidOption, Unsupported, shown
from ..job import (
    AFTER_FAILED,
    AFTER_MAX,
    AFTER_TOTAL_MAX,
    PARENT_FAILED,
    REPLACED,
    TERMINAL,
    JobError,
    JobSpec,
    State,
    Unique,
)
from ..wording import quantity
from .messages import (
    BATCH_MAX,
    ERRORS_KEPT_MAX,
    Capabilities,
    Firing,
    Query,
    QueueChange,
    Schedule,
    Settlement,
)


def check_batch(items: Sequence[object]) -> None:
    """Refuse a call with more than `BATCH_MAX` items."""
    if len(items) > BATCH_MAX:
        raise InvalidOption(f"{quantity(len(items), 'item')} in one call; send at most {BATCH_MAX:,}")


def check_limit(limit: int) -> None:
    """Refuse a claim or tick of more than `BATCH_MAX` jobs, or of a negative number."""
    if not 0 <= limit <= BATCH_MAX:
        raise InvalidOption(f"a limit of {quantity(limit, 'job')}; ask for 0 to {BATCH_MAX:,}")


def check_specs(specs: Sequence[JobSpec], capabilities: Capabilities) -> None:
    """Refuse what this backend cannot keep, before anything of the call is stored."""
    check_batch(specs)
    for spec in specs:
        if spec.after and not capabilities.dependencies:
            raise Unsupported("dependencies", "enqueue the job from its parent's handler with ctx.then()")
        if spec.unique is not None:
            _check_unique(spec.unique, capabilities)
    if any(spec.after for spec in specs):
        check_family(specs)


def check_family(specs: Sequence[JobSpec]) -> None:
    """Refuse too many parents, a policy that does not exist, and jobs of one call that wait for each other.

    A parent must be there before its child or come in the same call, so a cycle can only be inside of a call.
    """
    total = sum(len(spec.after) for spec in specs)
    if total > AFTER_TOTAL_MAX:
        raise InvalidOption(
            f"after: {quantity(total, 'parent')} in one call; at most {AFTER_TOTAL_MAX:,}, send fewer jobs a call"
        )
    waiting: dict[str, set[str]] = {}
    ids = {spec.id for spec in specs}
    for spec in specs:
        if len(spec.after) > AFTER_MAX:
            raise InvalidOption(
                f"after: {quantity(len(spec.after), 'parent')}; at most {AFTER_MAX:,}, put jobs that join some between"
            )
        if spec.after_failed not in AFTER_FAILED:
            raise InvalidOption(f"after_failed: {shown(spec.after_failed)} must be one of {', '.join(AFTER_FAILED)}")
        waiting[spec.id] = ids.intersection(spec.after)
    children: dict[str, list[str]] = {}
    for job_id, parents in waiting.items():
        for parent in parents:
            children.setdefault(parent, []).append(job_id)
    free = [job_id for job_id, parents in waiting.items() if not parents]
    while free:
        ended = free.pop()
        del waiting[ended]
        for child in children.get(ended, ()):
            waiting[child].discard(ended)
            if not waiting[child]:
                free.append(child)
    if waiting:
        one = min(waiting)
        many = quantity(len(waiting), "job waits for itself", "jobs wait for each other")
        raise InvalidOption(f"after: {many} in a cycle, job {one} among them; leave out one `after` of the cycle")


def parents_first(specs: Sequence[JobSpec]) -> list[int] | None:
    """Answer the order in which the specs of a call are looked at: each after its parents in the call; None: as given.

    It matters where unique keys and parents meet. A parent whose key is held makes its child wait for the holder, and
    with this order that is never the child itself or one that waits for it.
    """
    if not (any(spec.after for spec in specs) and any(spec.unique is not None for spec in specs)):
        return None
    place: dict[str, int] = {}
    for number, spec in enumerate(specs):
        place.setdefault(spec.id, number)
    order: dict[int, None] = {}
    for number in range(len(specs)):
        path = [number]
        while path:
            spec = specs[path[-1]]
            ahead = (place[parent] for parent in spec.after if parent in place)
            parent_place = next((one for one in ahead if one not in order), None)
            if parent_place is None or parent_place == path[-1]:
                order[path.pop()] = None
            else:
                path.append(parent_place)
    return list(order)


def _check_unique(unique: Unique, capabilities: Capabilities) -> None:
    if not capabilities.unique:
        raise Unsupported("unique")
    if not capabilities.unique_windows and unique != Unique(key=unique.key, on_conflict=unique.on_conflict):
        raise Unsupported("unique_windows", "a unique key is held until its job ends")
    if not capabilities.unique_windows and unique.on_conflict == "replace":
        raise Unsupported("unique_windows", "use on_conflict='existing' or 'refuse'")


def check_settlements(settlements: Sequence[Settlement], capabilities: Capabilities) -> None:
    """Refuse settlements whose follow-ups this backend cannot keep."""
    check_batch(settlements)
    for settlement in settlements:
        if settlement.follow_ups:
            check_specs(settlement.follow_ups, capabilities)


def check_changes(changes: Sequence[QueueChange], capabilities: Capabilities) -> None:
    """Refuse queue settings this backend cannot keep."""
    check_batch(changes)
    if not capabilities.capacity and any(change.capacity is not None for change in changes):
        raise Unsupported("capacity")


def page_limit(query: Query) -> int:
    """Answer how many jobs a page may have: what was asked, from 1 to `BATCH_MAX`."""
    if not 1 <= query.limit <= BATCH_MAX:
        raise InvalidOption(f"a page has 1 to {BATCH_MAX} jobs, not {query.limit}")
    return query.limit


def parse_cursor(cursor: str | None) -> int | None:
    """Read a cursor that is a sequence number; raise InvalidOption for anything else."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidOption(f"{cursor[:40]!r} is not a cursor; use the `next` of the page before")
    return int(cursor)


def landing(settlement: Settlement, cancel_requested: bool) -> State:
    """Answer the state a settled job goes to: one that was asked to stop does not run again."""
    if cancel_requested and settlement.state not in TERMINAL:
        return State.CANCELLED
    return settlement.state


def lapse_landing(attempt: int, max_attempts: int, cancel_requested: bool) -> State:
    """Answer the state a lapsed job goes to. The attempt was counted at claim and stays counted."""
    if cancel_requested:
        return State.CANCELLED
    return State.FAILED if attempt >= max_attempts else State.PENDING


def parent_failed(parent: str, state: State, now_ms: int) -> JobError:
    """Make the entry in the history of a job that is cancelled because of a parent."""
    return JobError(
        attempt=0,
        at_ms=now_ms,
        kind=PARENT_FAILED,
        message=f"its parent {parent} ended as {state}; rerun that, and this one waits for it again",
    )


def replaced_by(job_id: str, now_ms: int) -> JobError:
    """Make the entry in the history of a job whose unique key went to another with on_conflict='replace'."""
    return JobError(attempt=0, at_ms=now_ms, kind=REPLACED, message=f"job {job_id} took its unique key and its place")


def holds_key(unique: Unique, state: State, created_at_ms: int, now_ms: int) -> bool:
    """Tell whether a job in `state` keeps others from its unique key."""
    return state in unique.states or now_ms < created_at_ms + unique.for_ms


#: A holder in one of these makes way for on_conflict='replace'.
REPLACEABLE = frozenset({State.WAITING, State.SCHEDULED, State.PENDING})


def define_schedule(old: Schedule | None, new: Schedule, now_ms: int) -> Schedule:
    """Answer what a definition makes of a schedule: the same where nothing changed, else a new revision of it."""
    if old is None:
        return msgspec.structs.replace(new, paused=new.paused, revision=1, done_ms=now_ms, next_ms=None)
    state = {"paused": old.paused, "revision": old.revision, "done_ms": old.done_ms, "next_ms": old.next_ms}
    same = msgspec.structs.replace(new, **state, spec=msgspec.structs.replace(new.spec, id=old.spec.id))
    if same == old:
        return old
    other_times = (old.cron, old.every_ms, old.tz) != (new.cron, new.every_ms, new.tz)
    state |= {
        "revision": old.revision + 1,
        "done_ms": max(now_ms, old.done_ms) if other_times else old.done_ms,
        "next_ms": None,
    }
    return msgspec.structs.replace(new, **state)


def pause_schedule(old: Schedule, paused: bool, now_ms: int) -> Schedule:
    """Answer a schedule stopped, or going on from now: slots of the pause are nobody's business."""
    if paused == old.paused:
        return old
    if paused:
        return msgspec.structs.replace(old, paused=True)
    return msgspec.structs.replace(old, paused=False, done_ms=max(now_ms, old.done_ms), next_ms=None)


def merge_schedule(here: Schedule | None, arriving: Schedule) -> Schedule:
    """Answer what becomes of a schedule that comes from another store.

    It goes on where it stood. One of that name that is here keeps its definition and goes on where the further of
    both stood, paused if either was: so no slot is dealt with twice.
    """
    if here is None:
        return arriving
    return msgspec.structs.replace(
        here,
        paused=here.paused or arriving.paused,
        revision=max(here.revision, arriving.revision) + 1,
        done_ms=max(here.done_ms, arriving.done_ms),
        next_ms=None,
    )


def wants_planning(schedule: Schedule, now_ms: int) -> bool:
    """Tell whether a tick hands a schedule out."""
    return not schedule.paused and (schedule.next_ms is None or schedule.next_ms <= now_ms)


def may_fire(schedule: Schedule | None, firing: Firing) -> bool:
    """Tell whether a schedule stands where a firing was planned from."""
    return (
        schedule is not None
        and not schedule.paused
        and (schedule.revision, schedule.done_ms) == (firing.revision, firing.done_ms)
    )


def add_error(errors: tuple[JobError, ...], error: JobError) -> tuple[JobError, ...]:
    """Add to a job's history, keeping the first and the latest `ERRORS_KEPT_MAX - 1`."""
    if len(errors) < ERRORS_KEPT_MAX:
        return (*errors, error)
    return (errors[0], *errors[2:], error)
