"""`ctx.settle_in`: the effect of a run and the end of its job are committed together, or neither is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import settling_jobs
from working import ended, until, work

from packhorse import Context, Fail, LeaseLost, Packhorse, Retry, Unsupported
from packhorse.job import JobRecord, State
from tests.owning import connect, own
from tests.witness import boot_s

#: For handlers on the loop; with the URL of the store.
KINDS = ["sqlite3", "psycopg-async", "asyncpg", "sqlalchemy-asyncpg-session"]
BLOCKING_KINDS = ["sqlite3", "psycopg"]


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The store of the kind of connection that the test is about, with a table for effects."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if "sqlite" in kind else request.getfixturevalue("postgres_url")

    async def prepare() -> None:
        async with Packhorse(url) as app:
            await (await app.backend()).migrate()
            await app.acounts()
        async with own("sqlite3" if "sqlite" in kind else "psycopg", url) as one:
            await one.execute("CREATE TABLE IF NOT EXISTS effects (n INTEGER)")
            await one.execute("DELETE FROM effects")
            await one.commit()
        if kind in KINDS:
            async with own(kind, url):  # loads its libraries, which may take seconds, before a worker's loop turns
                pass

    asyncio.run(prepare())
    return url


async def _effects(kind: str, url: str) -> int:
    async with own("sqlite3" if "sqlite" in kind else "psycopg", url) as one:
        found: int = (await one.execute("SELECT count(*) FROM effects")).fetchone()[0]
        return found


@contextlib.asynccontextmanager
async def _working(app: Packhorse, **options) -> AsyncIterator[None]:
    # No warning where the machine stands still for a moment: some of these tests want no warnings at all.
    async with app, app.worker(blocked_ms=0, **options):
        yield


def _run(app: Packhorse, kind: str, job_type: str, payload: dict | None = None) -> tuple[JobRecord, int]:
    """Run one job to its end; answers its record and how many effects there are."""

    async def scenario() -> tuple[JobRecord, int]:
        async with _working(app):
            record = await ended(app, await app.aenqueue(job_type, payload or {}))
        return record, await _effects(kind, app.settings.url)

    return work(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_the_effect_and_the_end_are_committed_together(url, kind, caplog):
    app = Packhorse(url)
    seen = []

    @app.task
    async def follow_up(n: int) -> int:
        return n

    @app.task
    async def pay(ctx: Context) -> str:
        async with own(kind, url) as one:
            await one.execute("INSERT INTO effects VALUES (1)")
            ctx.progress(0.5)
            after = ctx.then(follow_up, {"n": 7})
            await ctx.settle_in(one.raw, {"paid": after})
            seen.append((await app.job(ctx.id).arecord()).state)
            await one.commit()
        seen.append((await app.job(ctx.id).arecord()).state)
        return "ignored"

    async def scenario() -> None:
        async with _working(app):
            job = await pay.aenqueue()
            result = await job.aresult(60)
            assert await app.job(result["paid"]).aresult(60) == 7
            record = await job.arecord()
            assert (record.state, record.attempt, record.errors) == (State.SUCCEEDED, 1, ())
        assert await _effects(kind, url) == 1

    with caplog.at_level(logging.WARNING):
        work(scenario)
    assert seen == [State.RUNNING, State.SUCCEEDED]
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["left open", "rolled back"])
def test_what_was_not_committed_is_a_failed_attempt(url, kind, how):
    app = Packhorse(url)

    @app.task(max_attempts=3, backoff=0)
    async def pay(ctx: Context) -> None:
        async with own(kind, url) as one:
            await one.execute("INSERT INTO effects VALUES (1)")
            ctx.then("pay", {})
            await ctx.settle_in(one.raw, ctx.attempt)
            if ctx.attempt == 3:
                await one.commit()
            elif how == "rolled back":
                await one.rollback()

    record, effects = _run(app, kind, "pay")
    assert (record.state, record.attempt, record.result) == (State.SUCCEEDED, 3, b"3")
    assert [error.kind for error in record.errors] == ["NotCommitted"] * 2
    assert "settle_in was called but its transaction was not committed" in record.errors[0].message
    assert effects >= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("committed", [True, False])
def test_a_handler_that_raises_afterwards(url, kind, committed, caplog):
    app = Packhorse(url)

    @app.task(max_attempts=2, backoff=0)
    async def pay(ctx: Context) -> None:
        async with own(kind, url) as one:
            await one.execute("INSERT INTO effects VALUES (1)")
            await ctx.settle_in(one.raw)
            if committed:
                await one.commit()
            else:
                await one.rollback()
        raise ValueError("too late")

    with caplog.at_level(logging.WARNING):
        record, effects = _run(app, kind, "pay")
    if committed:
        assert (record.state, record.attempt, effects, record.errors) == (State.SUCCEEDED, 1, 1, ())
        assert "this changes nothing: ValueError: too late" in caplog.text
    else:
        assert (record.state, record.attempt, effects) == (State.FAILED, 2, 0)
        assert [error.kind for error in record.errors] == ["ValueError"] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["retry", "fail", "timeout", "cancelled"])
def test_no_other_end_undoes_what_is_committed(url, kind, how):
    app = Packhorse(url)
    committed = []

    # On a slow machine the time may be up before the commit: that attempt has done nothing, and there is another.
    @app.task(timeout="300ms" if how == "timeout" else "30s", max_attempts=100, backoff=0)
    async def pay(ctx: Context) -> None:
        async with own(kind, url) as one:
            await one.execute("INSERT INTO effects VALUES (1)")
            await ctx.settle_in(one.raw)
            await one.commit()
        committed.append(ctx.attempt)
        if how == "retry":
            raise Retry(0)
        if how == "fail":
            raise Fail("no")
        if how == "cancelled":
            raise asyncio.CancelledError
        await asyncio.sleep(60)

    record, effects = _run(app, kind, "pay")
    assert (record.state, effects) == (State.SUCCEEDED, 1)
    assert committed in ([record.attempt], [])  # its time may be up right after the commit
    assert len(record.errors) == record.attempt - 1
    assert how == "timeout" or record.attempt == 1
    assert {error.kind for error in record.errors} <= {"TimedOut"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_after_its_commit_is_not_stopped_as_lost(url, kind, caplog):
    app = Packhorse(url)
    went_on = []

    @app.task
    async def pay(ctx: Context) -> None:
        async with own(kind, url) as one:
            await ctx.settle_in(one.raw)
            await one.commit()
        ctx.progress(0.9)  # told nobody
        await asyncio.sleep(1.5)  # more than one heartbeat
        went_on.append(ctx.cancelled)

    async def scenario() -> None:
        async with _working(app, lease="1s"):
            await pay.aenqueue()
            await until(lambda: went_on)

    with caplog.at_level(logging.WARNING):
        work(scenario)
    assert went_on == [False]
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_run_can_never_decide(url, kind):
    """Its job was given to another run meanwhile: though it goes on, its transaction must not be committed."""
    app = Packhorse(url)
    going_on: list[asyncio.Task[None]] = []

    async def transfer(ctx: Context) -> None:
        if ctx.attempt == 1:
            backend = await app.backend()
            (me,) = await backend.workers()
            await backend.retire(me.id, "as if it had been stopped for long")
        async with own(kind, url) as one:
            await one.execute("INSERT INTO effects VALUES (1)")
            await ctx.settle_in(one.raw)
            await one.commit()

    @app.task(max_attempts=3, backoff=0)
    async def pay(ctx: Context) -> None:
        going_on.append(asyncio.create_task(transfer(ctx)))
        await asyncio.shield(going_on[-1])

    async def scenario() -> None:
        async with _working(app):
            record = await ended(app, await pay.aenqueue())
            first, *others = await asyncio.gather(*going_on, return_exceptions=True)
        assert isinstance(first, LeaseLost)
        assert "roll the transaction back" in str(first)
        assert others == [None]
        assert (record.state, await _effects(kind, url)) == (State.SUCCEEDED, 1)

    work(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transaction_that_is_tried_again_in_the_same_run(url, kind):
    app = Packhorse(url)

    @app.task(max_attempts=1)
    async def pay(ctx: Context) -> None:
        for last in (False, True):
            async with own(kind, url) as one:
                await one.execute("INSERT INTO effects VALUES (1)")
                await ctx.settle_in(one.raw, {"last": last})
                await (one.commit() if last else one.rollback())

    record, effects = _run(app, kind, "pay")
    assert (record.state, record.result, effects) == (State.SUCCEEDED, b'{"last":true}', 1)


@pytest.mark.parametrize("kind", ["psycopg-async"])
def test_a_transaction_that_is_left_open_holds_up_nobody_else(url, kind, witness):
    """On SQLite it would: there, one transaction writes at a time."""
    app = Packhorse(url)
    leaked = []

    @app.task
    async def leak(ctx: Context) -> None:
        if ctx.attempt == 1:
            leaked.append(context := own(kind, url))
            await ctx.settle_in((await context.__aenter__()).raw)
        ctx.progress(0.5)

    @app.task
    async def quick(ctx: Context) -> None:
        ctx.progress(0.5)

    async def scenario() -> None:
        async with _working(app, lease="2s"):
            job = await leak.aenqueue()
            await until(lambda: leaked)
            for _ in range(3):
                jobs = await app.aenqueue_many([quick.job() for _ in range(20)])
                began = boot_s()
                await asyncio.gather(*(one.aresult() for one in jobs))
                assert witness.since_s(began) < 4  # less than the server waits for a lock
                await asyncio.sleep(1)  # heartbeats go on
            assert (await job.arecord()).state == State.RUNNING
            await leaked.pop().__aexit__(None, None, None)
            record = await ended(app, job)
            assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
            assert [error.kind for error in record.errors] == ["NotCommitted"]

    work(scenario, limit_s=60)


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_it_is_the_last_thing_a_run_does(url, kind):
    app = Packhorse(url)

    @app.task(max_attempts=1)
    async def pay(ctx: Context) -> None:
        async with own(kind, url) as one:
            await ctx.settle_in(one.raw)
            for late in (lambda: ctx.then("pay", {}), lambda: ctx.blocking.step("a", int)):
                with pytest.raises(RuntimeError, match="settle_in last"):
                    late()
            with pytest.raises(RuntimeError, match="settle_in last"):
                await ctx.step("a", int)
            await one.commit()

    record, _ = _run(app, kind, "pay")
    assert record.state == State.SUCCEEDED


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_what_could_not_be_settled_is_no_promise(url, kind, tmp_path):
    """A call that raised has done nothing: the run's own end counts as ever."""
    app = Packhorse(url)
    seen = []

    @app.task(max_attempts=1)
    async def pay(ctx: Context, how: str) -> str:
        if how == "result":
            async with own(kind, url) as one:
                await ctx.settle_in(one.raw, object())
        with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
            other.execute("BEGIN")
            for connection in (None, other):
                try:
                    await ctx.settle_in(connection)
                except Exception as error:
                    seen.append(type(error).__name__)
        return "as ever"

    record, _ = _run(app, kind, "pay", {"how": "connection"})
    assert (record.state, record.result, seen) == (State.SUCCEEDED, b'"as ever"', ["InvalidOption"] * 2)
    record, _ = _run(app, kind, "pay", {"how": "result"})
    assert (record.state, record.errors[0].kind) == (State.FAILED, "Fail")
    assert "the result cannot be stored" in record.errors[0].message


