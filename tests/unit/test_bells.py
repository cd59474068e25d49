"""Bells: no ring is lost between looking and waiting, and none is heard by who did not ask."""

from __future__ import annotations

import asyncio
import threading

import pytest

from packhorse.backends.bells import Bells

LONG_MS = 60_000


def test_a_ring_before_the_wait_is_not_lost():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a", "b"]) as bell:
            bells.ring(["b"])
            bells.ring(["a"])
            assert await bell.wait(LONG_MS)
            assert not await bell.wait(1), "two rings between two waits are one"
            assert not await bell.wait(0)
            bells.ring(["a"])
            assert await bell.wait(0), "a wait of no time still hears what rang"

    asyncio.run(main())


def test_other_topics_are_not_heard():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a"]) as bell:
            bells.ring(["b", "A", ""])
            assert not await bell.wait(1)
            bells.ring_all()
            assert await bell.wait(LONG_MS)

    asyncio.run(main())


def test_a_waiter_wakes():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a"]) as bell:
            waiter = asyncio.create_task(bell.wait(LONG_MS))
            await asyncio.sleep(0)
            bells.ring(["a"])
            assert await waiter
            assert not await bell.wait(1), "the ring was used up"

    asyncio.run(main())


def test_a_ring_from_another_thread_wakes():
    async def main() -> None:
        bells = Bells()
        for _ in range(50):
            with bells.watch(["a"]) as bell:
                thread = threading.Thread(target=bells.ring, args=(["a"],))
                waiter = asyncio.create_task(bell.wait(LONG_MS))
                await asyncio.sleep(0)
                thread.start()
                assert await waiter
                thread.join()

    asyncio.run(main())


def test_rings_of_many_threads_are_never_lost():
    """Every ring comes after a look: if one were lost, the count would stop short and the wait would time out."""

    async def main() -> None:
        bells, done = Bells(), [0]
        lock = threading.Lock()

        def work() -> None:
            for _ in range(500):
                with lock:
                    done[0] += 1
                bells.ring(["a"])

        with bells.watch(["a"]) as bell:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            while done[0] < 2_000:
                assert await bell.wait(LONG_MS), "a ring was lost"
            for thread in threads:
                thread.join()

    asyncio.run(main())


def test_a_cancelled_wait_keeps_the_ring():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a"]) as bell:
            waiter = asyncio.create_task(bell.wait(LONG_MS))
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            bells.ring(["a"])
            assert await bell.wait(LONG_MS)

    asyncio.run(main())


def test_a_ring_and_a_cancel_at_once_lose_no_ring():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a"]) as bell:
            waiter = asyncio.create_task(bell.wait(LONG_MS))
            await asyncio.sleep(0)
            bells.ring(["a"])
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            assert await bell.wait(0), "the cancelled wait took the ring with it"

    asyncio.run(main())


def test_closed_bells_leave_nothing_behind():
    async def main() -> None:
        bells = Bells()
        first, second = bells.watch(["a", "a", "b"]), bells.watch(["a"])
        first.close()
        first.close()
        bells.ring(["a", "b"])
        assert await second.wait(0)
        second.close()
        assert bells._by_topic == {}
        bells.ring(["a"])
        bells.ring_all()

    asyncio.run(main())


def test_the_bell_of_a_closed_loop_is_taken_down():
    bells = Bells()

    async def hang() -> None:
        bells.watch(["a"])

    thread = threading.Thread(target=lambda: asyncio.run(hang()))
    thread.start()
    thread.join()
    bells.ring(["a"])
    assert bells._by_topic == {}


def test_a_timeout_answers_false_in_time():
    async def main() -> None:
        bells = Bells()
        with bells.watch(["a"]) as bell:
            async with asyncio.timeout(LONG_MS / 1000):
                for timeout_ms in (-1, 0, 0.1, 5):
                    assert not await bell.wait(timeout_ms)

    asyncio.run(main())
