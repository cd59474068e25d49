"""What a lost worker held is named by whoever ticks: counted once, said once, told to the failure hooks once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from working import ended, faulty_app, new_app, until, work

from packhorse import Context, Failure, Packhorse, State
from packhorse.backends.base import Lapse
from packhorse.errors import Unavailable
from packhorse.worker.lapses import failed_attempts, say_lapses
from tests.scraped import Scraped


def hearing(app: Packhorse) -> list[Failure]:
    """What a hook of the app is told from now on."""
    told: list[Failure] = []

    @app.on_failure
    async def hear(failure: Failure) -> None:
        told.append(failure)

    return told


async def counts_of(app: Packhorse) -> dict[str, float]:
    """What became of jobs, as the app's metrics have it."""
    found = Scraped(await app.ametrics())
    names = ("recovered", "failed", "cancelled", "completed")
    return {name: found.total(f"packhorse_jobs_{name}_total") for name in names}


def test_what_a_lost_worker_held_is_told_once_by_the_worker_that_ticks(caplog):
    """Its whole host is gone, and nobody there is left to say so. Of several who tick, only one is told of it."""
    app = new_app()
    told = hearing(app)

    @app.task("work")
    async def again(ctx: Context) -> None: ...

    async def scenario() -> tuple[list[str], dict[str, float]]:
        backend = await app.backend()
        jobs = [await app.aenqueue("work", {}, max_attempts=attempts) for attempts in (1, 2, 1)]
        ids = [job.id for job in jobs]
        claimed = await backend.claim(["default"], 10, 1, "on a dead host")
        assert {job.id for job in claimed} == set(ids)
        await backend.cancel([ids[2]])
        async with app.worker(), app.worker(), app.worker():
            for job in jobs:
                await ended(app, job)
            await until(lambda: len(told) == 2)
        found = await counts_of(app)
        await app.aclose()
        return ids, found

    with caplog.at_level(logging.INFO, "packhorse.jobs"):
        (poison, again_id, cancelled), found = work(scenario)
    assert {(one.id, one.attempt, one.final, one.lapsed) for one in told} == {
        (poison, 1, True, True),
        (again_id, 1, False, True),
    }
    assert len(told) == 2
    assert found == {"recovered": 3, "failed": 1, "cancelled": 1, "completed": 1}
    said = {record.job_id: record for record in caplog.records if "with its worker" in record.getMessage()}
    assert set(said) == {poison, cancelled}
    assert said[poison].getMessage() == "job failed for good with its worker, attempt 1 of 1"
    assert (said[poison].levelname, said[cancelled].levelname) == ("ERROR", "INFO")


def test_beyond_some_lines_lapses_are_counted_in_one(caplog):
    lapses = [
        Lapse(id=f"{n:03}", queue="q", type="t", attempt=1 + (n == 40), max_attempts=9, state=State.PENDING)
        for n in range(50)
    ]
    with caplog.at_level(logging.INFO, "packhorse.jobs"):
        say_lapses(lapses, "it died", "process", "w1")
    assert len(caplog.records) == 21
    assert caplog.records[0].job_id == "040", "the most attempts first"
    assert caplog.records[-1].getMessage() == "30 more jobs lapsed at the same time"


def test_what_was_cancelled_is_not_told_to_hooks():
    lapses = [
        Lapse(id=state.value, queue="q", type="t", attempt=2, max_attempts=9, state=state)
        for state in (State.PENDING, State.FAILED, State.CANCELLED)
    ]
    assert failed_attempts(lapses) == {"pending": 2, "failed": 2}


def test_it_is_told_though_the_store_is_away_right_after_the_tick():
    """The tick that took the jobs was answered; that what follows fails, as firing slots, makes nobody forget it."""
    app, backend = faulty_app()
    told = hearing(app)

    @app.schedule(every="1h", name="hourly")
    @app.task("work", max_attempts=1)
    async def work_hourly(ctx: Context) -> None: ...

    async def fire(firings: Any) -> Any:
        raise Unavailable("the store is away")

    async def scenario() -> None:
        await app.aenqueue("work")
        await backend.claim(["default"], 10, 1, "on a dead host")
        backend.fire = fire  # type: ignore[method-assign]
        async with app.worker():
            await until(lambda: told)
        await app.aclose()

    work(scenario)
    assert [(one.lapsed, one.final) for one in told] == [(True, True)]


def test_without_hooks_it_is_counted_all_the_same():
    app = new_app()

    async def scenario() -> dict[str, float]:
        backend = await app.backend()
        job = await app.aenqueue("work", {}, max_attempts=1)
        await backend.claim(["default"], 10, 1, "on a dead host")
        async with app.worker():
            await ended(app, job)
            await until(counted)
        found = await counts_of(app)
        await app.aclose()
        return found

    async def counted() -> bool:
        return (await counts_of(app))["recovered"] == 1

    assert work(scenario) == {"recovered": 1, "failed": 1, "cancelled": 0, "completed": 0}


@pytest.mark.parametrize("lapsed", [State.PENDING, State.FAILED, State.CANCELLED])
def test_a_line_says_what_became_of_it(lapsed, caplog):
    lapse = Lapse(id="j", queue="q", type="t", attempt=2, max_attempts=3, state=lapsed)
    with caplog.at_level(logging.INFO, "packhorse.jobs"):
        say_lapses([lapse], "its runner died", "process", "w1")
    (record,) = caplog.records
    message = {"pending": "lost", "failed": "failed for good with", "cancelled": "cancelled with"}[lapsed.value]
    assert record.getMessage() == f"job {message} its process, attempt 2 of 3"
    assert (record.job_id, record.job_type, record.queue, record.attempt) == ("j", "t", "q", 2)
    assert (record.worker, record.error) == ("w1", "LeaseLapsed: its runner died")
