"""Connections that break, servers that are away, poolers, and waking."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from packhorse.backends.base import Keep, Query, QueueChange, Settlement, queue_topic
from packhorse.backends.opening import open_backend
from packhorse.backends.postgres import schema
from packhorse.backends.postgres.connection import parse_url
from packhorse.errors import ConfigurationError, SchemaMismatch, Unavailable
from packhorse.job import State, Unique
from tests.servers import Private, with_parameter
from tests.witness import Witness, boot_s

from .helpers import new, opened, run, shell, until

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


def _kill(url: str, which: str) -> int:
    """End connections of packhorse, and wait until they are gone; answers how many there were."""
    with shell(url) as db:
        return len(
            db.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database() "
                f"AND application_name = 'packhorse' AND pid <> pg_backend_pid() AND {which}".encode()
            ).fetchall()
        )


def test_killed_connections_are_replaced(postgres_url: str) -> None:
    """B17."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            for _ in range(3):
                await asyncio.gather(*(backend.enqueue(new(1, tags=(f"t{n}",))) for n in range(8)))
                await backend.counts()
                assert _kill(postgres_url, "TRUE") >= 1
                assert (await backend.enqueue(new(1)))[0].created

    run(main())


def test_a_killed_listener_comes_back(postgres_url: str, witness: Witness) -> None:
    """B20: within a second, and what was told meanwhile is not lost."""

    async def main() -> None:
        async with opened(postgres_url) as waiter, opened(postgres_url) as other:
            with waiter.watch([queue_topic("default")]) as bell:
                await until(lambda: waiter._wake.delivers, "the listener has tried itself")
                for _ in range(3):
                    await bell.wait(0)
                    waiter._wake.delivers = None
                    assert _kill(postgres_url, "query LIKE 'LISTEN%'") == 1
                    killed = boot_s()
                    await other.enqueue(new(1))
                    assert await bell.wait(30_000), "no ring after the listener was killed"
                    assert witness.since_s(killed) < 1.5
                    await until(lambda: waiter._wake.delivers, "it listens again")
                    await bell.wait(300)
                    began = boot_s()
                    await other.enqueue(new(1))
                    assert await bell.wait(30_000)
                    assert witness.since_s(began) < 0.5

    run(main())


