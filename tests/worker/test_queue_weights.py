"""A worker with weights on its queues: each claim asks all of them, in a random order of these odds."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from working import new_app, work

from packhorse import ConfigurationError
from packhorse.backends.memory import MemoryBackend
from packhorse.chance import Chance


@pytest.fixture
def orders(monkeypatch):
    """The queues of every claim, in their order."""
    seen: list[tuple[str, ...]] = []
    claim = MemoryBackend.claim

    async def spy(self, queues, limit, lease_ms, worker):
        seen.append(tuple(queues))
        return await claim(self, queues, limit, lease_ms, worker)

    monkeypatch.setattr(MemoryBackend, "claim", spy)
    return seen


def run(orders, queues, jobs):
    """Let one slot work through the jobs; answers the queues in the order the jobs ran."""
    ran: list[str] = []

    async def scenario() -> None:
        async with new_app(chance=Chance(7)) as app:

            @app.task
            async def note(queue: str) -> None:
                ran.append(queue)
                await asyncio.sleep(0.002)  # slow enough that there are many claims

            items = [{"type": "note", "payload": {"queue": name}, "queue": name} for name in jobs]
            await app.aenqueue_many(items)
            await app.worker(queues=queues, concurrency=1, burst=True).run()

    work(scenario)
    return ran


def test_without_weights_strictly_as_given(orders):
    ran = run(orders, ["a", "b"], ["b", "a"] * 30)
    assert ran == ["a"] * 30 + ["b"] * 30
    assert set(orders) == {("a", "b")}


def test_with_weights_none_starves_and_all_are_done(orders):
    ran = run(orders, {"critical": 6, "default": 3, "low": 1}, ["critical", "default", "low"] * 100)
    assert Counter(ran) == {"critical": 100, "default": 100, "low": 100}
    # Every claim asks all queues, and not always the same one first. The shares: tests/unit/test_queue_weights.py.
    assert all(sorted(order) == ["critical", "default", "low"] for order in orders)
    assert len({order[0] for order in orders}) > 1


def test_mixing_is_refused_before_the_worker_starts():
    with pytest.raises(ConfigurationError, match="b has no weight"):
        new_app().worker(queues=["a=2", "b"])
