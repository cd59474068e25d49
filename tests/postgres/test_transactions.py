"""`app.transaction(connection)` on PostgreSQL, with every kind of connection that users have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row

from packhorse import Context, InvalidOption, NotFound, Packhorse, QueueFull, Unavailable, UniqueConflict, chain
from packhorse.job import State
from tests.owning import POSTGRES_ASYNC, POSTGRES_BLOCKING, own
from tests.servers import new_database


@pytest.fixture
def app(postgres_url: str) -> Iterator[Packhorse]:
    with Packhorse(postgres_url) as fresh:

        @fresh.task
        def ship(order: int) -> None: ...

        fresh.counts()
        with psycopg.connect(_plain(postgres_url)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS orders (id integer)")
            connection.execute("TRUNCATE orders")
        yield fresh


def _plain(url: str) -> str:
    return url.partition("?")[0]


def _connect(app: Packhorse, **options) -> psycopg.Connection:
    return psycopg.connect(_plain(app.settings.url), **options)


def _stored(app: Packhorse) -> int:
    return sum(sum(queue.states.values()) for queue in app.counts().values())


def _orders(app: Packhorse) -> int:
    with _connect(app) as connection:
        return connection.execute("SELECT count(*) FROM orders").fetchone()[0]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", [*POSTGRES_BLOCKING, *POSTGRES_ASYNC])
def test_every_enqueue_in_the_block_belongs_to_it(app, kind, end):
    ship = app.tasks["ship"]

    async def main() -> None:
        async with own(kind, app.settings.url) as one:
            async with app.transaction(one.raw) as tx:  # before anything else was done on it
                jobs = [
                    await tx.aenqueue("ship", {"order": 1}, unique="k"),
                    *await tx.aenqueue_many([ship.job(2), (ship, {"order": 3})]),
                    await ship.using(key="a", delay="1h").aenqueue(4),
                    await app.aenqueue("ship", {"order": 5}),
                ]
                await one.execute("INSERT INTO orders VALUES (1)")
                run = await app.workflow(chain(ship.job(6), ship.job(7))).aenqueue()
                with pytest.raises(UniqueConflict):
                    await ship.using(unique="k", on_conflict="refuse").aenqueue(8)
            await ship.using(connection=one.raw).aenqueue(8)
            assert await app.acounts() == {}
            with pytest.raises(NotFound):
                await jobs[0].astate()
            await (one.commit() if end == "commit" else one.rollback())
        if end == "commit":
            states = (await app.acounts())["default"].states
            assert states == {State.PENDING: 6, State.SCHEDULED: 1, State.WAITING: 1}
            assert sum((await run.astate()).values()) == 2
        else:
            assert await app.acounts() == {}
        await app.aclose()

    asyncio.run(main())
    assert _orders(app) == (end == "commit")


@pytest.mark.parametrize("kind", POSTGRES_BLOCKING)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_in_blocking_code(app, kind, end):
    ship = app.tasks["ship"]

    async def main() -> None:  # own() is async, what is between is not
        async with own(kind, app.settings.url) as one:
            with app.transaction(one.raw) as tx:
                job = tx.enqueue("ship", {"order": 1})
                ship.enqueue(2)
                app.enqueue_many([ship.job(3)])
                app.workflow(chain(ship.job(4), ship.job(5))).enqueue()
            ship.using(connection=one.raw).enqueue(6)
            await (one.commit() if end == "commit" else one.rollback())
        assert job.created

    asyncio.run(main())
    assert _stored(app) == (6 if end == "commit" else 0)


@pytest.mark.parametrize("kind", POSTGRES_ASYNC)
def test_an_async_connection_in_blocking_code_is_refused(app, kind):
    ship = app.tasks["ship"]

    async def main() -> None:
        async with own(kind, app.settings.url) as one:
            with app.transaction(one.raw) as tx:
                for call in (
                    lambda: tx.enqueue("ship", {"order": 1}),
                    lambda: ship.enqueue(1),
                    lambda: ship.using(connection=one.raw).enqueue(1),
                    lambda: app.workflow(chain(ship.job(1), ship.job(2))).enqueue(),
                ):
                    with pytest.raises(InvalidOption, match="aenqueue"):
                        call()
                await tx.aenqueue("ship", {"order": 2})
            await one.commit()

    asyncio.run(main())
    assert _stored(app) == 1


# ---- what is no transaction to join ------------------------------------------------------------------------


def test_autocommit_of_psycopg(app):
    with closing(_connect(app, autocommit=True)) as connection:
        with app.transaction(connection) as tx, pytest.raises(InvalidOption, match="no transaction is open"):
            tx.enqueue("ship", {"order": 1})
        with connection.transaction(), app.transaction(connection) as tx:
            tx.enqueue("ship", {"order": 2})
        with (
            pytest.raises(ZeroDivisionError),
            connection.transaction(),
            app.transaction(connection) as tx,
        ):
            raise ZeroDivisionError(tx.enqueue("ship", {"order": 3}).id)
    assert _stored(app) == 1


def test_blocks_of_psycopg_within_blocks(app):
    with _connect(app) as connection, connection.transaction():
        with connection.transaction() as inner:
            app.enqueue("ship", {"order": 1}, connection=connection)
            raise psycopg.Rollback(inner)
        app.enqueue("ship", {"order": 2}, connection=connection)
    assert _stored(app) == 1


def test_asyncpg_without_a_transaction_and_from_a_pool(app):
    async def main() -> None:
        pool = asyncpg.create_pool(_plain(app.settings.url), min_size=1, max_size=1)
        async with pool, pool.acquire() as connection:
            async with app.transaction(connection) as tx:
                with pytest.raises(InvalidOption, match="no transaction is open"):
                    await tx.aenqueue("ship", {"order": 1})
            async with connection.transaction(), app.transaction(connection) as tx:
                await tx.aenqueue("ship", {"order": 2})
        await app.aclose()

    asyncio.run(main())
    assert _stored(app) == 1


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-async", "asyncpg"])
def test_a_transaction_that_has_failed_says_so(app, kind):
    async def main() -> None:
        async with own(kind, app.settings.url) as one:
            with pytest.raises(Exception, match="division by zero"):
                await one.execute("SELECT 1 / 0")
            async with app.transaction(one.raw) as tx:
                with pytest.raises(Unavailable, match="roll it back"):
                    await tx.aenqueue("ship", {"order": 1})
        await app.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-async", "asyncpg"])
def test_a_connection_that_is_lost_says_so(app, kind):
    async def main() -> None:
        async with own(kind, app.settings.url) as one, app.transaction(one.raw) as tx:
            await tx.aenqueue("ship", {"order": 1})
            rows = await one.raw.fetch("SELECT pg_backend_pid()") if kind == "asyncpg" else None
            pid = rows[0][0] if rows else one.raw.info.backend_pid
            with closing(_connect(app, autocommit=True)) as killer:
                killer.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(Unavailable):
                await tx.aenqueue("ship", {"order": 2})
            with pytest.raises(Unavailable):
                await tx.aenqueue("ship", {"order": 3})
        await app.aclose()

    asyncio.run(main())
    assert _stored(app) == 0


def test_a_read_only_transaction(app):
    with _connect(app) as connection, app.transaction(connection) as tx:
        connection.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(InvalidOption, match="read only"):
            tx.enqueue("ship", {"order": 1})
    assert _stored(app) == 0


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_a_unique_key_needs_read_committed(app, level):
    """In a snapshot nobody sees who took the key since it was taken: both would have it."""
    ship = app.tasks["ship"]
    with _connect(app) as connection:
        connection.isolation_level = level
        connection.execute("SELECT 1")
        held = ship.using(unique="k").enqueue(1)
        with app.transaction(connection):
            with pytest.raises(InvalidOption, match="READ COMMITTED"):
                ship.using(unique="k").enqueue(2)
            ship.enqueue(3)
    assert held.state == State.PENDING
    assert _stored(app) == 2


def test_an_id_that_another_took_since_the_snapshot(app):
    ship = app.tasks["ship"]
    with _connect(app) as connection, app.transaction(connection):
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1 FROM orders")

        async def other() -> None:
            await ship.using(idempotency_key="i").aenqueue(1)

        app.portal.call(other())
        with pytest.raises(Unavailable, match="roll back"):
            ship.using(idempotency_key="i").enqueue(1)
    assert _stored(app) == 1


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
def test_a_connection_to_another_database_is_refused(app, kind, postgres_server):
    async def main(url: str) -> None:
        async with own(kind, url) as one, app.transaction(one.raw) as tx:
            with pytest.raises(InvalidOption, match="leads to the database"):
                await tx.aenqueue("ship", {"order": 1})
        await app.aclose()

    for url in new_database(postgres_server):
        asyncio.run(main(url))


def test_a_user_without_rights_is_told_which(app):
    schema = app.settings.url.rpartition("schema=")[2]
    role = f"poor_{schema}_{urlsplit(app.settings.url).path[1:]}"[:63]
    with closing(_connect(app, autocommit=True)) as connection:
        connection.execute(f'CREATE ROLE "{role}"')
        try:
            with connection.transaction(), app.transaction(connection) as tx:
                connection.execute(f'SET LOCAL ROLE "{role}"')
                with pytest.raises(Exception, match="grant"):
                    tx.enqueue("ship", {"order": 1})
            connection.execute(f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"')
            with connection.transaction(), app.transaction(connection) as tx:
                connection.execute(f'SET LOCAL ROLE "{role}"')
                with pytest.raises(Exception, match="grant"):
                    tx.enqueue("ship", {"order": 1})
            connection.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"')
            connection.execute(f'GRANT ALL ON ALL SEQUENCES IN SCHEMA "{schema}" TO "{role}"')
            with connection.transaction(), app.transaction(connection) as tx:
                connection.execute(f'SET LOCAL ROLE "{role}"')
                tx.enqueue("ship", {"order": 1})
        finally:
            connection.execute(f'DROP OWNED BY "{role}"')
            connection.execute(f'DROP ROLE "{role}"')
    assert _stored(app) == 1


def test_a_driver_that_cannot_is_refused_with_those_that_can(app):
    class Connection: ...

    Connection.__module__ = "psycopg2.extensions"
    with pytest.raises(InvalidOption, match=r"psycopg2\.extensions.*psycopg 3.*asyncpg"), app.transaction(Connection()):
        pass


# ---- the connection stays the caller's ---------------------------------------------------------------------


def test_factories_and_settings_of_the_connection_stay_the_callers(app):
    with _connect(app, row_factory=dict_row) as connection:
        connection.execute("SET statement_timeout = '7s'")
        with app.transaction(connection):
            app.tasks["ship"].using(unique="ü", tags=["t"]).enqueue(1)
            with pytest.raises(UniqueConflict):
                app.tasks["ship"].using(unique="ü", on_conflict="refuse").enqueue(1)
        assert connection.row_factory is dict_row
        row = connection.execute("SELECT 1 AS one, current_setting('statement_timeout') AS t").fetchone()
        assert row == {"one": 1, "t": "7s"}
        settings = "SELECT current_setting('lock_timeout') AS a, current_setting('search_path') AS b"
        with _connect(app, row_factory=dict_row) as other:
            assert connection.execute(settings).fetchone() == other.execute(settings).fetchone()
    assert _stored(app) == 1


def test_pipelines_are_refused(app):
    with (
        _connect(app) as connection,
        connection.pipeline(),
        app.transaction(connection) as tx,
        pytest.raises(InvalidOption, match="pipeline"),
    ):
        tx.enqueue("ship", {"order": 1})


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg"])
def test_a_call_that_is_cancelled_while_it_waits_has_done_nothing(app, kind):
    ship = app.tasks["ship"]

    async def main() -> None:
        async with own(kind, app.settings.url) as first, own(kind, app.settings.url) as second:
            await ship.using(connection=first.raw, unique="k").aenqueue(1)
            await ship.using(connection=second.raw).aenqueue(2)
            waiting = asyncio.create_task(ship.using(connection=second.raw, unique="k").aenqueue(3))
            await asyncio.wait([waiting], timeout=0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await ship.using(connection=second.raw).aenqueue(4)
            await second.commit()
            await first.commit()
        await app.aclose()

    asyncio.run(main())
    assert sorted(job.payload for job in _jobs(app)) == [b'{"order":1}', b'{"order":2}', b'{"order":4}']


def _jobs(app: Packhorse):
    from packhorse.backends.base import Query

    async def find():
        return (await (await app.backend()).find(Query())).jobs

    return app.portal.call(find())


def test_two_who_lock_each_other_out(app):
    """The server finds out; one is told to roll back, and then the other goes on."""
    ship = app.tasks["ship"]

    async def main() -> None:
        kind = "psycopg-async"
        async with own(kind, app.settings.url) as first, own(kind, app.settings.url) as second:
            await ship.using(connection=first.raw, unique="a").aenqueue(1)
            await ship.using(connection=second.raw, unique="b").aenqueue(2)
            crossed = {
                asyncio.create_task(ship.using(connection=first.raw, unique="b").aenqueue(1)): first,
                asyncio.create_task(ship.using(connection=second.raw, unique="a").aenqueue(2)): second,
            }
            done, going_on = await asyncio.wait(crossed, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            (loser,), (winner,) = done, going_on
            with pytest.raises(Unavailable, match="roll back"):
                await loser
            await crossed[loser].rollback()
            await winner
            await crossed[winner].commit()
        await app.aclose()

    asyncio.run(main())
    assert _stored(app) == 2


def test_a_full_queue_is_refused_at_once(app):
    from packhorse.backends.base import QueueChange

    ship = app.tasks["ship"]

    async def fill() -> None:
        await (await app.backend()).queues([QueueChange(queue="default", capacity=1)])

    app.portal.call(fill())
    with _connect(app) as connection, app.transaction(connection):
        ship.enqueue(1)
        with pytest.raises(QueueFull):
            ship.using(full_timeout="1h").enqueue(2)
        ship.using(queue="other").enqueue(3)
    assert _stored(app) == 2


def test_a_worker_starts_the_job_soon_after_the_commit(app):
    import time

    started: list[float] = []

    @app.task
    async def note() -> None:
        started.append(time.monotonic())

    async def main() -> list[float]:
        took = []
        async with app.worker(poll_interval_ms=30_000):
            await (await note.aenqueue()).aresult(60)
            started.clear()
            for _ in range(9):
                async with own("psycopg-async", app.settings.url) as one:
                    job = await note.using(connection=one.raw).aenqueue()
                    await asyncio.sleep(0.01)
                    assert not started
                    await one.commit()
                    committed = time.monotonic()
                    await job.aresult(60)
                    took.append(started.pop() - committed)
        await app.aclose()
        return sorted(took)

    took = asyncio.run(main())
    print(f"\ncommit → start: median {took[4] * 1000:.1f} ms, longest {took[-1] * 1000:.1f} ms")
    assert took[4] < 1


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg", "sqlalchemy-asyncpg-session"])
def test_tasks_of_one_block_take_turns(app, kind):
    """A refusal among them undoes itself only."""
    ship = app.tasks["ship"]

    async def main() -> None:
        async with own(kind, app.settings.url) as one:
            async with app.transaction(one.raw):
                answers = await asyncio.gather(
                    *(ship.using(unique=f"k{n % 4}", on_conflict="refuse").aenqueue(n) for n in range(12)),
                    return_exceptions=True,
                )
            assert sum(isinstance(answer, UniqueConflict) for answer in answers) == 8
            await one.commit()
        await app.aclose()

    asyncio.run(main())
    assert _stored(app) == 4


def test_a_transaction_left_open_on_a_running_job_keeps_its_worker_alive(app, caplog):
    """A child that is tied to a job locks it until the commit; what the job says of its progress must not wait."""
    runs: list[int] = []
    go = asyncio.Event()

    @app.task
    async def parent(ctx: Context) -> None:
        runs.append(ctx.attempt)
        while not go.is_set():
            ctx.progress(0.5)
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with app.worker(lease="2s", blocked_ms=0):  # a machine that stands still for a moment is not the point
            job = await parent.aenqueue()
            while not runs:
                await asyncio.sleep(0.01)
            async with own("psycopg-async", app.settings.url) as one:
                child = await app.tasks["ship"].using(connection=one.raw, after=[job]).aenqueue(1)
                await asyncio.sleep(7)  # three leases, and longer than the server waits for a lock
                go.set()
                await one.commit()
            await child.aresult(60)
            assert (await job.arecord()).attempt == 1
        await app.aclose()

    asyncio.run(main())
    assert runs == [1]
    assert not caplog.records