def test_a_ring_crosses_processes_quickly_and_own_rings_are_not_doubled(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as waiter, opened(postgres_url) as other:
            with waiter.watch([queue_topic("default")]) as bell:
                await until(lambda: waiter._wake.delivers, "the listener has tried itself")
                await bell.wait(0)
                await other.enqueue(new(1))
                assert await bell.wait(30_000)
                await other.enqueue(new(1, queue="elsewhere"))
                assert not await bell.wait(100)
                await waiter.enqueue(new(1))
                assert await bell.wait(0)
                assert not await bell.wait(100)

    run(main())


def test_many_topics_fit_into_a_notification(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as waiter, opened(postgres_url) as other:
            specs = new(1_000)
            await other.enqueue(specs)
            jobs = await other.claim(["default"], 1_000, 30_000, "w")
            with waiter.watch([f"job:{specs[500].id}"]) as bell:
                await until(lambda: waiter._wake.delivers, "the listener has tried itself")
                await bell.wait(0)
                await other.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs])
                assert await bell.wait(30_000)

    run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://postgres:secret@127.0.0.1:1/x", "not available"),
        ("postgresql://postgres:secret@127.0.0.1:1/x?schema=No", "schema="),
        ("postgresql://postgres:secret@127.0.0.1:1/x?schema=pg_x", "schema="),
        ("postgresql://postgres:secret@127.0.0.1:1/x?pool=0", "pool="),
        ("postgresql://postgres:secret@127.0.0.1:1/x?timeout=never", "timeout"),
        ("postgresql://postgres:secret@127.0.0.1:1/x?nonsense=1", "cannot be read"),
    ],
)
def test_what_cannot_be_opened_says_why_and_keeps_the_password(url: str, words: str) -> None:
    async def main() -> None:
        with pytest.raises((ConfigurationError, Unavailable)) as caught:
            await open_backend(url).open()
        assert words in str(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            assert "secret" not in str(error)
            error = error.__cause__

    run(main())


def test_a_database_that_is_not_there_says_so(postgres_url: str) -> None:
    async def main() -> None:
        base = parse_url(postgres_url).conninfo
        with pytest.raises(ConfigurationError, match="does not exist"):
            await open_backend(base.rpartition("/")[0] + "/no_such_database").open()

    run(main())


def test_an_older_or_newer_schema_is_refused_with_the_remedy(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url):
            pass
        for number, remedy in ((0, "packhorse migrate"), (99, "upgrade this one")):
            with shell(postgres_url) as db:
                db.execute("UPDATE version SET number = %s", (number or -1,))
            with pytest.raises(SchemaMismatch, match=remedy):
                await open_backend(postgres_url).open()

    run(main())


def test_a_schema_of_another_program_is_refused(postgres_url: str) -> None:
    async def main() -> None:
        with shell(postgres_url) as db:
            name = parse_url(postgres_url).schema
            db.execute(f'CREATE SCHEMA "{name}"'.encode())
            db.execute(f'CREATE TABLE "{name}".mine (a int)'.encode())
        with pytest.raises(ConfigurationError, match="another program"):
            await open_backend(postgres_url).open()

    run(main())


def test_no_schema_is_made_in_place_of_one_that_was_dropped(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.close()
            with shell(postgres_url) as db:
                db.execute(f'DROP SCHEMA "{parse_url(postgres_url).schema}" CASCADE'.encode())
            with pytest.raises(ConfigurationError, match="gone"):
                await backend.open()

    run(main())


def test_many_open_an_empty_database_at_once(postgres_url: str) -> None:
    async def main() -> None:
        backends = [open_backend(postgres_url) for _ in range(8)]
        await asyncio.gather(*(backend.open() for backend in backends))
        assert (await backends[3].enqueue(new(1)))[0].created
        for backend in backends:
            assert await backend.migrate() >= 1
            await backend.close()

    run(main())


def test_a_store_is_made_whole_or_not_at_all(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came between two migrations of a new store was once refused: the store has schema 1, this needs 2."""

    async def main() -> None:
        first, *_ = schema.migrations()
        monkeypatch.setattr(schema, "migrations", lambda: [first, (2, "SELECT 1 / 0")])
        with pytest.raises(Exception, match="division by zero"):
            await open_backend(postgres_url).open()
        monkeypatch.undo()
        async with opened(postgres_url) as backend:
            assert (await backend.enqueue(new(1)))[0].created

    run(main())


def test_a_user_without_rights_is_told_what_is_missing(postgres_url: str) -> None:
    async def main() -> None:
        with shell(postgres_url) as db:
            db.execute("DO $$ BEGIN CREATE ROLE packhorse_nobody LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
            name = db.execute("SELECT current_database()").fetchone()[0]
            db.execute(f'REVOKE CREATE ON DATABASE "{name}" FROM PUBLIC'.encode())
        poor = with_parameter(postgres_url, "user", "packhorse_nobody")
        with pytest.raises(ConfigurationError, match="may not make the schema"):
            await open_backend(poor).open()
        async with opened(postgres_url):
            with pytest.raises(ConfigurationError, match="grant"):
                await open_backend(poor).open()

    run(main())


def test_a_lock_that_somebody_holds_ends_a_call_in_bounded_time(postgres_url: str, witness: Witness) -> None:
    async def main() -> None:
        async with opened(postgres_url + "&timeout=1500ms") as backend:
            specs = new(2)
            await backend.enqueue(specs)
            with shell(postgres_url, autocommit=False) as db:
                db.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (specs[0].id,))
                began = boot_s()
                with pytest.raises(Unavailable, match="open transaction"):
                    await backend.cancel([specs[0].id])
                assert witness.since_s(began) < 5
                (job,) = await backend.claim(["default"], 5, 30_000, "w")
                assert job.id == specs[1].id
                db.rollback()
            assert [job.id for job in await backend.claim(["default"], 5, 30_000, "w")] == [specs[0].id]

    run(main())


def test_a_cancelled_claim_gives_its_jobs_back(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.enqueue(new(5))
            for _ in range(20):
                task = asyncio.create_task(backend.claim(["default"], 5, 30_000, "w"))
                await asyncio.sleep(0.0005)
                task.cancel()
                await asyncio.wait([task])

            async def all_are_back() -> bool:
                found = await backend.find(Query(states=(State.PENDING,)))
                return len(found.jobs) == 5 and all(job.attempt == 0 for job in found.jobs)

            await until(all_are_back, "all are pending again, no attempt counted")

    run(main())


def test_everything_works_behind_a_pooler_in_transaction_mode(private: Private) -> None:
    """PgBouncer hands each transaction to another connection: no session state, no prepared statements, no LISTEN."""

    async def main() -> None:
        url = private.pgbouncer(private.postgres(fsync="off"), default_pool_size=4).url
        async with opened(url) as one, opened(url) as two:

            async def producer(number: int) -> None:
                for _ in range(10):
                    await one.enqueue(new(5))
                    await one.enqueue(new(1, unique=Unique(key=f"k{number}")))

            done: list[str] = []

            async def consumer(backend: Any, worker: str) -> None:
                misses = 0
                while misses < 20:
                    jobs = await backend.claim(["default"], 10, 30_000, worker)
                    misses = 0 if jobs else misses + 1
                    await backend.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs])
                    done.extend(job.id for job in jobs)
                    await backend.tick(100, FOREVER)
                    await asyncio.sleep(0.005)

            await asyncio.gather(*map(producer, range(4)), *(consumer(b, f"w{n}") for n, b in enumerate((one, two))))
            assert len(done) == len(set(done)) >= 200
            assert (await one.queues([QueueChange(queue="default", paused=True)]))["default"].paused
            with two.watch([queue_topic("default")]) as bell:
                await one.enqueue(new(1))
                assert await bell.wait(8_000)  # by NOTIFY where it arrives, else by ringing now and then

    run(main())


def test_text_of_any_kind_comes_back(postgres_url: str) -> None:
    """B37: PostgreSQL's text holds no NUL."""

    async def main() -> None:
        from packhorse.backends.base import Note, WorkerInfo
        from packhorse.job import JobError

        async with opened(postgres_url) as backend:
            nasty = "a\0b\x1b[31m\u2028é\U0001f600"
            spec = new(1, payload=b'"\\u0000\x00"', meta={"m": nasty})[0]
            await backend.enqueue([spec])
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            assert (job.payload, job.meta) == (spec.payload, spec.meta)
            note = Note(id=job.id, token=job.token, progress=0.1 + 0.2, text=nasty, step="s", result=b"\0")
            await backend.heartbeat(WorkerInfo(id="w"), 30_000, [note])
            error = JobError(attempt=1, at_ms=1, kind="K", message=nasty, traceback=nasty)
            await backend.settle(
                [Settlement(id=job.id, token=job.token, state=State.FAILED, error=error, result=b"\0\xff")]
            )
            (record,) = await backend.get([job.id])
            assert record is not None
            assert (record.errors, record.result, record.progress_note) == ((error,), b"\0\xff", nasty)
            assert (record.progress, record.steps) == (0.1 + 0.2, {"s": b"\0"})
            assert await backend.get(["no\0such"]) == [None]
            assert await backend.cancel(["no\0such"]) == ["missing"]
            assert (await backend.find(Query(tag="no\0such"))).jobs == []

    run(main())


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql:///db?host=/run/postgresql&pool=2", {"dbname": "db", "host": "/run/postgresql"}),
        ("postgres://u:p%40w@h1:1,h2:2/db?schema=s&target_session_attrs=read-write", {"host": "h1,h2", "port": "1,2"}),
        ("postgresql://u@h/db?options=-c%20a%3Db&timeout=3s", {"options": "-c a=b", "user": "u"}),
    ],
)
def test_all_but_our_own_parameters_reach_the_driver(url: str, wanted: dict[str, str]) -> None:
    found = psycopg.conninfo.conninfo_to_dict(parse_url(url).conninfo)
    assert wanted.items() <= found.items()
    assert not {"schema", "pool", "timeout"} & set(found)


def test_a_migration_under_prepared_statements_is_not_noticed(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url + "&pool=1") as backend:
            for _ in range(8):
                await backend.queues()
            with shell(postgres_url) as db:
                db.execute("ALTER TABLE queues ALTER COLUMN capacity TYPE integer")
            assert await backend.queues() == {}

    run(main())
