"""Changes: who asks is told of every move from then on, in the order that each job made them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ...backends.base import (
    CHANGES_KEPT_MS,
    CHANGES_MAX,
    Backend,
    Change,
    Firing,
    Keep,
    Note,
    QueueChange,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Verdict,
    WorkerInfo,
)
from ...errors import QueueFull, UniqueConflict
from ...job import TRANSITIONS, State, Unique
from .case import Case, add_case, case, equal, raises, true
from .harness import Harness
from .moves import PUSHES, put
from .two_stores import move_all, other_store

_NEEDS = ("changes",)
_BOUND = (*_NEEDS, "bind", "own_connections")
_ENDS = Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0)


class Follower:
    """Somebody who asks for changes from now on."""

    def __init__(self, backend: Backend, cursor: str) -> None:
        self.backend = backend
        self.cursor = cursor

    async def news(self) -> list[Change]:
        """Answer what changed since the last call; fails on a gap."""
        found = await self.backend.changes(self.cursor)
        true(not found.gap, f"a gap where all could be told, after the cursor {self.cursor!r}")
        self.cursor = found.cursor
        return found.changes

    async def states(self) -> dict[str, list[State | None]]:
        """Answer the states each job was told to be in since the last call."""
        told: dict[str, list[State | None]] = {}
        for change in await self.news():
            told.setdefault(change.id, []).append(change.state)
        return told

    async def last(self) -> dict[str, State | None]:
        """Answer the last of the states each job was told to be in since the last call."""
        return {job_id: states[-1] for job_id, states in (await self.states()).items()}


async def follow(h: Harness, backend: Backend | None = None) -> Follower:
    """Begin to ask for changes."""
    backend = backend or h.backend
    first = await backend.changes()
    equal((first.changes, first.gap), ([], False), "the answer to who asks for the first time")
    return Follower(backend, first.cursor)


def _all(ids: Iterable[str], state: State | None) -> dict[str, State | None]:
    return dict.fromkeys(ids, state)


# ---- what is told --------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def nothing_is_told_of_what_was_before(h: Harness) -> None:
    await h.enqueue(3)
    await h.claim(1)
    follower = await follow(h)
    equal(await follower.news(), [], "changes where nothing moved")
    new = await h.add()
    equal(await follower.last(), {new: State.PENDING}, "told")
    equal(await follower.news(), [], "told once more")


@case(needs=_NEEDS)
async def the_way_of_a_job_is_told_in_its_order(h: Harness) -> None:
    follower = await follow(h)
    job_id = await h.add(delay_ms=h.step_ms)
    await h.pass_time(2 * h.step_ms)
    (job,) = await h.claim()
    await h.settle(job, State.FAILED)
    await h.backend.rerun([Rerun(id=job_id)])
    await h.backend.cancel([job_id])
    await h.backend.delete([job_id])
    wanted = [State.SCHEDULED, State.PENDING, State.RUNNING, State.FAILED, State.PENDING, State.CANCELLED, None]
    equal(await follower.states(), {job_id: wanted}, "states, in order")


@case(needs=(*_NEEDS, "manual_clock"))
async def a_change_says_since_when(h: Harness) -> None:
    follower = await follow(h)
    job_id = await h.add()
    await h.advance(h.step_ms)
    (job,) = await h.claim()
    await h.advance(h.step_ms)
    await h.settle(job)
    record = await h.record(job_id)
    wanted = [record.created_at_ms, record.started_at_ms, record.finished_at_ms]
    equal([change.at_ms for change in await follower.news()], wanted, "instants")


def _told(source: State, target: State) -> Case:
    async def body(h: Harness) -> None:
        for push in PUSHES[target]:
            job_id, token = await put(h, source, target)
            follower = await follow(h)
            await push(h, job_id, token)
            told = (await follower.states()).get(job_id, [])
            state = await h.state(job_id)
            equal(told[-1] if told else source, state, f"the last that was told of a {source} job")
            for before, after in zip([source, *told], told, strict=False):
                true(before is not after, f"a move from {before} to {after} is none")
            await h.backend.retire("w1", "end of the push")
            await h.backend.cancel([job_id, *(await h.record(job_id)).after])

    needs = ("dependencies",) if State.WAITING in {source, target} else ()
    return Case("changes", f"a_move_from_{source}_to_{target}_is_told", body, (), (*_NEEDS, *needs))


for _source, _targets in TRANSITIONS.items():
    for _target in sorted(_targets):
        add_case(_told(_source, _target))


@case(needs=_NEEDS)
async def a_whole_batch_is_told(h: Harness) -> None:
    follower = await follow(h)
    ids = await h.enqueue(700)
    equal(await follower.last(), _all(ids, State.PENDING), "told of an enqueue")
    jobs = await h.claim(700)
    equal(await follower.last(), _all(ids, State.RUNNING), "told of a claim")
    await h.backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
    equal(await follower.last(), _all(ids, State.SUCCEEDED), "told of a settle")
    equal(await h.backend.delete(ids), [Steered.DONE] * 700, "answers to a delete")
    equal(await follower.last(), _all(ids, None), "told of a delete")


@case(needs=_NEEDS)
async def jobs_of_every_kind_are_told(h: Harness) -> None:
    """What is plain goes a shorter way in some stores than what is not."""
    kinds: list[dict[str, object]] = [{}, {"key": "k"}, {"tags": ("t",), "meta": {"a": "b"}}, {"workflow": "w"}]
    kinds += [{"payload": b'"' + b"x" * 5_000 + b'"'}, {"priority": 0}, {"schedule": "s", "slot_at_ms": 1}]
    if h.has("unique"):
        kinds.append({"unique": Unique(key="u")})
    follower = await follow(h)
    ids = [await h.add(**kind) for kind in kinds]
    equal(await follower.last(), _all(ids, State.PENDING), "told of the enqueues")
    jobs = await h.claim(len(ids))
    equal(await follower.last(), _all(ids, State.RUNNING), "told of the claim")
    ends = [State.SUCCEEDED, State.FAILED, State.PENDING, State.SCHEDULED, State.CANCELLED]
    wanted: dict[str, State | None] = {}
    settlements = []
    for number, job in enumerate(jobs):
        state = wanted[job.id] = ends[number % len(ends)]
        delay_ms = 60_000 if state is State.SCHEDULED else 0
        settlements.append(
            Settlement(id=job.id, token=job.token, state=state, delay_ms=delay_ms, error=h.error(), result=b"1")
        )
    await h.backend.settle(settlements)
    equal(await follower.last(), wanted, "told of the settle")


@case(needs=_NEEDS)
async def jobs_that_are_dropped_or_deleted_are_gone(h: Harness) -> None:
    ended = (await h.put(State.SUCCEEDED))[0]
    later = await h.add(delay_ms=60_000)
    pending = await h.add()
    follower = await follow(h)
    await h.advance(1)
    equal((await h.tick(keep=_ENDS)).dropped, 1, "dropped")
    equal(await follower.last(), {ended: None}, "told of the tick")
    await h.backend.delete([later, pending])
    equal(await follower.last(), {later: None, pending: None}, "told of the delete")


@case(needs=_NEEDS)
async def jobs_that_lapse_are_told(h: Harness) -> None:
    last_attempt, other = await h.start(max_attempts=1), await h.start(max_attempts=5)
    follower = await follow(h)
    await h.pass_time(2 * h.lease_ms)
    equal(await follower.last(), {last_attempt.id: State.FAILED, other.id: State.PENDING}, "told of the tick")
    await h.claim(1, worker="w2")
    await h.backend.retire("w2", "it died")
    equal(await follower.states(), {other.id: [State.RUNNING, State.PENDING]}, "told of the retirement")


@case(needs=(*_NEEDS, "dependencies"))
async def what_the_end_of_a_parent_does_is_told(h: Harness) -> None:
    good, bad = await h.start(queue="good"), await h.start(queue="bad")
    follower = await follow(h)
    free = await h.add(after=(good.id,))
    child = await h.add(after=(bad.id,))
    grandchild = await h.add(after=(child,))
    equal(await follower.last(), _all((free, child, grandchild), State.WAITING), "told of the enqueues")
    await h.settle(good)
    equal(await follower.last(), {good.id: State.SUCCEEDED, free: State.PENDING}, "told of the parent that succeeded")
    await h.settle(bad, State.FAILED)
    wanted = {bad.id: State.FAILED, **_all((child, grandchild), State.CANCELLED)}
    equal(await follower.last(), wanted, "told of the parent that failed")
    await h.backend.rerun([Rerun(id=bad.id)])
    wanted = {bad.id: State.PENDING, **_all((child, grandchild), State.WAITING)}
    equal(await follower.last(), wanted, "told of the rerun")
    await h.backend.delete([bad.id])
    wanted = {bad.id: None, **_all((child, grandchild), State.CANCELLED)}
    equal(await follower.last(), wanted, "told of the delete")
    at_once = await h.add(after=(child,))
    equal(await follower.last(), {at_once: State.CANCELLED}, "told of a child of a cancelled job")


@case(needs=(*_NEEDS, "unique_windows"))
async def a_job_that_is_replaced_is_told(h: Harness) -> None:
    unique = Unique(key="k", on_conflict="replace")
    first = await h.add(unique=unique)
    follower = await follow(h)
    second = await h.add(unique=unique)
    equal(await follower.last(), {first: State.CANCELLED, second: State.PENDING}, "told")


@case(needs=(*_NEEDS, "schedules"))
async def the_jobs_of_a_slot_are_told(h: Harness) -> None:
    define = Schedule(name="nightly", spec=h.spec(), every_ms=h.step_ms)
    (schedule,) = await h.backend.schedules([ScheduleChange(name="nightly", define=define)])
    follower = await follow(h)
    spec = h.spec()
    firing = Firing(
        name="nightly",
        revision=schedule.revision,
        done_ms=schedule.done_ms,
        new_done_ms=schedule.done_ms + 1,
        next_ms=schedule.done_ms + 10**7,
        specs=(spec,),
    )
    equal(await h.backend.fire([firing, firing]), [Verdict.APPLIED, Verdict.STALE], "verdicts")
    equal(await follower.states(), {spec.id: [State.PENDING]}, "told")


@case(needs=_NEEDS)
async def follow_ups_are_told_with_the_settlement(h: Harness) -> None:
    job = await h.start()
    follower = await follow(h)
    now, later = h.spec(), h.spec(delay_ms=60_000)
    await h.settle(job, follow_ups=(now, later))
    wanted = {job.id: State.SUCCEEDED, now.id: State.PENDING, later.id: State.SCHEDULED}
    equal(await follower.last(), wanted, "told")


@case(needs=_NEEDS)
async def what_moves_nothing_tells_nothing(h: Harness) -> None:
    there, held = await h.add(delay_ms=60_000), await h.start(queue="held")
    unique = Unique(key="k", on_conflict="refuse")
    await h.add(unique=unique, delay_ms=60_000)
    ended = (await h.put(State.SUCCEEDED))[0]
    follower = await follow(h)
    equal((await h.try_add(id=there)).created, False, "created, of a known id")
    await raises(UniqueConflict, h.backend.enqueue([h.spec(), h.spec(unique=unique)]), "enqueue under a held key")
    if h.has("capacity"):
        await h.backend.queues([QueueChange(queue="full", capacity=1)])
        await raises(QueueFull, h.backend.enqueue(h.specs(2, queue="full")), "enqueue into a full queue")
    names = (held.id, there, h.new_id())
    stale = [Settlement(id=job_id, token=f"{held.token}0", state=State.SUCCEEDED) for job_id in names]
    equal(await h.backend.settle(stale), [Verdict.STALE] * 3, "verdicts")
    equal(await h.claim(5), [], "claimed")
    equal(await h.backend.cancel([held.id, ended, h.new_id()]), ["requested", "ended", "missing"], "cancelled")
    equal(await h.backend.rerun([Rerun(id=there), Rerun(id=h.new_id())]), ["live", "missing"], "rerun")
    equal(await h.backend.delete([held.id, h.new_id()]), ["live", "missing"], "deleted")
    await h.backend.heartbeat(WorkerInfo(id="w1"), h.lease_ms, [Note(id=held.id, token=held.token, progress=0.5)])
    await h.backend.queues([QueueChange(queue="default", paused=True)])
    await h.tick()
    equal(len(await h.backend.retire("nobody", "never was")), 0, "lapsed")
    equal(await follower.news(), [], "told")


# ---- to whom -------------------------------------------------------------------------------------------------


@case(needs=_NEEDS)
async def each_who_asks_is_told_all(h: Harness) -> None:
    first = await follow(h)
    a = await h.add(queue="a")
    second = await follow(h)
    b = await h.add(queue="b")
    again = Follower(h.backend, first.cursor)
    equal(await first.last(), _all((a, b), State.PENDING), "told to the first")
    equal(await second.last(), {b: State.PENDING}, "told to the second")
    equal(await again.last(), _all((a, b), State.PENDING), "told to who asks with the same cursor")


@case(needs=_NEEDS)
async def it_does_not_matter_who_moves_and_who_asks(h: Harness) -> None:
    follower = await follow(h)
    mover, asker = await h.several(2)
    specs = h.specs(2)
    await mover.enqueue(specs)
    ids = [spec.id for spec in specs]
    equal(await follower.last(), _all(ids, State.PENDING), "told of what another connection moved")
    jobs = await h.claim(2, backend=mover)
    follower.backend = asker
    equal(await follower.last(), _all(ids, State.RUNNING), "told to another connection, after the cursor of the first")
    await h.settle(jobs[0], backend=asker)
    follower.backend = h.backend
    equal(await follower.last(), {jobs[0].id: State.SUCCEEDED}, "told to the first again")


@case(needs=_NEEDS)
async def all_is_told_once_while_many_move_jobs(h: Harness) -> None:
    follower = await follow(h)
    told: dict[str, list[State | None]] = {}
    moved: set[str] = set()

    async def work(number: int, backend: Backend) -> None:
        queue = f"q{number % 2}"
        for turn in range(8):
            specs = h.specs(1 + 7 * (turn % 3), queue=queue)
            await backend.enqueue(specs)
            moved.update(spec.id for spec in specs)
            jobs = await h.claim(20, queue, worker=f"w{number}", backend=backend)
            await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])

    workers = [asyncio.create_task(work(number, backend)) for number, backend in enumerate(await h.several(4))]
    is_over = False
    while not is_over:
        is_over = all(worker.done() for worker in workers)
        for change in await follower.news():
            told.setdefault(change.id, []).append(change.state)
        await asyncio.sleep(0)
    await asyncio.gather(*workers)
    way = [State.PENDING, State.RUNNING, State.SUCCEEDED]
    equal(set(told), moved, "jobs that were told of")
    for job_id, states in told.items():
        equal(states, way[: len(states)], f"what was told of {job_id}")
        equal(states[-1], await h.state(job_id), f"where {job_id} was told to stand")


# ---- gaps ----------------------------------------------------------------------------------------------------


@case(needs=(*_NEEDS, "manual_clock"))
async def changes_are_kept_for_a_while(h: Harness) -> None:
    late, steady = await follow(h), await follow(h)
    ids = []
    for _ in range(3):
        ids.append(await h.add())
        await h.advance(CHANGES_KEPT_MS // 4)
        equal(await steady.last(), {ids[-1]: State.PENDING}, "told to who asks often")
    equal(await late.last(), _all(ids, State.PENDING), "told to who asks now and then")


@case(needs=(*_NEEDS, "manual_clock"))
async def who_goes_on_asking_never_sees_a_gap(h: Harness) -> None:
    follower = await follow(h)
    for _ in range(8):
        await h.advance(CHANGES_KEPT_MS * 9 // 10)
        job_id = await h.add()
        equal(await follower.last(), {job_id: State.PENDING}, "told")


@case(needs=(*_NEEDS, "manual_clock"))
async def nobody_asks_for_long_and_there_is_a_gap(h: Harness) -> None:
    follower = await follow(h)
    before = await h.add()
    await h.advance(2 * CHANGES_KEPT_MS)
    await h.add()
    found = await h.backend.changes(follower.cursor)
    equal((found.changes, found.gap), ([], True), "changes, gap")
    stranger = await h.backend.changes(follower.cursor)
    equal((stranger.changes, stranger.gap), ([], True), "changes, gap, for the old cursor once more")
    follower.cursor = found.cursor
    await h.backend.cancel([before])
    equal(await follower.last(), {before: State.CANCELLED}, "told afterwards")
    equal((await h.backend.changes(stranger.cursor)).gap, False, "a gap after the second cursor")


@case("C6", needs=_NEEDS)
async def what_is_no_cursor_of_this_store_is_a_gap(h: Harness) -> None:
    follower = await follow(h)
    await h.add()
    other = await other_store(h).changes()
    ours = (await h.backend.changes(follower.cursor)).cursor
    texts = ["", "0", "nonsense", "'; DROP TABLE jobs; --", "\0", "٣.٣", "9" * 40, "a" * 1_000_000, other.cursor]
    texts += [f"{ours}0" if ours[-1].isdigit() else f"{ours},1", f"{ours}.", f" {ours}", ours[:-1], ours.upper() + "X"]
    texts += [ours.replace(".", ":"), ours.partition(".")[0], f"{ours.partition('.')[0]}.{'9' * 18}"]
    for text in texts:
        found = await h.backend.changes(text)
        if text != follower.cursor:  # one of the mangled texts may be what an earlier cursor was
            equal((found.changes, found.gap), ([], True), f"changes, gap after {text[:60]!r}")
        equal((await h.backend.changes(found.cursor)).gap, False, "a gap after the cursor that was answered")
    equal((await h.backend.changes(ours)).gap, False, "a gap after a cursor of this store")


@case(needs=_NEEDS)
async def too_many_changes_are_a_gap_and_it_goes_on(h: Harness) -> None:
    follower = await follow(h)
    start = follower.cursor
    ids = await h.enqueue(CHANGES_MAX)
    equal(await follower.last(), _all(ids, State.PENDING), "told, as many as one answer may have")
    equal(len(await h.claim(1)), 1, "claimed")
    equal(len(await follower.news()), 1, "told of one more")
    found = await h.backend.changes(start)
    equal((found.changes, found.gap), ([], True), "changes, gap, where there is one too many")
    (job,) = await h.claim(1)
    equal(await Follower(h.backend, found.cursor).last(), {job.id: State.RUNNING}, "told after the gap")
    equal(await follower.last(), {job.id: State.RUNNING}, "told to who is not behind")


# ---- transactions of the caller's own ------------------------------------------------------------------------


@case(needs=_BOUND)
async def a_transaction_is_told_of_with_its_commit(h: Harness) -> None:
    job = await h.start()
    follower = await follow(h)
    connection = await h.connect()
    bound = h.backend.bind(connection.raw)
    await connection.begin()
    spec = h.spec()
    await bound.enqueue([spec])
    await bound.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
    equal(await follower.news(), [], "told before the commit")
    await connection.commit()
    equal(await follower.last(), {spec.id: State.PENDING, job.id: State.SUCCEEDED}, "told after the commit")
    equal(await follower.news(), [], "told once more")


@case(needs=_BOUND)
async def a_transaction_that_is_rolled_back_is_not_told_of(h: Harness) -> None:
    job = await h.start()
    follower = await follow(h)
    connection = await h.connect()
    bound = h.backend.bind(connection.raw)
    await connection.begin()
    await bound.enqueue(h.specs(3))
    await bound.settle([Settlement(id=job.id, token=job.token, state=State.FAILED)])
    await connection.rollback()
    equal(await follower.news(), [], "told after the rollback")
    kept = await h.add()
    equal(await follower.last(), {kept: State.PENDING}, "told of a later move")


@case(needs=_BOUND)
async def a_call_that_is_refused_in_a_transaction_is_not_told_of(h: Harness) -> None:
    unique = Unique(key="k", on_conflict="refuse")
    await h.add(unique=unique)
    follower = await follow(h)
    connection = await h.connect()
    bound = h.backend.bind(connection.raw)
    await connection.begin()
    spec = h.spec()
    await bound.enqueue([spec])
    await raises(UniqueConflict, bound.enqueue([h.spec(), h.spec(unique=unique)]), "enqueue under a held key")
    await connection.commit()
    equal(await follower.states(), {spec.id: [State.PENDING]}, "told")


# ---- moves to another store ----------------------------------------------------------------------------------


@case(needs=(*_NEEDS, "transfer"))
async def jobs_that_go_to_another_store_or_come_from_one_are_not_told(h: Harness) -> None:
    other = other_store(h)
    for state in (State.SCHEDULED, State.SUCCEEDED, State.PENDING):
        await h.put(state)
    follower = await follow(h)
    await move_all(h.backend, other)
    equal(await follower.news(), [], "told of jobs that left")
    await move_all(other, h.backend)
    equal(await follower.news(), [], "told of jobs that came")
    (job,) = await h.claim(5)
    equal(await follower.last(), {job.id: State.RUNNING}, "told of a job that came, when it moves")
