"""Opening, closing, reopening: the jobs are in the store, not in the connection."""

from __future__ import annotations

from ...backends.base import Backend, Capabilities, Verdict
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
