"""A caller who may use some queues only: what is of another queue does not exist for him (FAILURES C19)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.admin import Admin
from packhorse.backends.base import (
    Backend,
    Firing,
    Keep,
    Lapse,
    Limit,
    Note,
    Query,
    QueueChange,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Transfer,
    Verdict,
    WorkerInfo,
    queue_topic,
    worker_topic,
)
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.scoped import ScopedBackend
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.chance import Chance, named_id
from packhorse.clock import ManualClock
from packhorse.errors import (
    IdempotencyConflict,
    InvalidOption,
    NotFound,
    OutOfScope,
    UnknownParent,
    Unsupported,
)
from packhorse.job import JobSpec, State

from ..worker.working import work

CHANCE = Chance(5)
KEEP_NOTHING = Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0)


def spec(queue: str, **fields: Any) -> JobSpec:
    return JobSpec(**{"id": CHANCE.id(1_700_000_000_000), "type": "work", "queue": queue, **fields})


class World:
    """A store with the queues `mine`, `also` and `theirs`; `one` may use `mine`, `two` may use `mine` and `also`."""

    def __init__(self, backend: Backend, clock: ManualClock) -> None:
        self.all = backend
        self.clock = clock
        self.one = ScopedBackend(backend, frozenset({"mine"}))
        self.two = ScopedBackend(backend, frozenset({"mine", "also"}))

    async def add(self, queue: str, **fields: Any) -> str:
        made = spec(queue, **fields)
        await self.all.enqueue([made])
        self.clock.advance(1)
        return made.id

    async def fail(self, queue: str, **fields: Any) -> str:
        job_id = await self.add(queue, **fields)
        (job,) = await self.all.claim([queue], 1, 30_000, "w")
        assert job.id == job_id
        await self.all.settle([Settlement(id=job.id, token=job.token, state=State.FAILED)])
        return job_id

    async def state(self, job_id: str) -> State | None:
        (record,) = await self.all.get([job_id])
        return None if record is None else record.state


@pytest.fixture(params=["memory", "sqlite"])
def on_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Answer what runs a scenario in a world of its own."""

    def run(scenario: Any) -> None:
        async def main() -> None:
            clock = ManualClock()
            backend: Backend
            if request.param == "memory":
                backend = MemoryBackend(MemoryStore(clock))
            else:
                backend = SQLiteBackend(f"sqlite:///{tmp_path}/jobs.db", clock)
                await backend.migrate()
            await backend.open()
            try:
                await scenario(World(backend, clock))
            finally:
                await backend.close()

        work(main)

    return run


# ---- looking ---------------------------------------------------------------------------------------------


