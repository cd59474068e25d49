"""Opening, closing, reopening: the jobs are in the store, not in the connection."""

from __future__ import annotations

from ...backends.base import Backend, Capabilities, Limit, Note, QueueChange, Schedule, ScheduleChange, Verdict
from ...job import State, Unique
from .case import case, equal, true
from .harness import Harness


@case()
async def a_backend_says_what_it_can(h: Harness) -> None:
    true(isinstance(h.backend, Backend), "it is not a Backend")
    true(isinstance(h.backend.capabilities, Capabilities), "its capabilities are not Capabilities")
    for name in Capabilities.__struct_fields__:
        true(type(getattr(h.backend.capabilities, name)) is bool, f"{name} is not true or false")


@case()
async def opening_twice_is_harmless(h: Harness) -> None:
    job_id = await h.add()
    await h.backend.open()
    equal(await h.state(job_id), State.PENDING, "state")
    equal([job.id for job in await h.claim()], [job_id], "claimed")


@case()
async def migrating_again_is_harmless(h: Harness) -> None:
    job = await h.start()
    version = await h.backend.migrate()
    equal(await h.backend.migrate(), version, "version")
    equal(await (await h.open()).migrate(), version, "version on another connection")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case()
async def closing_twice_is_harmless(h: Harness) -> None:
    other = await h.open()
    job_id = (await other.enqueue([h.spec()]))[0].id
    await other.close()
    await other.close()
    equal(await h.state(job_id), State.PENDING, "state")


@case()
async def jobs_stay_when_the_connection_that_made_them_closes(h: Harness) -> None:
    other = await h.open()
    specs = [h.spec(), h.spec(delay_ms=9_000), h.spec(unique=Unique(key="k") if h.has("unique") else None)]
    await other.enqueue(specs)
    await other.close()
    again = await h.open()
    found = await again.get([spec.id for spec in specs])
    states = [job.state if job is not None else None for job in found]
    equal(states, [State.PENDING, State.SCHEDULED, State.PENDING], "states")


@case(needs=("durable", "limits", "schedules", "dependencies", "steps", "capacity"))
async def what_was_set_and_what_waits_outlives_all_connections(h: Harness) -> None:
    first = h.backend
    await first.limits([Limit(type="work", rate=1, period_ms=10**7, burst=3, concurrency=2)])
    define = ScheduleChange(name="nightly", define=Schedule(name="nightly", spec=h.spec(), every_ms=10**7), paused=True)
    await first.schedules([define])
    await first.queues([QueueChange(queue="default", capacity=4)])
    jobs = [await h.start(), await h.start()]
    await h.beat(notes=[Note(id=jobs[0].id, token=jobs[0].token, step="a", result=b"1")])
    child = await h.add(after=(jobs[0].id, jobs[1].id))
    wanted = (await first.limits(), await first.schedules(), await first.queues())
    await first.close()
    h.backend = await h.open()
    found = (await h.backend.limits(), await h.backend.schedules(), await h.backend.queues())
    equal(found, wanted, "limits, schedules and queues of a new connection")
    await h.enqueue(2)
    equal(await h.claim(5), [], "claimed while both slots are taken")
    equal((await h.record(jobs[0].id)).steps, {"a": b"1"}, "steps")
    for job in jobs:
        await h.settle(job)
    equal(await h.state(child), State.PENDING, "state of the child after both parents")
    equal(len(await h.claim(5)), 1, "claimed with one token left")


@case()
async def claimed_jobs_of_a_closed_connection_lapse_with_their_lease(h: Harness) -> None:
    job_id = await h.add()
    other = await h.open()
    await h.claim(worker="gone", backend=other)
    await other.close()
    equal(await h.state(job_id), State.RUNNING, "state after the close")
    equal(await h.claim(worker="w2"), [], "claimed before the lapse")
    equal((await h.pass_time(2 * h.lease_ms)).lapsed, 1, "lapsed")
    equal([job.id for job in await h.claim(worker="w2")], [job_id], "claimed after the lapse")


@case()
async def a_worker_may_go_on_over_a_new_connection(h: Harness) -> None:
    """The lease belongs to the worker, the token to the job: neither to a connection that was lost."""
    first = await h.open()
    await h.add()
    (job,) = await h.claim(backend=first)
    await first.close()
    second = await h.open()
    await h.advance(h.lease_ms // 2)
    equal(await h.beat(), {job.id: job.token}, "held")
    equal(await h.settle(job, backend=second), Verdict.APPLIED, "verdict")


@case()
async def closing_with_a_bell_hung_up_is_harmless(h: Harness) -> None:
    other = await h.open()
    bell = other.watch(["queue:default"])
    await other.close()
    await h.add()
    bell.close()
