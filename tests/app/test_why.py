"""`job.why()`: every cause, produced for real."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from packhorse import JobSpec, NotFound, Packhorse, State, why
from packhorse.backends.base import BATCH_MAX, Keep, Limit, Note, QueueChange, Rerun, Settlement, WorkerInfo
from packhorse.clock import ManualClock
from packhorse.job import JobError, Unique
from packhorse.why import Cause

_numbers = itertools.count()


class World:
    """An app on a store whose clock stands still, and one worker by hand."""

    def __init__(self, app: Packhorse) -> None:
        self.app = app

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            return await getattr(await self.app.backend(), verb)(*args, **kwargs)

        return self.app.portal.call(run())

    def worker(self, name: str = "w1", **fields: Any) -> None:
        info = WorkerInfo(**{"id": name, "host": "box", "pid": 7, "queues": ("default",), "concurrency": 10, **fields})
        self.call("heartbeat", info, 30_000)

    def add(self, job_type: str = "mail", **fields: Any) -> str:
        spec = JobSpec(id=self.app.chance.id(self.app.clock.now_ms()), type=job_type, **fields)
        return str(self.call("enqueue", [spec])[0].id)

    def start(self, limit: int = 1, worker: str = "w1") -> list[Any]:
        return list(self.call("claim", ["default"], limit, 30_000, worker))

    def end(self, job: Any, state: State, kind: str = "ValueError", message: str = "no", **fields: Any) -> None:
        error = JobError(attempt=job.attempt, at_ms=self.app.clock.now_ms(), kind=kind, message=message)
        error_or_none = None if state is State.SUCCEEDED else error
        self.call("settle", [Settlement(id=job.id, token=job.token, state=state, error=error_or_none, **fields)])

    def why(self, job_id: str) -> list[Cause]:
        return self.app.job(job_id).why()

    def codes(self, job_id: str) -> list[str]:
        return [cause.code for cause in self.why(job_id)]


@pytest.fixture(params=["memory", "sqlite"])
def world(request, tmp_path):
    url = f"memory://why-{next(_numbers)}" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"
    with Packhorse(url, clock=ManualClock()) as app:
        yield World(app)


def test_a_job_that_nobody_holds_is_ready(world):
    world.worker()
    assert world.codes(world.add()) == ["ready"]


def test_no_such_job(world):
    with pytest.raises(NotFound, match="deleted, or kept long enough"):
        world.app.job("01a20000-0000-7000-8000-000000000000").why()


def test_no_worker_is_alive(world):
    (cause,) = world.why(world.add())
    assert (cause.code, cause.text) == ("no_worker", "no worker is alive")
    assert "packhorse worker APP -q default" in cause.remedy


def test_no_worker_takes_the_queue(world):
    world.worker(queues=("other",))
    (cause,) = world.why(world.add())
    assert cause.code == "no_worker_for_queue"
    assert "queue default; 1 takes from others" in cause.text


def test_no_worker_knows_the_type(world):
    world.worker(types=("other",))
    (cause,) = world.why(world.add())
    assert cause.code == "no_worker_for_type"
    world.worker("w2", types=("mail",))
    assert world.codes(world.add("mail")) == ["in_line"]


def test_the_queue_is_paused_and_that_is_the_first_of_several(world):
    job_id, second = world.add(), world.add()
    world.call("queues", [QueueChange(queue="default", paused=True)])
    assert world.codes(job_id) == ["queue_paused", "no_worker"]
    assert world.codes(second) == ["queue_paused", "no_worker", "in_line"]
    assert "packhorse queues resume default" in world.why(job_id)[0].remedy
    world.call("queues", [QueueChange(queue="default", paused=False)])
    assert "queue_paused" not in world.codes(job_id)


def test_a_rate_limit_with_the_instant_it_opens(world):
    world.worker()
    world.call("limits", [Limit(type="mail", rate=1, period_ms=60_000)])
    world.add()
    world.start()
    held = world.add()
    (cause,) = world.why(held)
    assert cause.code == "rate_limit"
    assert "the limit of the type mail allows 1/m; it opens at" in cause.text
    assert cause.until_ms == world.app.clock.now_ms() + 60_000
    assert "packhorse limits set mail --rate" in cause.remedy
    world.app.clock.advance(60_000)
    world.worker()
    assert world.codes(held) == ["ready"]


@pytest.mark.parametrize(("key", "said"), [("k", "--key k"), ("*", "--each-key")])
def test_a_limit_of_a_key_says_which_and_who_runs(world, key, said):
    world.worker()
    world.call("limits", [Limit(type="mail", key=key, concurrency=2)])
    running = [world.add(key="k") for _ in range(2)]
    other = world.add("other")
    world.start(3)
    held = world.add(key="k")
    (cause,) = world.why(held)
    assert cause.code == "concurrency_limit"
    assert "key k of the type mail allows 2 at once and 2 run" in cause.text
    assert said in cause.remedy
    assert set(cause.jobs) == set(running)
    assert other not in cause.jobs
    assert world.codes(world.add(key="free"))[0] == "in_line"  # another key is not held


def test_a_concurrency_limit_names_no_more_than_five(world):
    world.worker(concurrency=100)
    world.call("limits", [Limit(type="mail", concurrency=8)])
    for _ in range(8):
        world.add()
    world.start(8)
    (cause,) = world.why(world.add())
    assert len(cause.jobs) == 5
    assert "8 run" in cause.text


def test_all_slots_are_busy(world):
    world.worker(concurrency=2)
    for _ in range(2):
        world.add()
    world.start(2)
    (cause,) = world.why(world.add())
    assert (cause.code, cause.text) == ("all_busy", "all slots of queue default are taken: 2 of 1 live worker")


def test_the_line_counts_by_priority_and_is_bounded(world, monkeypatch):
    world.worker()
    for _ in range(3):
        world.add(priority=2)
    world.add(priority=8)
    job_id = world.add()
    (cause,) = world.why(job_id)
    assert (cause.code, cause.text) == ("in_line", "3 pending jobs of queue default have a better place")
    monkeypatch.setattr("packhorse.why_facts.BATCH_MAX", 1)
    monkeypatch.setattr("packhorse.why_facts.LINE_PAGES_MAX", 2)
    assert "at least 2 pending jobs" in world.why(job_id)[0].text


def test_due_later(world):
    world.worker()
    (cause,) = world.why(world.add(delay_ms=90_000))
    assert (cause.code, cause.until_ms) == ("due", world.app.clock.now_ms() + 90_000)
    assert "(in 1m30s)" in cause.text
    late = world.add(delay_ms=1_000)
    world.app.clock.advance(5_000)  # and nobody ticks
    cause = world.why(late)[0]
    assert "(4s ago)" in cause.text
    assert "the next tick makes it pending" in cause.remedy


def test_a_retry_says_which_attempt_and_the_last_error(world):
    world.worker()
    job_id = world.add()
    world.end(world.start()[0], State.SCHEDULED, delay_ms=5_000, message="no such address")
    (cause,) = world.why(job_id)
    assert cause.code == "retry_due"
    assert "attempt 1 of 4 failed: ValueError: no such address; the next is due at" in cause.text


def test_parked_says_since_when_and_when_it_fails(world):
    world.worker(types=("other",))
    job_id = world.add()
    job = world.start()[0]
    world.call(
        "settle",
        [Settlement(id=job.id, token=job.token, state=State.SCHEDULED, delay_ms=250, refund=True, park=True)],
    )
    parked_ms = world.app.clock.now_ms()
    assert world.codes(job_id) == ["due", "parked", "no_worker_for_type"]
    assert world.why(job_id)[1].until_ms == parked_ms + world.app.settings.park_ms
    world.app.clock.advance(250)
    world.call("tick", BATCH_MAX, Keep())
    assert world.codes(job_id) == ["no_worker_for_type", "parked"]


def test_parked_says_that_it_does_not_fail_for_a_type_that_a_live_worker_names(world):
    job_id = world.add()
    world.worker(types=(world.call("get", [job_id])[0].type,))
    job = world.start()[0]
    parking = Settlement(id=job.id, token=job.token, state=State.SCHEDULED, delay_ms=250, refund=True, park=True)
    world.call("settle", [parking])
    assert "but not for its type as long as a live worker knows that" in world.why(job_id)[1].text


def test_waiting_for_parents_and_what_holds_them(world):
    world.worker()
    ready = world.add()
    late = world.add(delay_ms=60_000)
    child = world.add("report", after=(ready, late))
    waiting, held = world.why(child)
    assert waiting.code == "waiting_for_parents"
    assert waiting.text.startswith("2 of its 2 parents have not ended:")
    assert waiting.jobs == (ready, late)
    assert (held.code, held.jobs) == ("parent_held", (late,))
    assert f"parent {late}: it is due at" in held.text
    grandchild = world.add(after=(child,))
    assert world.codes(grandchild) == ["waiting_for_parents", "parent_held"]
    assert "2 of its 2 parents have not ended" in world.why(grandchild)[1].text


def test_many_parents_are_named_in_part(world):
    world.worker()
    parents = tuple(world.add() for _ in range(9))
    cause = world.why(world.add(after=parents))[0]
    assert len(cause.jobs) == 5
    assert cause.text.endswith("and 4 more")


def test_a_parent_whose_queue_is_paused(world):
    world.worker(queues=("default", "slow"))
    parent = world.add(queue="slow")
    child = world.add(after=(parent,))
    world.call("queues", [QueueChange(queue="slow", paused=True)])
    assert "queue slow is paused" in world.why(child)[1].text


@pytest.mark.parametrize(
    ("state", "code", "then"),
    [(State.SUCCEEDED, "parents_ended", "in_line"), (State.FAILED, "parent_ended_badly", "cancelled_by_parent")],
)
def test_more_children_than_one_move_frees(world, state, code, then):
    world.worker()
    parent = world.add()
    (job,) = world.start()
    specs = [JobSpec(id=job_id, type="child", after=(parent,)) for job_id in world.app.chance.ids(0, BATCH_MAX + 1)]
    world.call("enqueue", specs[:BATCH_MAX])
    world.call("enqueue", specs[BATCH_MAX:])
    world.end(job, state)
    assert world.codes(specs[-1].id)[0] == code
    world.call("tick", BATCH_MAX, Keep())
    assert world.codes(specs[-1].id)[0] == then


def test_running_says_where_since_when_and_how_far(world):
    world.worker()
    job_id = world.add()
    (job,) = world.start()
    info = WorkerInfo(id="w1", host="box", pid=7, queues=("default",), concurrency=10)
    world.call("heartbeat", info, 30_000, [Note(id=job.id, token=job.token, progress=0.5, text="half")])
    (cause,) = world.why(job_id)
    assert cause.code == "running"
    for part in ("box (pid 7, worker w1)", "attempt 1 of 4", "50% done (half)", "another 30s"):
        assert part in cause.text
    world.call("cancel", [job_id])
    assert world.codes(job_id) == ["cancel_requested", "running"]


def test_a_worker_that_does_not_get_on_comes_first(world):
    trouble = "event loop blocked for 3 s in shop.py:31"
    world.worker()
    job_id = world.add()
    world.start()
    world.worker(trouble=trouble)
    first, then = world.why(job_id)
    assert (first.code, then.code) == ("worker_in_trouble", "running")
    assert trouble in first.text
    assert first.remedy == "see where it is, on box: packhorse stacks 7"


def test_a_lease_that_ran_out(world):
    world.worker()
    job_id = world.add()
    world.start()
    world.app.clock.advance(31_000)
    assert world.codes(job_id) == ["lease_ran_out"]
    world.call("tick", BATCH_MAX, Keep())
    assert world.codes(job_id) == ["no_worker"]


def test_how_a_job_ended(world):
    world.worker()
    good, bad, gave_up, stopped = (world.add() for _ in range(4))
    jobs = {job.id: job for job in world.start(4)}
    world.end(jobs[good], State.SUCCEEDED)
    world.end(jobs[bad], State.FAILED, message="no such address")
    world.end(jobs[gave_up], State.CANCELLED, kind="Cancel", message="withdrawn")
    world.call("cancel", [stopped])
    world.end(jobs[stopped], State.CANCELLED, kind="Cancelled", message="stopped while running, as asked")
    (cause,) = world.why(bad)
    assert cause.code == "failed"
    assert "with attempt 1 of 4, for good" in cause.text
    assert cause.text.endswith(": ValueError: no such address")
    assert f"packhorse jobs edit {bad}" in cause.remedy
    assert [world.codes(job_id) for job_id in (good, gave_up, stopped)] == [
        ["succeeded"],
        ["cancelled_by_handler"],
        ["cancelled"],
    ]
    never = world.add()
    world.call("cancel", [never])
    assert "by an operator or a program" in world.why(never)[0].text


def test_cancelled_by_a_parent_names_it(world):
    world.worker()
    parent = world.add()
    child = world.add(after=(parent,))
    world.end(world.start()[0], State.FAILED)
    (cause,) = world.why(child)
    assert (cause.code, cause.jobs) == ("cancelled_by_parent", (parent,))
    assert f"packhorse jobs rerun {parent}" in cause.remedy
    assert f"its parent {parent} ended as failed" in cause.text


def test_replaced_names_by_whom(world):
    old = world.add(unique=Unique(key="k"))
    new = world.add(unique=Unique(key="k", on_conflict="replace"))
    cause = world.why(old)[0]
    assert (cause.code, cause.jobs) == ("replaced", (new,))


def test_a_rerun_that_would_be_refused_names_the_holder_of_the_key(world):
    world.worker()
    old = world.add(unique=Unique(key="k"))
    world.end(world.start()[0], State.FAILED)
    assert world.codes(old) == ["failed"]
    holder = world.add(unique=Unique(key="k"))
    assert world.codes(old) == ["failed", "unique_conflict"]
    assert world.why(old)[1].jobs == (holder,)
    assert world.call("rerun", [Rerun(id=old)]) == ["conflict"]


def test_a_lost_worker_is_the_last_error_in_words(world):
    world.worker()
    job_id = world.add(max_attempts=1)
    world.start()
    world.call("retire", "w1", "the runner died")
    (cause,) = world.why(job_id)
    assert cause.text.endswith(": its worker was lost (the runner died)")


def test_every_code_is_explained_and_produced_here():
    code = re.findall(r'code="(\w+)"', Path(why.__file__).read_text())
    assert set(code) == set(why.CODES)
    here = Path(__file__).read_text()
    for name in why.CODES:
        assert f'"{name}"' in here, f"no test produces {name}"


def test_in_async_code():
    async def run() -> None:
        async with Packhorse("memory://why-async") as app:
            job = await app.aenqueue("mail")
            assert [cause.code for cause in await job.awhy()] == ["no_worker"]

    asyncio.run(run())
