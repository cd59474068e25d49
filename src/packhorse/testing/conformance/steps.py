"""Durable steps: what a run has reached is kept while its token holds, and is there for the next attempt."""

from __future__ import annotations

import asyncio

from ... import codec
from ...backends.base import BATCH_MAX, Note, Rerun, Verdict, WorkerInfo
from ...job import Claimed, State
from .case import case, equal
from .harness import Harness

_NEEDS = ("steps",)
_NONSENSE = "nonsense"


def _step(job: Claimed, name: str, result: bytes = b"1", token: str | None = None) -> Note:
    return Note(id=job.id, token=job.token if token is None else token, step=name, result=result)


async def _steps(h: Harness, job_id: str) -> dict[str, bytes]:
    return (await h.record(job_id)).steps or {}


@case(needs=_NEEDS)
async def steps_are_kept_by_name_when_the_heartbeat_answers(h: Harness) -> None:
    job = await h.start()
    equal(await _steps(h, job.id), {}, "steps at first")
    held = await h.beat(notes=[_step(job, "charge", b'{"id":7}'), _step(job, "mail ü", b'"sent"')])
    equal(held, {job.id: job.token}, "held")
    wanted = {"charge": b'{"id":7}', "mail ü": b'"sent"'}
    equal((await h.record(job.id, await h.open())).steps, wanted, "steps on another connection")
    await h.beat(notes=[_step(job, "third", b"null")])
    equal(await _steps(h, job.id), {**wanted, "third": b"null"}, "steps after one more")


@case(needs=_NEEDS)
async def a_step_recorded_again_is_one_step(h: Harness) -> None:
    """The reply was lost: the same note again changes nothing."""
    job = await h.start()
    for _ in range(3):
        await h.beat(notes=[_step(job, "a", b"[1]"), _step(job, "b", b"[2]")])
    equal(await _steps(h, job.id), {"a": b"[1]", "b": b"[2]"}, "steps")


@case(needs=_NEEDS)
async def a_log_is_kept_like_a_step_and_written_anew(h: Harness) -> None:
    """Names that no step can have: what attempts logged, each under its own, the latest value of each."""
    job = await h.start(max_attempts=9)
    await h.beat(notes=[_step(job, "~log.1", b'{"lines":[1]}'), _step(job, "a")])
    longer = b'{"lines":[1,2,"' + b"x" * 32_000 + b'"]}'
    await h.beat(notes=[_step(job, "~log.1", longer)])
    await h.settle(job, State.PENDING)
    (again,) = await h.claim()
    await h.beat(notes=[_step(again, "~log.2", b'{"lines":[3]}'), _step(job, "~log.1", b'{"lines":["late"]}')])
    wanted = {"~log.1": longer, "~log.2": b'{"lines":[3]}', "a": b"1"}
    equal((await h.record(job.id, await h.open())).steps, wanted, "what is remembered")


@case(needs=_NEEDS)
async def a_step_is_no_progress_and_progress_no_step(h: Harness) -> None:
    job = await h.start()
    await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.5, text="half")])
    await h.beat(notes=[_step(job, "a")])
    record = await h.record(job.id)
    equal((record.progress, record.progress_note), (0.5, "half"), "progress, note after a step")
    await h.beat(notes=[Note(id=job.id, token=job.token, progress=0.6, text="more", step="b", result=b"2")])
    record = await h.record(job.id)
    equal((record.progress, record.progress_note, record.steps), (0.6, "more", {"a": b"1", "b": b"2"}), "all at once")


@case("B21", needs=_NEEDS)
async def a_step_of_a_job_that_is_not_held_is_not_kept(h: Harness) -> None:
    """A worker that was stopped and goes on must not tell the next attempt what it did."""
    old = await h.start(max_attempts=9)
    await h.beat(notes=[_step(old, "kept")])
    await h.settle(old, State.PENDING)
    pending = await h.beat(notes=[_step(old, "late")])
    equal((pending, await _steps(h, old.id)), ({}, {"kept": b"1"}), "held, steps while it is pending")
    (new,) = await h.claim(worker="w2")
    await h.beat(notes=[_step(old, "zombie"), _step(new, "nonsense", token=_NONSENSE)])
    equal(await _steps(h, new.id), {"kept": b"1"}, "steps while another runs it")
    await h.beat("w2", notes=[_step(new, "mine", b"2")])
    await h.settle(new)
    await h.beat("w2", notes=[_step(new, "after the end")])
    equal(await _steps(h, new.id), {"kept": b"1", "mine": b"2"}, "steps at the end")


