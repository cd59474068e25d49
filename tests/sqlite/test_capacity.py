"""Capacities of queues in one file: races, restarts, and what counting costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from packhorse.backends.base import QueueChange
from packhorse.errors import QueueFull
from packhorse.job import State

from .helpers import new, opened, run


def test_racing_connections_never_exceed_a_capacity(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as one, opened(tmp_path / "a.db") as two:
            await one.queues([QueueChange(queue="default", capacity=50)])
            calls = [(one if number % 2 else two).enqueue(new(3)) for number in range(60)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert all(isinstance(error, QueueFull) and error.capacity == 50 for error in refused)
            assert len(refused) == 60 - 16
            assert (await two.counts())["default"].states == {State.PENDING: 48}

    run(main())


def test_a_capacity_is_kept_and_known_to_other_processes_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as one, opened(tmp_path / "a.db") as two:
            await two.enqueue(new(2))
            await one.queues([QueueChange(queue="default", capacity=2, paused=True)])
            outcome = await asyncio.gather(two.enqueue(new()), return_exceptions=True)
            assert isinstance(outcome[0], QueueFull)
            assert len(await two.enqueue(new(queue="other"))) == 1
        async with opened(tmp_path / "a.db") as one:
            settings = await one.queues([QueueChange(queue="default", paused=False)])
            assert settings["default"] == QueueChange(queue="default", capacity=2, paused=False)
            settings = await one.queues([QueueChange(queue="default", capacity=0)])
            assert settings["default"] == QueueChange(queue="default", paused=False)
            assert len(await one.enqueue(new(5))) == 5

    run(main())


def test_counting_costs_what_the_capacity_says_not_what_is_pending(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            for _ in range(20):
                await backend.enqueue(new(1_000))
            await backend.queues([QueueChange(queue="default", capacity=100)])
            db = backend._engine._db
            assert db is not None
            steps = 0

            def count() -> int:
                nonlocal steps
                steps += 1
                return 0

            db.set_progress_handler(count, 10)
            outcome = await asyncio.gather(backend.enqueue(new()), return_exceptions=True)
            db.set_progress_handler(None, 0)
            assert isinstance(outcome[0], QueueFull)
            assert steps < 200, f"{steps} times 10 steps of SQLite"

    run(main())
