"""A cancelled call hears of it: the driver swallows a cancellation that comes while it reads, so it is shielded."""

import asyncio
import random

from packhorse.backends.base import Keep
from packhorse.backends.opening import open_backend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.worker.ticker import Ticker

KEEP = Keep(succeeded_ms=10**9, failed_ms=10**9, cancelled_ms=10**9)


def test_no_call_outlives_its_cancellation(redis_url: str) -> None:
    async def run() -> None:
        backend = open_backend(redis_url)
        await backend.open()
        chance = random.Random(1)
        for _ in range(300):
            task = asyncio.create_task(backend.counts())
            await asyncio.sleep(chance.random() * 0.002)
            asked = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == asked
        await backend.close()

    asyncio.run(run())


def test_tickers_end_when_they_are_told_to(redis_url: str) -> None:
    """A hundred workers were told to stop at once, and some of them ticked on for ever."""

    async def run() -> None:
        backends = [open_backend(redis_url) for _ in range(10)]
        for backend in backends:
            await backend.open()
        for number in range(10):
            tasks = [asyncio.create_task(Ticker(one, KEEP, CHANCE, SYSTEM_CLOCK).run()) for one in backends]
            await asyncio.sleep(number * 0.003)
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=60)
            assert not left
        for backend in backends:
            async with asyncio.timeout(60):
                await backend.close()

    asyncio.run(run())
