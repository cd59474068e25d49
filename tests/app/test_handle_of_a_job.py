"""What the handle of a job can see and do: state, record, result, cancel, rerun, delete."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from argument_kinds import Address, Colour, Model, Opaque, Order, Point

from packhorse import (
    Cancel,
    Fail,
    InvalidOption,
    JobCancelled,
    JobEndedBadly,
    JobFailed,
    NotFound,
    PackhorseError,
    ResultTimeout,
    State,
)
from packhorse.backends.base import Steered
from packhorse.testing import drain, stored


def test_a_job_s_life_as_its_handle_shows_it(app):
    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    job = add.enqueue(1, 2)
    assert job.state is State.PENDING
    drain(app)
    assert job.state is State.SUCCEEDED
    record = job.record()
    assert (record.attempt, record.result, record.errors) == (1, b"3", ())
    assert record.started_at_ms is not None
    assert record.finished_at_ms is not None
    assert job.result() == 3
    assert app.job(job.id).result() == 3
    assert repr(job) == f"<Job {job.id}>"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 3),
        (str, "x"),
        (None, None),
        (datetime, datetime(2030, 1, 1, tzinfo=UTC)),
        (uuid.UUID, uuid.UUID(int=7)),
        (bytes, b"\x00\xff"),
        (Colour, Colour.RED),
        (Address, Address("x", "1")),
        (list[Order], [Order(1, {"a": 2})]),
        (Order | None, Order(2)),
        (Point, Point(1, 2)),
        (tuple[int, str], (1, "a")),
        (set[int], {1, 2}),
        (dict[int, str], {1: "a"}),
        (Model, Model(size=2)),
    ],
    ids=str,
)
def test_a_result_comes_back_as_its_annotation_says(app, kind, value):
    def give():
        return value

    give.__annotations__ = {"return": kind}
    task = app.task(give)
    job = task.enqueue()
    drain(app)
    assert job.result() == value
    assert type(job.result()) is type(value)


@pytest.mark.parametrize(
    ("kind", "value", "plain"), [(int, "not a number", "not a number"), (Opaque, {"a": 1}, {"a": 1}), (Model, {}, {})]
)
def test_a_result_that_is_not_what_was_promised_comes_back_as_plain_json(app, kind, value, plain):
    def give():
        return value

    give.__annotations__ = {"return": kind}
    task = app.task(give)
    job = task.enqueue()
    drain(app)
    assert job.result() == plain


def test_without_an_annotation_a_result_is_plain_json(app):
    @app.task
    def give():
        return Address("x")

    job = give.enqueue()
    drain(app)
    assert job.result() == {"street": "x", "zip": ""}


def test_a_failed_job_has_no_result_but_a_reason(app):
    @app.task
    def fail() -> int:
        raise Fail("no such customer")

    job = fail.enqueue()
    drain(app)
    with pytest.raises(JobFailed, match="no such customer") as caught:
        job.result()
    assert isinstance(caught.value, JobEndedBadly)
    assert caught.value.job_id == job.id
    assert caught.value.reason == "Fail: no such customer"


def test_a_cancelled_job_has_no_result(app):
    @app.task
    def stop() -> int:
        raise Cancel("not needed")

    job, other = stop.enqueue(), stop.using(delay="1h").enqueue()
    assert other.cancel() is Steered.DONE
    drain(app)
    for ended in (job, other):
        with pytest.raises(JobCancelled):
            ended.result(timeout=1)


def test_waiting_ends_when_the_job_does(app):
    @app.task
    async def add(a: int) -> int:
        return a + 1

    async def main():
        async with app.worker():
            job = await add.aenqueue(1)
            value = await job.aresult(timeout=60)
            values = await asyncio.gather(*[(await add.aenqueue(n)).aresult("60s") for n in range(20)])
        await app.aclose()
        return value, values

    assert asyncio.run(main()) == (2, list(range(1, 21)))


def test_waiting_has_a_limit(app):
    job = app.enqueue("never.run")
    with pytest.raises(ResultTimeout, match=r"still pending after 20ms") as caught:
        job.result(timeout="20ms")
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, PackhorseError)
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    for wrong in (-1, float("nan"), "soon", 10**400):
        with pytest.raises(InvalidOption):
            job.result(timeout=wrong)


def test_waiting_has_a_limit_even_where_the_clock_stands_still(app):
    with stored(app), pytest.raises(ResultTimeout):
        app.enqueue("never.run").result(timeout=0.02)


def test_a_job_that_is_not_there_is_not_found(app):
    for look in (
        lambda: app.job("nowhere").state,
        lambda: app.job("nowhere").record(),
        lambda: app.job("nowhere").result(timeout=1),
    ):
        with pytest.raises(NotFound, match="no job nowhere"):
            look()
    assert app.job("nowhere").cancel() is Steered.MISSING
    assert app.job("nowhere").rerun() is Steered.MISSING
    assert app.job("nowhere").delete() is Steered.MISSING


def test_a_job_deleted_while_somebody_waits_is_not_found(app):
    async def main():
        job = await app.aenqueue("never.run")
        waiting = asyncio.create_task(job.aresult(timeout=60))
        await asyncio.sleep(0)
        assert await job.adelete() is Steered.DONE
        with pytest.raises(NotFound):
            await waiting
        await app.aclose()

    asyncio.run(main())


def test_cancel_rerun_and_delete_tell_the_truth(app):
    ran: list[Any] = []

    @app.task
    def note() -> int:
        ran.append(1)
        return len(ran)

    job = note.enqueue()
    assert job.rerun() is Steered.LIVE
    assert app.cancel(job.id) is Steered.DONE
    assert job.cancel() is Steered.ENDED
    drain(app)
    assert ran == []  # after an acknowledged cancel nothing of it starts

    assert job.rerun() is Steered.DONE
    assert job.state is State.PENDING
    drain(app)
    assert (job.result(), job.record().attempt) == (1, 1)

    assert job.rerun(delay="1h") is Steered.DONE
    assert job.state is State.SCHEDULED
    assert job.delete() is Steered.DONE
    assert job.delete() is Steered.MISSING


def test_the_same_in_async_code(app):
    async def main():
        job = await app.aenqueue("a")
        assert await job.astate() is State.PENDING
        assert (await job.arecord()).type == "a"
        assert await job.acancel() is Steered.DONE
        assert await job.arerun(delay=5) is Steered.DONE
        assert await job.astate() is State.SCHEDULED
        assert await job.adelete() is Steered.DONE
        await app.aclose()

    asyncio.run(main())