@case(needs=_NEEDS)
async def steps_outlive_every_attempt(h: Harness) -> None:
    job = await h.start(max_attempts=9)
    wanted: dict[str, bytes] = {}
    for number, how in enumerate(("retry", "release", "lapse", "retire", "succeeded")):
        wanted[f"step {number}"] = b"%d" % number
        await h.beat(notes=[_step(job, f"step {number}", b"%d" % number)])
        if how == "retry":
            await h.settle(job, State.SCHEDULED, delay_ms=h.step_ms, error=h.error())
        elif how == "release":
            await h.settle(job, State.PENDING, refund=True)
        elif how == "retire":
            await h.backend.retire("w1", "gone")
        elif how == "succeeded":
            await h.settle(job)
        await h.pass_time(2 * h.lease_ms if how == "lapse" else h.step_ms + 1)
        equal(await _steps(h, job.id), wanted, f"steps after {how}")
        if how != "succeeded":
            (job,) = await h.claim()


@case(needs=_NEEDS)
async def a_rerun_keeps_steps_unless_the_payload_is_another(h: Harness) -> None:
    job = await h.start(payload=b"[1]")
    await h.beat(notes=[_step(job, "a")])
    await h.settle(job, State.FAILED)
    for rerun in (Rerun(id=job.id), Rerun(id=job.id, payload=b"[1]", queue="other", priority=1)):
        await h.backend.rerun([rerun])
        equal(await _steps(h, job.id), {"a": b"1"}, f"steps after {rerun}")
        (job,) = await h.claim(1, "default", "other")
        await h.settle(job, State.FAILED)
    await h.backend.rerun([Rerun(id=job.id, payload=b"[2]")])
    equal(await _steps(h, job.id), {}, "steps after a rerun with another payload")
    (job,) = await h.claim(1, "other")
    await h.beat(notes=[_step(job, "a", b"2")])
    equal(await _steps(h, job.id), {"a": b"2"}, "steps of the new run")


@case(needs=_NEEDS)
async def steps_go_with_their_job(h: Harness) -> None:
    job = await h.start()
    await h.beat(notes=[_step(job, "a")])
    await h.settle(job)
    await h.backend.delete([job.id])
    await h.backend.enqueue([h.spec(id=job.id)])
    equal(await _steps(h, job.id), {}, "steps of a new job under the id of a deleted one")


@case(needs=_NEEDS)
async def steps_belong_to_one_job(h: Harness) -> None:
    await h.enqueue(3)
    jobs = await h.claim(3)
    await h.beat(notes=[_step(job, "same", b"%d" % number) for number, job in enumerate(jobs)])
    equal([await _steps(h, job.id) for job in jobs], [{"same": b"%d" % number} for number in range(3)], "steps")


@case(needs=_NEEDS)
async def find_leaves_steps_out(h: Harness) -> None:
    """A list of jobs must not carry megabytes of what they remember."""
    job = await h.start()
    await h.beat(notes=[_step(job, "a")])
    equal([found.steps for found in await h.all()], [None], "steps in what find answers")


@case(needs=_NEEDS)
async def a_job_remembers_a_whole_batch_of_steps(h: Harness) -> None:
    job = await h.start()
    await h.beat(notes=[_step(job, f"s{number}", b"%d" % number) for number in range(BATCH_MAX)])
    steps = await _steps(h, job.id)
    equal((len(steps), steps.get("s0"), steps.get("s999")), (BATCH_MAX, b"0", b"999"), "number of steps, first, last")


@case("C13", needs=_NEEDS)
async def a_step_may_be_named_and_come_to_anything(h: Harness) -> None:
    job = await h.start()
    for name in ("", " ", "'; DROP TABLE steps; --", "🐴" * 60, "a\nb", "null", "[1]", "x" * 256):
        await h.beat(notes=[_step(job, name, codec.encode(name))])
        equal((await _steps(h, job.id)).get(name), codec.encode(name), f"result of the step {name!r}")
    large = b'"' + b"x" * 200_000 + b'"'
    await h.beat(notes=[_step(job, "large", large)])
    equal((await _steps(h, job.id))["large"] == large, True, "a large result came back as it was")


@case("B24", needs=_NEEDS)
async def a_step_and_the_loss_of_its_job_at_once_agree(h: Harness) -> None:
    """If the answer says held, the step is kept, whoever takes the job away at the same time."""
    beater, reaper = await h.several(2)
    for turn in range(10):
        job = await h.start(queue=f"turn-{turn}", max_attempts=9)
        beat = beater.heartbeat(WorkerInfo(id="w1"), h.lease_ms, [_step(job, "a")])
        retire = reaper.retire("w1", "gone")
        if turn % 2:
            _, pulse = await asyncio.gather(retire, beat)
        else:
            pulse, _ = await asyncio.gather(beat, retire)
        kept = "a" in await _steps(h, job.id)
        equal(kept, job.id in pulse.held, "whether the step is kept, and whether the answer says held")
        equal(await h.settle(job), Verdict.STALE, "verdict after the worker was retired")
