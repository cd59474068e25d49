"""Unique keys: one live job holds each, and lets go in the very move that ends it."""

from __future__ import annotations

import asyncio

from ...backends.base import Rerun, Settlement, Steered, Verdict
from ...errors import UniqueConflict
from ...job import TERMINAL, State, Unique
from .case import case, equal, raises, true
from .harness import Harness

_KEY = Unique(key="k")
_NEEDS = ("unique",)


async def _free(h: Harness, what: str) -> None:
    """Fail unless the key can be taken, then let go of it again."""
    answer = await h.try_add(unique=_KEY)
    true(answer.created, f"the key is not free {what}")
    await h.backend.delete([answer.id])


async def _held(h: Harness, holder: str, what: str) -> None:
    for backend in (h.backend, await h.open()):
        answer = (await backend.enqueue([h.spec(unique=_KEY)]))[0]
        equal((answer.id, answer.created), (holder, False), f"holder of the key {what}")


@case(needs=_NEEDS)
async def a_held_key_answers_with_its_holder(h: Harness) -> None:
    holder = await h.add(unique=_KEY)
    spec = h.spec(unique=_KEY)
    (answer,) = await h.backend.enqueue([spec])
    equal((answer.id, answer.created), (holder, False), "answer")
    equal(await h.state(spec.id), None, "the second job")
    equal((await h.record(holder)).unique, "k", "unique")


@case(needs=_NEEDS)
async def a_key_is_held_while_its_job_lives(h: Harness) -> None:
    holder = await h.add(unique=_KEY, delay_ms=h.step_ms, max_attempts=9)
    await _held(h, holder, "while scheduled")
    await h.pass_time(2 * h.step_ms)
    await _held(h, holder, "while pending")
    (job,) = await h.claim()
    await _held(h, holder, "while running")
    await h.settle(job, State.SCHEDULED, delay_ms=h.step_ms)
    await _held(h, holder, "while waiting for a retry")
    await h.pass_time(2 * h.step_ms)
    (job,) = await h.claim()
    await h.settle(job, State.PENDING, refund=True)
    await _held(h, holder, "after a release")
    (job,) = await h.claim()
    await h.pass_time(2 * h.lease_ms)
    await _held(h, holder, "after a lapse")
    (job,) = await h.claim()
    await h.backend.cancel([holder])
    await _held(h, holder, "while it is asked to stop")
    await h.settle(job, State.FAILED)
    await _free(h, "after failed")


@case("B22", needs=_NEEDS)
async def every_end_frees_the_key(h: Harness) -> None:
    for state in TERMINAL:
        await h.put(state, unique=_KEY)
        await _free(h, f"after {state}")
    for delay_ms in (0, 9_000):
        await h.backend.cancel([await h.add(unique=_KEY, delay_ms=delay_ms)])
        await _free(h, "after a cancel")
        await h.backend.delete([await h.add(unique=_KEY, delay_ms=delay_ms)])
        await _free(h, "after a delete")
    job = await h.start(unique=_KEY)
    await h.backend.cancel([job.id])
    await h.settle(job, State.PENDING)
    await _free(h, "after a release of a job that was asked to stop")
    await h.start(unique=_KEY, max_attempts=1)
    await h.backend.retire("w1", "gone")
    await _free(h, "after its worker was retired")


@case(needs=_NEEDS)
async def the_end_of_a_job_frees_only_a_key_it_holds(h: Harness) -> None:
    """An ended job that is deleted must not take the key from the one that holds it now."""
    old, token = await h.put(State.SUCCEEDED, unique=_KEY)
    holder = await h.add(unique=_KEY)
    stale = Settlement(id=old, token=token, state=State.FAILED)
    equal(await h.backend.settle([stale]), [Verdict.STALE], "verdict")
    equal(await h.backend.cancel([old]), [Steered.ENDED], "answer of cancel")
    await _held(h, holder, "after settling and cancelling its former holder")
    await h.backend.delete([old])
    await _held(h, holder, "after deleting its former holder")


