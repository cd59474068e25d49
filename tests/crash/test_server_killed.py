"""`kill -9` of a server at the worst moments: what was acknowledged is there, what is asked for again is one job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from packhorse.backends.base import Backend, Query
from packhorse.backends.opening import open_backend
from packhorse.chance import Chance
from packhorse.errors import Unavailable
from packhorse.job import JobSpec
from tests.http.process import ServerProcess
from tests.proxy import FaultProxy

LIMIT_S = 60.0


async def until_stored(store: Backend, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len((await store.find(Query(limit=1_000))).jobs) < count:
            await asyncio.sleep(0.005)


async def killed_between_commit_and_reply(
    directory: Path, ask: Callable[[str], Awaitable[bool]], again: Callable[[str], Awaitable[bool]]
) -> None:
    """Let a request through, lose its reply, kill the server once the job is durable, and ask a new one again."""
    store_url = f"sqlite:///{directory / 'jobs.db'}"
    with (
        ServerProcess(directory, store_url) as server,
        FaultProxy(server.port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        # The connection breaks when the server dies, not before: a client that repeats its call would get an answer.
        patch.setattr("tests.proxy.QUIET_S", 60.0)
        store = open_backend(store_url)
        await store.migrate()
        await store.open()
        try:
            proxy.cut(0, b"POST")
            lost = asyncio.create_task(ask(proxy.url(server.url)))
            await until_stored(store, 1)
            server.kill()
            assert not await lost, "an answer came through"
            server.start()
            assert await again(proxy.url(server.url))
            assert len((await store.find(Query(limit=10))).jobs) == 1, "one job, whatever became of the first answer"
        finally:
            await store.close()


def test_a_request_with_an_idempotency_key_makes_one_job(tmp_path: Path) -> None:
    async def post(url: str) -> int:
        async with aiohttp.ClientSession() as client:
            headers = {"Idempotency-Key": "order-7"}
            body = {"type": "email", "payload": {"to": "a@example.com"}}
            async with client.post(f"{url}/api/v1/jobs", json=body, headers=headers) as answer:
                return answer.status

    async def ask(url: str) -> bool:
        try:
            return await post(url) == 201
        except (aiohttp.ClientError, OSError):
            return False

    async def again(url: str) -> bool:
        return await post(url) == 200

    asyncio.run(killed_between_commit_and_reply(tmp_path, ask, again))


def test_an_enqueue_of_a_backend_repeated_makes_one_job(tmp_path: Path) -> None:
    spec = JobSpec(id="01a00000-0000-7000-8000-000000000001", type="email")

    async def enqueue(url: str) -> bool:
        backend = open_backend(url)
        try:
            await backend.open()
            (answer,) = await backend.enqueue([spec])
            assert answer.id == spec.id
            return not answer.created
        finally:
            await backend.close()

    async def ask(url: str) -> bool:
        try:
            await enqueue(url)
        except Unavailable:
            return False
        return True

    async def no_greeting_is_cut(url: str) -> bool:
        return await ask(url)

    asyncio.run(killed_between_commit_and_reply(tmp_path, no_greeting_is_cut, enqueue))


@pytest.mark.timeout(180)
def test_servers_killed_at_any_moment_lose_and_double_nothing(tmp_path: Path) -> None:
    """Producers go on until each of their jobs is acknowledged; the server is killed again and again meanwhile."""
    chance = Chance(20261122)
    jobs_each, producers, kills = 150, 4, 4
    store_url = f"sqlite:///{tmp_path / 'jobs.db'}"

    async def produce(url: str, number: int) -> None:
        backend = open_backend(f"{url}?timeout=5")
        opened = False
        for place in range(jobs_each):
            spec = JobSpec(id=f"producer-{number}-job-{place}", type="email")
            while True:
                try:
                    if not opened:
                        await backend.open()
                        opened = True
                    await backend.enqueue([spec])
                    break
                except Unavailable:
                    await asyncio.sleep(0.02)
        await backend.close()

    async def kill_now_and_then(server: ServerProcess) -> None:
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.05, 0.25))
            server.kill()
            await asyncio.to_thread(server.start)

    async def main(server: ServerProcess) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(producers):
                group.create_task(produce(server.url, number))
            group.create_task(kill_now_and_then(server))
        store = open_backend(store_url)
        await store.open()
        counts = await store.counts()
        assert sum(counts["default"].states.values()) == producers * jobs_each
        await store.close()

    with ServerProcess(tmp_path, store_url) as server:
        asyncio.run(main(server))