def test_a_store_without_transactions_says_so():
    app = Packhorse("memory://settle-in")

    @app.task(max_attempts=1)
    async def pay(ctx: Context) -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as db, pytest.raises(Unsupported, match="bind"):
            await ctx.settle_in(db)

    async def scenario() -> None:
        async with _working(app):
            assert (await ended(app, await pay.aenqueue())).state == State.SUCCEEDED

    work(scenario)


# ---- where handlers run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKING_KINDS)
@pytest.mark.parametrize("commits", [True, False])
def test_in_a_thread(url, kind, commits):
    app = Packhorse(url)

    @app.task(max_attempts=1)
    def pay(ctx: Context) -> str:
        with contextlib.closing(connect(kind, url)) as connection:
            connection.execute("INSERT INTO effects VALUES (1)")
            ctx.blocking.settle_in(connection, "paid")
            if commits:
                connection.commit()
        return "ignored"

    record, effects = _run(app, kind, "pay")
    if commits:
        assert (record.state, record.result, effects) == (State.SUCCEEDED, b'"paid"', 1)
    else:
        assert (record.state, record.errors[0].kind, effects) == (State.FAILED, "NotCommitted", 0)


PROCESS_ENDS = {
    "committed": (State.SUCCEEDED, 1, []),
    "left open": (State.FAILED, 2, ["NotCommitted", "NotCommitted"]),
    "killed before the commit": (State.SUCCEEDED, 2, ["ProcessDied"]),
    "killed after the commit": (State.SUCCEEDED, 1, []),
}


@pytest.mark.parametrize("kind", BLOCKING_KINDS)
@pytest.mark.parametrize("how", PROCESS_ENDS)
def test_in_a_child_process(url, kind, how, monkeypatch):
    app = settling_jobs.app
    monkeypatch.setattr(app, "settings", msgspec.structs.replace(app.settings, url=url))
    record, effects = _run(app, kind, "in_process", {"kind": kind, "how": how})
    state, attempts, errors = PROCESS_ENDS[how]
    assert (record.state, record.attempt, [error.kind for error in record.errors]) == (state, attempts, errors)
    assert effects == (state == State.SUCCEEDED)
    if state == State.SUCCEEDED:
        assert record.result == msgspec.json.encode({"how": how})


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_child_process_async(url, kind, monkeypatch):
    app = settling_jobs.app
    monkeypatch.setattr(app, "settings", msgspec.structs.replace(app.settings, url=url))
    record, effects = _run(app, kind, "in_process_async", {"kind": kind})
    assert (record.state, record.result, effects) == (State.SUCCEEDED, b'"async"', 1)