@case(needs=_NEEDS)
async def a_stale_settlement_frees_no_key(h: Harness) -> None:
    job = await h.start(unique=_KEY, max_attempts=9)
    await h.settle(job, State.PENDING)
    equal(await h.settle(job, State.SUCCEEDED), Verdict.STALE, "verdict")
    await _held(h, job.id, "after a stale settlement")


@case(needs=_NEEDS)
async def a_key_belongs_to_its_queue(h: Harness) -> None:
    first, second = await h.try_add(unique=_KEY, queue="a"), await h.try_add(unique=_KEY, queue="b")
    true(first.created and second.created, "the same key in two queues")
    equal((await h.try_add(unique=_KEY, queue="a")).id, first.id, "holder in a")
    equal((await h.try_add(unique=_KEY, queue="b")).id, second.id, "holder in b")
    true((await h.try_add(unique=Unique(key="K"), queue="a")).created, "keys differ by case")


@case(needs=_NEEDS)
async def a_key_within_one_call_goes_to_the_first(h: Harness) -> None:
    specs = [h.spec(unique=_KEY), h.spec(), h.spec(unique=_KEY), h.spec(unique=Unique(key="other"))]
    answers = await h.backend.enqueue(specs)
    equal([answer.created for answer in answers], [True, True, False, True], "created")
    equal(answers[2].id, specs[0].id, "holder")
    equal(len(await h.all()), 3, "jobs")


@case(needs=_NEEDS)
async def repeating_the_enqueue_of_the_holder_answers_itself(h: Harness) -> None:
    for on_conflict in ("existing", "refuse"):
        spec = h.spec(unique=Unique(key=on_conflict, on_conflict=on_conflict))
        await h.backend.enqueue([spec])
        (answer,) = await h.backend.enqueue([spec])
        equal((answer.id, answer.created), (spec.id, False), f"answer to the repeated call, {on_conflict}")


@case(needs=_NEEDS)
async def refuse_raises_and_stores_nothing_of_the_call(h: Harness) -> None:
    holder = await h.add(unique=_KEY)
    refuse = Unique(key="k", on_conflict="refuse")
    specs = [h.spec(), h.spec(unique=Unique(key="new")), h.spec(unique=refuse), h.spec()]
    error = await raises(UniqueConflict, h.backend.enqueue(specs), "enqueue with on_conflict='refuse'")
    equal((error.unique, error.holder), ("k", holder), "key, holder")
    equal([job.id for job in await h.all()], [holder], "jobs")
    true((await h.try_add(unique=Unique(key="new"))).created, "the refused call still holds a key")


@case(needs=_NEEDS)
async def refuse_sees_the_keys_of_its_own_call(h: Harness) -> None:
    specs = [h.spec(unique=_KEY), h.spec(unique=Unique(key="k", on_conflict="refuse"))]
    error = await raises(UniqueConflict, h.backend.enqueue(specs), "two of one key in one call")
    equal(error.holder, specs[0].id, "holder")
    equal(await h.all(), [], "jobs")


@case(needs=_NEEDS)
async def refuse_with_a_free_key_stores_the_job(h: Harness) -> None:
    refuse = Unique(key="k", on_conflict="refuse")
    await h.put(State.SUCCEEDED, unique=refuse)
    true((await h.try_add(unique=refuse)).created, "a free key was refused")


@case("B33", needs=_NEEDS)
async def fifty_racers_all_get_the_same_job(h: Harness) -> None:
    connections = await h.several(5)
    for turn in range(6):
        key = Unique(key=f"race-{turn}")
        calls = [connections[racer % 5].enqueue([h.spec(unique=key), h.spec(queue="noise")]) for racer in range(50)]
        answers = [answer for answer, _ in await asyncio.gather(*calls)]
        equal(sum(answer.created for answer in answers), 1, "jobs created")
        equal(len({answer.id for answer in answers}), 1, "different answers")
        holder = answers[0].id
        equal([job.id for job in await h.all(queue="default", states=(State.PENDING,))], [holder], "jobs stored")
        await h.backend.cancel([holder])


