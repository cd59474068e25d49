"""Servers that restart, freeze or lose replies, and clients that stop in the middle."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from packhorse.backends.base import QueueChange, Settlement, Verdict, queue_topic
from packhorse.backends.opening import open_backend
from packhorse.backends.postgres.connection import IDLE_MS, connect, explain, parse_url
from packhorse.errors import StoreFull, Unavailable
from packhorse.job import State
from tests.proxy import FaultProxy
from tests.servers import Private, with_parameter
from tests.witness import Witness, boot_s

from .helpers import new, opened, run, until


@pytest.mark.parametrize("hard", [False, True])
def test_it_goes_on_after_the_server_was_restarted(private: Private, hard: bool) -> None:
    """B17, B2: idle connections, one in use, and the listener."""

    async def main() -> None:
        server = private.postgres()
        async with opened(server.url) as backend, opened(server.url) as other:
            await backend.enqueue(new(3))
            with backend.watch([queue_topic("default")]) as bell:
                await until(lambda: backend._wake.delivers, "the listener has tried itself")
                backend._wake.delivers = None
                await asyncio.to_thread(server.restart, hard=hard)
                await until(lambda: _works(backend), "it works again")
                assert len(await backend.claim(["default"], 9, 30_000, "w")) == 3
                await until(lambda: backend._wake.delivers, "it listens again")
                await bell.wait(0)
                await until(lambda: _works(other), "the other works again")
                await other.enqueue(new(1))
                assert await bell.wait(30_000)

    run(main())


async def _works(backend) -> bool:
    try:
        await backend.counts()
    except Unavailable:
        return False
    return True


def test_a_frozen_server_ends_calls_in_bounded_time(private: Private, witness: Witness) -> None:
    async def main() -> None:
        server = private.postgres()
        async with opened(with_parameter(server.url, "timeout", "1s")) as backend:
            await backend.enqueue(new(1))
            server.freeze()
            try:
                began = boot_s()
                calls = [backend.enqueue(new(1)), backend.claim(["default"], 1, 30_000, "w"), backend.counts()]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(answer) for answer in answers] == [Unavailable] * 3
                assert witness.since_s(began) < 10
                with pytest.raises(Unavailable):
                    await open_backend(with_parameter(server.url, "timeout", "1s")).open()
            finally:
                server.thaw()
            await until(lambda: _works(backend), "it works again")

    run(main())


def test_a_lost_reply_leaves_a_call_done_or_not_done(private: Private) -> None:
    async def main() -> None:
        server = private.postgres()
        with FaultProxy(server.port) as proxy:
            async with opened(server.url) as direct, opened(proxy.url(server.url)) as backend:
                await backend.counts()
                for _ in range(5):
                    specs = new(10)
                    proxy.cut(after_bytes=0)
                    with pytest.raises(Unavailable):
                        await backend.enqueue(specs)
                    await until(lambda: _works(backend), "it works again")
                    stored = sum(record is not None for record in await direct.get([spec.id for spec in specs]))
                    assert stored in {0, 10}
                    assert len(await backend.enqueue(specs)) == 10
                    jobs = await backend.claim(["default"], 10, 30_000, "w")
                    assert len(jobs) == 10
                    ends = [Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs]
                    proxy.cut(after_bytes=0)
                    with pytest.raises(Unavailable):
                        await backend.settle(ends)
                    await until(lambda: _works(backend), "it works again")
                    assert len(set(await backend.settle(ends))) == 1  # all done before, or all now
                    assert set(await backend.settle(ends)) == {Verdict.STALE}

    run(main())


def test_a_client_that_stops_in_a_claim_holds_a_pause_up_for_5_s_at_most(postgres_url: str, witness: Witness) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            stopped = await connect(backend.location)
            await stopped.execute("BEGIN")
            await stopped.execute("SELECT pg_advisory_xact_lock_shared($1)", (backend._store.lock_key("gate"),))
            began = boot_s()
            paused = False
            while not paused:
                try:
                    paused = (await backend.queues([QueueChange(queue="default", paused=True)]))["default"].paused
                except Unavailable:
                    assert witness.since_s(began) < 2 * IDLE_MS / 1000
            assert witness.since_s(began) < 1.5 * IDLE_MS / 1000
            await stopped.close()

    run(main())


def test_a_full_disk_is_told_apart_from_a_server_that_is_away() -> None:
    location = parse_url("postgresql://localhost/jobs")
    full = explain(psycopg.errors.DiskFull("could not extend file: No space left on device"), location)
    assert type(full) is StoreFull
    assert "No space left" in str(full)
    assert type(explain(psycopg.errors.AdminShutdown("ending"), location)) is Unavailable
