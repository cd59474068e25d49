"""What the way to a server may do to us: nothing is lost, nothing is done twice, nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar
from urllib.parse import urlsplit

import pytest

from packhorse.backends.base import Pulse, Settlement, Verdict, WorkerInfo, queue_topic
from packhorse.backends.http import wake, wire
from packhorse.backends.http.backend import HTTPBackend
from packhorse.errors import Unavailable
from packhorse.job import JobSpec, State
from packhorse.server import watching
from tests.proxy import FaultProxy
from tests.witness import Witness, boot_s

from .kit import opened, served, until
from .strangers import head, response, stranger
from .test_strangers import GREETING

LEASE_MS = 30_000
T = TypeVar("T")


def specs(*ids: str) -> list[JobSpec]:
    return [JobSpec(id=job_id, type="work") for job_id in ids]


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Call until there is an answer: a time-out that is short may be over before a busy machine gives one."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Unavailable):
                return await call()


@asynccontextmanager
async def opened_at_last(url: str) -> AsyncIterator[HTTPBackend]:
    """Open a backend whose time-out is short."""
    async with AsyncExitStack() as stack:
        yield await until_answered(lambda: stack.enter_async_context(opened(url)))


def behind_proxy(url: str) -> FaultProxy:
    return FaultProxy(urlsplit(url).port or 0)


@pytest.mark.parametrize("after_bytes", [0, 1, 40, 200])
def test_a_lost_answer_to_an_enqueue_is_asked_for_again(after_bytes: int) -> None:
    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened(proxy.url(url)) as backend:
                    proxy.cut(after_bytes, b"contract/enqueue")
                    answers = await backend.enqueue(specs("a", "b"))
                    assert [answer.id for answer in answers] == ["a", "b"]
                    assert sum((await backend.counts())["default"].states.values()) == 2

    asyncio.run(main())


def test_a_lost_answer_to_a_claim_is_not_asked_for_again() -> None:
    """What the lost answer held must come back: the worker sees in a heartbeat what it does not know."""

    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened(proxy.url(url)) as backend:
                    await backend.enqueue(specs("a", "b"))
                    proxy.cut(0, b"contract/claim")
                    with pytest.raises(Unavailable, match="it may be done all the same"):
                        await backend.claim(["default"], 1, LEASE_MS, "w1")
                    held = (await backend.heartbeat(WorkerInfo(id="w1"), LEASE_MS)).held
                    assert len(held) == 1
                    released = [
                        Settlement(id=job_id, token=token, state=State.PENDING, refund=True)
                        for job_id, token in held.items()
                    ]
                    assert await backend.settle(released) == [Verdict.APPLIED]
                    assert len(await backend.claim(["default"], 5, LEASE_MS, "w1")) == 2

    asyncio.run(main())


def test_connections_that_were_reset_are_made_again() -> None:
    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened(proxy.url(url)) as backend:
                    for turn in range(5):
                        proxy.reset()
                        assert (await backend.enqueue(specs(f"job-{turn}")))[0].created
                    assert (await backend.counts())["default"].states[State.PENDING] == 5

    asyncio.run(main())


def test_a_server_that_is_frozen_is_unavailable_in_bounded_time_and_comes_back(witness: Witness) -> None:
    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened_at_last(f"{proxy.url(url)}?timeout=0.3") as backend:
                    await until_answered(backend.counts)
                    proxy.stall()
                    began = boot_s()
                    calls = [backend.enqueue(specs(f"job-{number}")) for number in range(40)]
                    answers = await asyncio.gather(*calls, return_exceptions=True)
                    assert all(isinstance(answer, Unavailable) for answer in answers), answers
                    assert witness.since_s(began) < 3
                    proxy.resume()
                    await until_answered(lambda: backend.enqueue(specs("after")))
                    assert await until_answered(lambda: backend.get(["after"])) != [None]

    asyncio.run(main())


def test_a_heartbeat_waits_for_no_other_call() -> None:
    """Leases depend on it: however many look-ups of handlers wait for a slow server."""

    async def main() -> None:
        slow = asyncio.Event()

        async def holding_back(reader, writer) -> None:
            while True:
                path, _ = await head(reader)
                if path == wire.PATH:
                    writer.write(GREETING)
                elif path == wire.HEARTBEAT.path:
                    writer.write(response(200, wire.write(Pulse(held={}, cancel=frozenset())), wire.MEDIA_TYPE))
                else:
                    await slow.wait()
                await writer.drain()

        async with stranger(holding_back) as url, opened(url) as backend:
            looking = [asyncio.create_task(backend.get(["a"])) for _ in range(100)]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(30):  # the others are never answered
                assert (await backend.heartbeat(WorkerInfo(id="w1"), LEASE_MS)).held == {}
            for call in looking:
                call.cancel()
            await asyncio.gather(*looking, return_exceptions=True)

    asyncio.run(main())


def test_a_server_that_is_gone_is_said_to_be_and_found_again() -> None:
    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened(proxy.url(url)) as backend:
                    proxy.refuse()
                    with pytest.raises(Unavailable, match="cannot be reached"):
                        await backend.counts()
                    proxy.accept()
                    assert await backend.counts() == {}

    asyncio.run(main())


# ---- cancelling ----------------------------------------------------------------------------------------------


def test_a_cancelled_claim_holds_no_job() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            for turn in range(20):
                await backend.enqueue(specs(f"job-{turn}"))
                call = asyncio.create_task(backend.claim(["default"], 1, LEASE_MS, "w1"))
                await asyncio.sleep(turn * 0.0003)  # somewhere on the way
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                if not call.cancelled():
                    (job,) = call.result()
                    await backend.settle([Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True)])

            async def given_back() -> bool:
                return (await backend.counts())["default"].states.get(State.RUNNING, 0) == 0

            await until(given_back, "all that was claimed is given back")

    asyncio.run(main())


def test_a_cancelled_call_is_done_or_not_done() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            for turn in range(20):
                call = asyncio.create_task(backend.enqueue(specs(f"{turn}-a", f"{turn}-b")))
                await asyncio.sleep(turn * 0.0003)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(0.1)  # what is on its way arrives
            for turn in range(20):
                a, b = await backend.get([f"{turn}-a", f"{turn}-b"])
                assert (a is None) == (b is None)

    asyncio.run(main())


def test_closing_twice_and_with_calls_and_bells_is_harmless() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            bell = backend.watch([queue_topic("default")])
            await bell.wait(30_000)
            calls = [asyncio.create_task(backend.counts()) for _ in range(10)]
            await asyncio.sleep(0)
            await backend.close()
            await backend.close()
            await asyncio.gather(*calls, return_exceptions=True)
            with pytest.raises(Unavailable, match="is not open"):
                await backend.counts()
            bell.close()

    asyncio.run(main())


# ---- waking --------------------------------------------------------------------------------------------------


def test_a_broken_stream_is_opened_again_and_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "RETRY_S_MAX", 0.05)

    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened(proxy.url(url)) as backend, opened(url) as other:
                    with backend.watch([queue_topic("default")]) as bell:
                        assert await bell.wait(30_000), "it rings when the server listens"
                        for turn in range(3):
                            proxy.reset()
                            assert await bell.wait(30_000), "something may have been missed"
                            while await bell.wait(100):
                                pass
                            await other.enqueue(specs(f"job-{turn}"))
                            assert await bell.wait(30_000), "and it hears again"

    asyncio.run(main())


def test_a_silent_stream_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.backends.http.wire.SIGN_OF_LIFE_MS", 100)

    async def main() -> None:
        async with served() as url:
            with behind_proxy(url) as proxy:
                async with opened_at_last(f"{proxy.url(url)}?timeout=0.5") as backend:
                    with backend.watch([queue_topic("default")]) as bell:
                        assert await bell.wait(30_000)
                        while await bell.wait(300):
                            pass
                        proxy.stall()
                        await asyncio.sleep(0.6)
                        proxy.resume()
                        assert await bell.wait(30_000), "a new stream rings all"

    asyncio.run(main())


def test_topics_are_added_while_the_stream_is_open_and_each_bell_hears_its_own() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend, opened(url) as other:
            bells = [backend.watch([queue_topic(f"q{number}")]) for number in range(5)]
            for bell in bells:
                assert await bell.wait(30_000)
            late = [backend.watch([queue_topic(f"late{number}")]) for number in range(300)]
            for bell in late:
                assert await bell.wait(30_000), "it rings when the server listens"
            for bell in (*bells, *late):
                while await bell.wait(0):
                    pass
            await other.enqueue([JobSpec(id="a", type="t", queue="late7")])
            assert await late[7].wait(30_000)
            assert not await late[8].wait(0)
            assert not await bells[0].wait(0)
            for bell in (*bells, *late):
                bell.close()

    asyncio.run(main())


def test_a_stream_that_the_server_forgot_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a balancer the change of a stream may reach a server that does not have it."""

    async def main() -> None:
        async with served() as url, opened(url) as backend, opened(url) as other:
            with backend.watch([queue_topic("a")]) as first:
                assert await first.wait(30_000)
                backend._wake._stream = "0" * 32
                with backend.watch([queue_topic("b")]) as second:
                    assert await second.wait(30_000)
                    while await second.wait(100) or await first.wait(0):
                        pass
                    await other.enqueue([JobSpec(id="x", type="t", queue="b")])
                    assert await second.wait(30_000)

    asyncio.run(main())


def test_no_more_streams_than_are_allowed_and_waiters_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "STREAMS_MAX", 1)

    async def main() -> None:
        async with served() as url, opened(url) as backend, opened(url) as other:
            with backend.watch([queue_topic("a")]) as bell:
                assert await bell.wait(30_000)
                with other.watch([queue_topic("a")]) as refused:
                    assert not await refused.wait(300)
                    assert await other.counts() == {}

    asyncio.run(main())


def test_the_stream_ends_when_nobody_waits_and_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch, witness: Witness
) -> None:
    monkeypatch.setattr(wake, "LINGER_S", 0.0)
    monkeypatch.setattr("packhorse.backends.http.wire.SIGN_OF_LIFE_MS", 50)

    async def main() -> None:
        async with served() as url, opened(url) as backend:
            with backend.watch([queue_topic("a")]) as bell:
                assert await bell.wait(30_000)
            await until(lambda: backend._wake._task is None or backend._wake._task.done(), "it listens no more")
            bell = backend.watch([queue_topic("a")])
            assert await bell.wait(30_000), "it listens again"
            began = boot_s()
        assert witness.since_s(began) < 3, "a stream holds up no stop"
        bell.close()

    asyncio.run(main())