@case("B33", needs=_NEEDS)
async def racers_against_the_end_of_the_holder_leave_one(h: Harness) -> None:
    """While the key is freed, others take it: never two live holders, never an answer that names nobody."""
    connections = await h.several(5)
    for _ in range(10):
        job = await h.start(unique=_KEY)
        calls = [backend.enqueue([h.spec(unique=_KEY)]) for backend in connections for _ in range(3)]
        answers = await asyncio.gather(*calls[:7], h.settle(job, backend=connections[0]), *calls[7:])
        live = await h.all(queue="default", states=(State.PENDING, State.RUNNING))
        true(len(live) <= 1, f"{len(live)} live jobs hold one key")
        named = {each[0].id for each in answers if isinstance(each, list)}
        equal(named <= {job.id, *(other.id for other in live)}, True, "answers name the old or the new holder")
        await h.backend.delete([other.id for other in live])


@case("B33", needs=_NEEDS)
async def a_second_enqueue_leaves_the_running_holder_untouched(h: Harness) -> None:
    job = await h.start(unique=_KEY, payload=b"[1]")
    before = await h.record(job.id)
    for on_conflict in ("existing", "refuse"):
        spec = h.spec(unique=Unique(key="k", on_conflict=on_conflict), payload=b"[2]", delay_ms=9, priority=0)
        await asyncio.gather(h.backend.enqueue([spec]), return_exceptions=True)
        equal(await h.record(job.id), before, "the running holder")
    equal(await h.settle(job), Verdict.APPLIED, "verdict")


@case(needs=_NEEDS)
async def rerun_needs_the_key_and_takes_it(h: Harness) -> None:
    old, _ = await h.put(State.FAILED, unique=_KEY)
    holder = await h.add(unique=_KEY)
    before = await h.record(old)
    edits = Rerun(id=old, payload=b"[2]", priority=0)
    equal(await h.backend.rerun([edits]), [Steered.CONFLICT], "answer while another holds the key")
    equal(await h.record(old), before, "record after the conflict")
    await h.backend.delete([holder])
    equal(await h.backend.rerun([Rerun(id=old)]), [Steered.DONE], "answer when the key is free")
    await _held(h, old, "after the rerun")


@case(needs=_NEEDS)
async def of_two_ended_jobs_of_one_key_one_is_rerun(h: Harness) -> None:
    first, _ = await h.put(State.FAILED, unique=_KEY)
    second, _ = await h.put(State.FAILED, unique=_KEY)
    reruns = [Rerun(id=first), Rerun(id=second)]
    equal(await h.backend.rerun(reruns), [Steered.DONE, Steered.CONFLICT], "answers")
    equal((await h.state(first), await h.state(second)), (State.PENDING, State.FAILED), "states")


@case(needs=_NEEDS)
async def rerun_into_another_queue_takes_the_key_there(h: Harness) -> None:
    old, _ = await h.put(State.FAILED, unique=_KEY)
    blocker = await h.add(unique=_KEY, queue="b")
    equal(await h.backend.rerun([Rerun(id=old, queue="b")]), [Steered.CONFLICT], "answer while the key is held there")
    equal(((await h.record(old)).queue, await h.state(old)), ("default", State.FAILED), "queue, state")
    await h.backend.delete([blocker])
    equal(await h.backend.rerun([Rerun(id=old, queue="b")]), [Steered.DONE], "answer when it is free")
    equal((await h.try_add(unique=_KEY, queue="b")).id, old, "holder there")
    await _free(h, "in the queue it left")
    (job,) = await h.claim(1, "b")
    await h.settle(job)
    true((await h.try_add(unique=_KEY, queue="b")).created, "the key is not free in the new queue")


@case(needs=_NEEDS)
async def a_repeated_id_takes_no_key(h: Harness) -> None:
    """The second spec of an id is not stored, so its key stays free, within one call as over two."""
    first = h.spec()
    again = h.spec(id=first.id, unique=_KEY)
    third = h.spec(unique=Unique(key="k", on_conflict="refuse"))
    answers = await h.backend.enqueue([first, again, third])
    equal([(answer.id, answer.created) for answer in answers[1:]], [(first.id, False), (third.id, True)], "answers")
    equal((await h.record(first.id)).unique, None, "key of the job whose id was repeated")
    equal((await h.try_add(unique=_KEY)).id, third.id, "holder")
