"""Every move of `packhorse.job.TRANSITIONS` can be made, and no other: two cases from each row of that table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ...backends.base import Rerun, Settlement
from ...job import TERMINAL, TRANSITIONS, State
from .case import Case, add_case, equal
from .harness import Harness

Push = Callable[[Harness, str, str], Awaitable[object]]


def _settle(state: State) -> Push:
    async def push(h: Harness, job_id: str, token: str) -> None:
        delay_ms = 60_000 if state is State.SCHEDULED else 0
        tokens = {token, "", "0", "1"}
        await h.backend.settle([Settlement(id=job_id, token=each, state=state, delay_ms=delay_ms) for each in tokens])

    return push


async def _claim(h: Harness, job_id: str, token: str) -> None:
    await h.claim(5, worker="pusher")


async def _cancel(h: Harness, job_id: str, token: str) -> None:
    await h.backend.cancel([job_id])


async def _promote(h: Harness, job_id: str, token: str) -> None:
    for info in await h.backend.workers():  # the others live, so that only due jobs move
        await h.backend.heartbeat(info, 86_400_000)
    await h.advance(60_000 if h.clock is not None else 2 * h.step_ms)
    await h.tick()


async def _rerun(h: Harness, job_id: str, token: str) -> None:
    await h.backend.rerun([Rerun(id=job_id)])


async def _rerun_later(h: Harness, job_id: str, token: str) -> None:
    await h.backend.rerun([Rerun(id=job_id, delay_ms=60_000)])


async def _again(h: Harness, job_id: str, token: str) -> None:
    await h.backend.enqueue([h.spec(id=job_id)])


async def _again_later(h: Harness, job_id: str, token: str) -> None:
    await h.backend.enqueue([h.spec(id=job_id, delay_ms=60_000)])


async def _lapse(h: Harness, job_id: str, token: str) -> None:
    await h.backend.retire("w1", "pushed")


async def _parents_of(h: Harness, job_id: str) -> list[str]:
    record = (await h.backend.get([job_id]))[0]
    return list(record.after) if record is not None else []


async def _end_parents(h: Harness, job_id: str, state: State) -> None:
    for parent in await _parents_of(h, job_id):
        for job in await h.claim(1, "parents", worker="parental"):
            equal(job.id, parent, "parent that started")
            await h.settle(job, state)


async def _free(h: Harness, job_id: str, token: str) -> None:
    await _end_parents(h, job_id, State.SUCCEEDED)


async def _fail_parents(h: Harness, job_id: str, token: str) -> None:
    await _end_parents(h, job_id, State.FAILED)


async def _rerun_with_parents(h: Harness, job_id: str, token: str) -> None:
    await h.backend.rerun([Rerun(id=each) for each in [*await _parents_of(h, job_id), job_id]])


async def _again_waiting(h: Harness, job_id: str, token: str) -> None:
    if h.has("dependencies"):
        await h.backend.enqueue([h.spec(id=job_id, after=(await h.add(queue="more-parents"),))])


#: Everything that can be tried to bring a job into a state.
PUSHES: dict[State, tuple[Push, ...]] = {
    State.WAITING: (_again, _again_waiting, _rerun_with_parents),
    State.SCHEDULED: (_settle(State.SCHEDULED), _rerun_later, _again_later, _free),
    State.PENDING: (_settle(State.PENDING), _promote, _rerun, _again, _lapse, _free),
    State.RUNNING: (_claim,),
    State.SUCCEEDED: (_settle(State.SUCCEEDED),),
    State.FAILED: (_settle(State.FAILED), _lapse),
    State.CANCELLED: (_settle(State.CANCELLED), _cancel, _fail_parents),
}


async def put(h: Harness, source: State, target: State) -> tuple[str, str]:
    """Bring a job into `source`, such that there is a way to `target` if the table has one.

    A scheduled one is due soon, so that it can be promoted. To wait again it needs a parent, and to be scheduled when
    that ends a delay.
    """
    fields: dict[str, object] = {"max_attempts": 9}
    if source is State.SCHEDULED or (source, target) == (State.WAITING, State.SCHEDULED):
        fields["delay_ms"] = 60_000 if h.clock is not None else h.step_ms
    if target is State.WAITING and h.has("dependencies"):
        parent, _ = await h.put(State.SUCCEEDED, queue="parents")
        fields["after"] = (parent,)
    return await h.put(source, **fields)


async def _clean_up(h: Harness, job_id: str) -> None:
    """Leave nothing that a later push could take for its own."""
    await h.backend.retire("w1", "end of the push")
    await h.backend.cancel([job_id, *await _parents_of(h, job_id)])


def _may(source: State, target: State) -> Case:
    async def body(h: Harness) -> None:
        reached = set()
        for push in PUSHES[target]:
            job_id, token = await put(h, source, target)
            await push(h, job_id, token)
            reached.add(await h.state(job_id))
            await _clean_up(h, job_id)
        equal(target in reached, True, f"a {source} job that was pushed got to {reached}, to {target}")

    needs = ("dependencies",) if State.WAITING in {source, target} else ()
    return Case("moves", f"a_{source}_job_may_become_{target}", body, (), needs)


def _never(source: State, target: State) -> Case:
    async def body(h: Harness) -> None:
        for push in PUSHES[target]:
            job_id, token = await put(h, source, target)
            before = await h.record(job_id)
            await push(h, job_id, token)
            after = await h.record(job_id)
            if after.state is not source and after.state in TRANSITIONS[source]:
                after = before  # the push took a move that is allowed, just not to `target`
            equal(after, before, f"a {source} job that was pushed to {target}")
            await _clean_up(h, job_id)

    needs = ("dependencies",) if source is State.WAITING else ()
    return Case("moves", f"a_{source}_job_never_becomes_{target}", body, (), needs)


for _source in State:
    for _target in State:
        if _target in TRANSITIONS[_source]:
            add_case(_may(_source, _target))
        elif _source is not _target or _source in TERMINAL:
            add_case(_never(_source, _target))
