"""What a worker cannot read it parks for one that can; then it fails with the reason. The worker goes on (B9)."""

from __future__ import annotations

import logging

import pytest
from working import ended, new_app, store_of, until, work

from packhorse import State

GARBAGE: dict[str, bytes] = {
    "no json": b"\xff\xfe\x00garbage",
    "cut off": b'{"n": 1',
    "empty": b"",
    "nul": b"\0",
    "a pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94",
    "another type": b'{"n": "text"}',
    "an unknown field": b'{"n": 1, "added_by_newer_code": true}',
    "a missing field": b"{}",
    "a list": b"[1]",
    "deep": b"[" * 100_000,
    "huge number": b'{"n": 1e999}',
    "not utf-8": b'{"n": "\xff"}',
}


@pytest.mark.parametrize("executor", ["async", "thread", "process"])
def test_b9_damaged_payloads_fail_with_the_reason_and_others_run(executor):
    """B9, C7, C13: put straight into the store, as a broken or hostile program would."""
    app = new_app()
    ran: list[int] = []

    async def on_loop(n: int) -> int:
        ran.append(n)
        return n

    def blocking(n: int) -> int:
        ran.append(n)
        return n

    task = app.task("job", executor=executor)(on_loop if executor == "async" else blocking)

    @app.task
    async def healthy() -> str:
        return "fine"

    async def scenario():
        damaged = {}
        for name in GARBAGE:
            damaged[name] = await app.aenqueue(task, {"n": 1})
        for name, job in damaged.items():
            store_of(app).jobs[job.id].payload = GARBAGE[name]
        async with app.worker(park_ms=300):
            assert await (await healthy.aenqueue()).aresult(60) == "fine"
            records = {name: await ended(app, job) for name, job in damaged.items()}
            assert await (await healthy.aenqueue()).aresult(60) == "fine"
        await app.aclose()
        return records

    records = work(scenario)
    assert ran == []
    for name, record in records.items():
        assert (record.state, record.attempt) == (State.FAILED, 0), name
        assert record.errors[-1].kind == "InvalidPayload", name
        assert record.errors[-1].message, name
        assert len(record.errors) == 1, name  # parking is no error, only its end


@pytest.mark.parametrize("name", ["nobody.knows.it", "os.system", "__main__", "builtins.eval"])
def test_b9_an_unknown_type_waits_for_a_worker_that_knows_it_and_then_fails(name):
    """B9, B26, C8: never imported, never discarded at once, never in the way."""
    app = new_app()

    @app.task
    async def healthy() -> str:
        return "fine"

    async def scenario():
        job = await app.aenqueue(name, {"command": "true"})
        async with app.worker(park_ms=400):
            assert await (await healthy.aenqueue()).aresult(60) == "fine"
            record = await ended(app, job)
        await app.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.attempt) == (State.FAILED, 0)
    assert record.errors[-1].at_ms - record.created_at_ms >= 400  # not discarded at once
    assert record.errors[-1].kind == "UnknownType"
    assert record.errors[-1].message == f"no worker knows the job type {name!r}"


def test_b26_a_worker_that_knows_the_type_gets_it_from_one_that_does_not():
    """B26: a rolling release: the old workers must not discard what only the new ones know."""
    old, url = new_app(), None
    url = old.settings.url
    from packhorse import Packhorse

    new = Packhorse(url)

    @new.task
    async def brand_new(n: int) -> int:
        return n + 1

    async def scenario():
        job = await brand_new.aenqueue(1)
        async with old.worker():

            async def parked():
                return (await job.astate()) is State.SCHEDULED

            await until(parked)
            async with new.worker():
                assert await job.aresult(60) == 2
            record = await job.arecord()
        await old.aclose()
        await new.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())


def test_b26_a_type_does_not_fail_while_a_live_worker_that_knows_it_is_busy():
    """B26: two programs share a queue; all slots of the one that knows the type are taken for longer than `park_ms`."""
    other = new_app()
    from packhorse import Packhorse

    knowing = Packhorse(other.settings.url)
    go_on = []

    @knowing.task
    async def perl(n: int) -> int:
        if n == 0:
            await until(lambda: go_on)
        return n

    async def scenario():
        first = await perl.aenqueue(0)
        async with knowing.worker(concurrency=1, queues={"default": 2, "more": 1}):

            async def busy():
                return (await first.astate()) is State.RUNNING

            await until(busy)
            second = await perl.aenqueue(7)
            async with other.worker(park_ms=0):

                async def parked():
                    return (await second.arecord()).parked_at_ms is not None

                await until(parked)
                assert (await second.astate()) is not State.FAILED
            go_on.append(True)
            assert await second.aresult(15) == 7
            record = await second.arecord()
        await other.aclose()
        await knowing.aclose()
        return record

    record = work(scenario)
    assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())


def test_names_from_the_store_cannot_forge_log_lines(caplog):
    """C22: what a job is called may come from anywhere."""
    from packhorse.observe.logs import one_line

    app = new_app()

    async def scenario():
        job = await app.aenqueue("any")
        store_of(app).jobs[job.id].type = "a\n2026 INFO paid\x1b]0;"
        async with app.worker(park_ms=0):
            record = await ended(app, job)
        await app.aclose()
        return record

    with caplog.at_level(logging.DEBUG, "packhorse"):
        record = work(scenario)
    assert "\n" not in record.errors[-1].message
    assert "\x1b" not in record.errors[-1].message
    for line in caplog.messages:
        assert "\n" not in one_line(line)