def test_get_answers_none_for_the_id_of_another_queue(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        mine, theirs = await w.add("mine"), await w.add("theirs")
        found = await w.one.get([theirs, mine, "never"])
        assert [record and record.id for record in found] == [None, mine, None]

    on_world(scenario)


def test_find_shows_the_own_queues_only_whatever_is_asked(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        mine = [await w.add("mine", tags=("t",), key="k", workflow="wf") for _ in range(3)]
        also = await w.add("also", tags=("t",))
        await w.add("theirs", tags=("t",), key="k", workflow="wf")

        async def ids(backend: Backend, **query: Any) -> list[str]:
            return [job.id for job in (await backend.find(Query(**query))).jobs]

        assert await ids(w.one) == mine[::-1]
        assert await ids(w.one, workflow="wf") == mine[::-1]
        assert await ids(w.one, tag="t", key="k", oldest_first=True) == mine
        assert await ids(w.one, queue="theirs") == []
        assert await ids(w.one, queue="also") == []
        assert await ids(w.two, queue="also") == [also]
        assert await ids(w.two) == [also, *mine[::-1]]
        for none_in_one_or_all in (Query(tag="none"), Query(key="k")):
            assert (await w.two.find(none_in_one_or_all)).next is None

    on_world(scenario)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("oldest_first", [False, True])
def test_a_walk_over_several_queues_meets_each_job_once_in_order(on_world: Any, limit: int, oldest_first: bool) -> None:
    async def scenario(w: World) -> None:
        order = ["mine", "also", "theirs", "also", "also", "mine", "theirs", "mine", "mine", "also", "mine", "theirs"]
        ids = [(queue, await w.add(queue, payload=b'{"n":1}')) for queue in order]
        wanted = [job_id for queue, job_id in ids if queue != "theirs"]
        if not oldest_first:
            wanted.reverse()
        met, cursor = [], None
        for _ in range(20):
            page = await w.two.find(Query(limit=limit, oldest_first=oldest_first, cursor=cursor))
            assert len(page.jobs) <= limit
            assert all(job.payload == b'{"n":1}' for job in page.jobs)
            met += [job.id for job in page.jobs]
            cursor = page.next
            if cursor is None:
                break
        assert met == wanted

    on_world(scenario)


@pytest.mark.parametrize("cursor", ["", "x", "12", "eyJ0aGVpcnMiOm51bGx9", "eyJtaW5lIjoieCJ9", "A" * 20_000, "é"])
def test_a_cursor_that_no_page_gave_is_refused(on_world: Any, cursor: str) -> None:
    async def scenario(w: World) -> None:
        await w.add("mine")
        with pytest.raises(InvalidOption):
            await w.two.find(Query(cursor=cursor))

    on_world(scenario)


def test_counts_queues_and_workers_are_those_of_the_own_queues(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        for queue in ("mine", "also", "theirs"):
            await w.add(queue)
            await w.all.queues([QueueChange(queue=queue, capacity=5)])
        await w.all.heartbeat(WorkerInfo(id="w1", queues=("mine", "theirs"), types=("secret",)), 30_000)
        await w.all.heartbeat(WorkerInfo(id="w2", queues=("theirs",)), 30_000)
        await w.all.heartbeat(WorkerInfo(id="w3", queues=("mine",), types=("work",)), 30_000)
        assert set(await w.one.counts()) == {"mine"}
        assert set(await w.two.counts()) == {"mine", "also"}
        assert set(await w.one.queues()) == {"mine"}
        assert [(one.id, one.queues, one.types) for one in await w.one.workers()] == [
            ("w1", ("mine",), ()),
            ("w3", ("mine",), ("work",)),
        ]

    on_world(scenario)


def test_workflows_are_counted_by_the_jobs_of_the_own_queues(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        await w.add("mine", workflow="a")
        await w.add("theirs", workflow="a")
        await w.add("theirs", workflow="b")
        await w.add("also", workflow="c")
        assert [(one.id, one.states) for one in await w.one.workflows()] == [("a", {State.PENDING: 1})]
        assert [one.id for one in await w.two.workflows()] == ["c", "a"]
        assert [one.id for one in await w.two.workflows(1)] == ["c"]
        assert [one.id for one in await w.two.workflows(5, "c")] == ["a"]
        with pytest.raises(NotFound):
            await Admin(w.one).workflows.show("b")

    on_world(scenario)


# ---- the way of a job ------------------------------------------------------------------------------------


def test_enqueue_into_another_queue_is_refused_and_stores_nothing(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        with pytest.raises(OutOfScope, match="'theirs'"):
            await w.one.enqueue([spec("mine"), spec("theirs")])
        assert await w.all.counts() == {}
        assert (await w.one.enqueue([spec("mine")]))[0].created

    on_world(scenario)


def test_a_parent_of_another_queue_is_as_unknown_as_one_that_never_was(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        theirs, mine = await w.add("theirs"), await w.add("mine")
        messages = set()
        for parent in (theirs, CHANCE.id(1)):
            with pytest.raises(UnknownParent) as raised:
                await w.one.enqueue([spec("mine", after=(parent,))])
            messages.add(str(raised.value).replace(parent, "ID"))
        assert len(messages) == 1
        parent = spec("mine")
        answers = await w.one.enqueue([parent, spec("mine", after=(parent.id, mine))])
        assert all(answer.created for answer in answers)

    on_world(scenario)


def test_an_id_of_another_queue_makes_no_way_in(on_world: Any) -> None:
    """Neither as an idempotency key that answers with a foreign job, nor as a parent under its own name."""

    async def scenario(w: World) -> None:
        named, plain = named_id("x", "order-1"), await w.add("theirs")
        await w.add("theirs", id=named)
        with pytest.raises(IdempotencyConflict):
            await w.one.enqueue([spec("mine", id=named)])
        with pytest.raises(IdempotencyConflict):
            await w.one.enqueue([spec("mine", id=plain), spec("mine", after=(plain,))])

    on_world(scenario)


def test_claims_are_of_the_own_queues_only(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        mine = await w.add("mine")
        await w.add("theirs")
        for queues in (["theirs"], ["mine", "theirs"]):
            with pytest.raises(OutOfScope):
                await w.one.claim(queues, 5, 30_000, "w")
        (job,) = await w.one.claim(["mine"], 5, 30_000, "w")
        assert job.id == mine
        assert await w.one.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)]) == [Verdict.APPLIED]

    on_world(scenario)


def test_a_worker_is_its_scopes_own_even_where_another_has_its_name(on_world: Any) -> None:
    """Whoever beats or retires by a foreign worker's name gets neither its tokens nor ends its jobs."""

    async def scenario(w: World) -> None:
        theirs, mine = await w.add("theirs"), await w.add("mine")
        await w.all.claim(["theirs"], 1, 30_000, "w")
        assert (await w.one.heartbeat(WorkerInfo(id="w", queues=("mine", "theirs")), 30_000)).held == {}
        assert await w.one.retire("w", "gone") == []
        assert await w.state(theirs) is State.RUNNING
        (job,) = await w.one.claim(["mine"], 1, 30_000, "w")
        note = Note(id=job.id, token=job.token, progress=0.5)
        pulse = await w.one.heartbeat(WorkerInfo(id="w", queues=("mine", "theirs")), 30_000, [note])
        assert pulse.held == {mine: job.token}
        assert [(one.id, one.queues) for one in await w.one.workers()] == [("w", ("mine",))]
        (record,) = await w.one.get([mine])
        assert record is not None
        assert (record.worker, record.progress) == ("w", 0.5)
        assert [one.worker for one in (await w.one.find(Query())).jobs] == ["w"]
        assert len(await w.one.retire("w", "gone")) == 1
        assert (await w.state(mine), await w.state(theirs)) == (State.PENDING, State.RUNNING)

    on_world(scenario)


def test_a_tick_names_lapses_of_the_own_queues_only(on_world: Any) -> None:
    """It moves the jobs of all, as any tick would; which those of others were is not the caller's to know."""

    async def scenario(w: World) -> None:
        theirs, mine = await w.add("theirs"), await w.add("mine")
        await w.all.claim(["theirs", "mine"], 2, 1, "w")
        w.clock.advance(1_000)
        taken: list[Lapse] = []
        one = ScopedBackend(w.all, frozenset({"mine"}), taken.extend)
        ticked = await one.tick(100, Keep())
        assert [lapse.id for lapse in ticked.lapses] == [mine]
        assert [lapse.id for lapse in taken] == [theirs], "the server hears of them"
        assert (await w.state(mine), await w.state(theirs)) == (State.PENDING, State.PENDING)

    on_world(scenario)


def test_follow_ups_stay_in_the_own_queues(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        theirs = await w.add("theirs")
        await w.add("mine")
        (job,) = await w.one.claim(["mine"], 1, 30_000, "w")

        def end(*follow_ups: JobSpec) -> list[Settlement]:
            return [Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, follow_ups=follow_ups)]

        with pytest.raises(OutOfScope):
            await w.one.settle(end(spec("theirs")))
        with pytest.raises(UnknownParent):
            await w.one.settle(end(spec("mine", after=(theirs,))))
        assert await w.state(job.id) is State.RUNNING
        follow_up = spec("mine")
        assert await w.one.settle(end(follow_up)) == [Verdict.APPLIED]
        assert await w.state(follow_up.id) is State.PENDING

    on_world(scenario)


def test_a_tick_moves_all_on_but_drops_nothing_and_tells_of_the_own_schedules(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        failed = await w.fail("theirs")
        due = await w.add("theirs", delay_ms=10)
        for queue in ("mine", "theirs"):
            definition = Schedule(name=f"of-{queue}", spec=spec(queue), every_ms=1_000)
            await w.all.schedules([ScheduleChange(name=definition.name, define=definition)])
        w.clock.advance(1_000_000)
        ticked = await w.one.tick(100, KEEP_NOTHING)
        assert [schedule.name for schedule in ticked.schedules] == ["of-mine"]
        assert (await w.state(failed), await w.state(due)) == (State.FAILED, State.PENDING)

    on_world(scenario)


def test_a_bell_of_another_queue_stays_silent(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        with w.one.watch([queue_topic("theirs")]) as theirs, w.one.watch([queue_topic("mine")]) as mine:
            await w.add("theirs")
            await w.add("mine")
            assert await mine.wait(30_000)
            assert not await theirs.wait(0)
        await w.add("mine")
        (job,) = await w.one.claim(["mine"], 1, 30_000, "w")
        with w.one.watch([worker_topic("w")]) as bell:
            await w.one.cancel([job.id])
            assert await bell.wait(30_000)

    on_world(scenario)


# ---- steering --------------------------------------------------------------------------------------------


def test_steering_the_job_of_another_queue_answers_missing_and_changes_nothing(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        live, ended = await w.add("theirs"), await w.fail("also")
        mine, failed = await w.add("mine"), await w.fail("mine", priority=0)
        never = CHANCE.id(1)
        assert await w.one.cancel([live, mine, never]) == [Steered.MISSING, Steered.DONE, Steered.MISSING]
        reruns = [Rerun(id=ended), Rerun(id=failed), Rerun(id=never)]
        assert await w.one.rerun(reruns) == [Steered.MISSING, Steered.DONE, Steered.MISSING]
        assert await w.one.delete([live, ended, mine]) == [Steered.MISSING, Steered.MISSING, Steered.DONE]
        assert (await w.state(live), await w.state(ended)) == (State.PENDING, State.FAILED)

    on_world(scenario)


def test_a_rerun_does_not_move_a_job_to_another_queue(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        mine = await w.fail("mine")
        with pytest.raises(OutOfScope):
            await w.one.rerun([Rerun(id=mine, queue="theirs")])
        assert await w.state(mine) is State.FAILED
        assert await w.two.rerun([Rerun(id=mine, queue="also")]) == [Steered.DONE]
        assert await w.one.get([mine]) == [None]

    on_world(scenario)


def test_settings_of_other_queues_and_limits_are_not_the_callers(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        with pytest.raises(OutOfScope):
            await w.one.queues([QueueChange(queue="mine", paused=True), QueueChange(queue="theirs", paused=True)])
        assert await w.all.queues() == {}
        assert (await w.one.queues([QueueChange(queue="mine", paused=True)]))["mine"].paused
        await w.all.limits([Limit(type="work", concurrency=1)])
        assert [limit.type for limit in await w.one.limits()] == ["work"]
        assert [limit.concurrency for limit in await w.one.limits(about=("work", None))] == [1]
        with pytest.raises(OutOfScope):
            await w.one.limits([Limit(type="work", concurrency=9)])

    on_world(scenario)


def test_schedules_are_those_whose_jobs_are_of_the_own_queues(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        def change(name: str, queue: str) -> ScheduleChange:
            return ScheduleChange(name=name, define=Schedule(name=name, spec=spec(queue), every_ms=60_000))

        await w.all.schedules([change("theirs", "theirs")])
        assert [one.name for one in await w.one.schedules([change("own", "mine")])] == ["own"]
        for refused in (change("own", "theirs"), change("theirs", "mine")):
            with pytest.raises(OutOfScope):
                await w.one.schedules([change("new", "mine"), refused])
        with pytest.raises(NotFound):
            await w.one.schedules([ScheduleChange(name="theirs", paused=True)])
        await w.one.schedules([ScheduleChange(name="theirs", removed=True)])
        assert {one.name: one.paused for one in await w.all.schedules()} == {"own": False, "theirs": False}
        await w.one.schedules([ScheduleChange(name="own", removed=True)])
        assert [one.name for one in await w.all.schedules()] == ["theirs"]

    on_world(scenario)


def test_slots_of_another_queues_schedule_are_not_fired_and_not_held_up(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        definition = Schedule(name="theirs", spec=spec("theirs"), every_ms=60_000, overlap="skip")
        (stored,) = await w.all.schedules([ScheduleChange(name="theirs", define=definition)])
        own = Schedule(name="own", spec=spec("mine"), every_ms=60_000)
        (mine,) = await w.one.schedules([ScheduleChange(name="own", define=own)])

        def firing(of: Schedule, *specs: JobSpec) -> Firing:
            end_ms = of.done_ms + 60_000
            return Firing(
                name=of.name,
                revision=of.revision,
                done_ms=of.done_ms,
                new_done_ms=end_ms,
                next_ms=end_ms + 60_000,
                specs=specs,
            )

        assert await w.one.fire([firing(stored, spec("mine")), firing(mine, spec("mine", schedule="own"))]) == [
            Verdict.STALE,
            Verdict.APPLIED,
        ]
        (mine,) = await w.one.schedules()
        for slot in (spec("theirs"), spec("mine", schedule="theirs")):
            with pytest.raises(OutOfScope):
                await w.one.fire([firing(mine, slot)])
        with pytest.raises(OutOfScope):
            await w.one.enqueue([spec("mine", schedule="theirs")])
        assert (await w.one.enqueue([spec("mine", schedule="own")]))[0].created

    on_world(scenario)


def test_what_is_of_the_whole_store_is_refused(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        for call in (
            w.one.migrate(),
            w.one.checkup(),
        ):
            with pytest.raises(OutOfScope):
                await call
        for move in (w.one.hand_over("x", 1), w.one.take_over(Transfer(source="x", number=1)), w.one.take_over()):
            with pytest.raises(Unsupported):
                await move
        with pytest.raises(Unsupported):
            w.one.bind(object())
        with pytest.raises(Unsupported):
            await w.one.changes()
        can = w.one.capabilities
        assert not (can.bind)
        assert not (can.transfer)
        assert not (can.changes)
        await w.one.close()
        assert await w.all.counts() == {}  # closing the view leaves the store open

    on_world(scenario)


def test_the_operators_verbs_reach_the_own_queues_only(on_world: Any) -> None:
    async def scenario(w: World) -> None:
        admin = Admin(w.two, w.clock)
        failed = [await w.fail(queue) for queue in ("mine", "also", "theirs")]
        theirs = await w.add("theirs")
        assert (await admin.stats()).states[State.FAILED] == 2
        assert [view.queue for view in await admin.queues()] == ["also", "mine"]
        assert (await admin.health()).pending == 0
        for verb in (admin.show, admin.why):
            with pytest.raises(NotFound):
                await verb(theirs)
        groups = await admin.group_failed(Query())
        assert groups.jobs == 2
        assert (await admin.rerun_matching(Query(), dry_run=True)).matched == 2
        assert [answer.answer for answer in await admin.cancel([theirs])] == [Steered.MISSING]
        assert (await admin.rerun_matching(Query())).answers[Steered.DONE] == 2
        with pytest.raises(OutOfScope):
            await admin.pause(["theirs"])
        assert (await admin.purge("theirs")).deleted == 0
        assert (await admin.delete_matching(Query())).answers[Steered.DONE] == 2
        assert await w.state(failed[2]) is State.FAILED
        assert await w.state(theirs) is State.PENDING

    on_world(scenario)
