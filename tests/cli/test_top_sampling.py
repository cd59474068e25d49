"""How `top` asks a store: what comes is counted exactly, what it costs is bounded, an outage is survived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from packhorse.backends.base import Keep, Page, Query, QueueCounts, Settlement, WorkerInfo
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.cli.top import sampling
from packhorse.cli.top.history import History
from packhorse.cli.top.sampling import DEAD_MAX, FAILURES_STALE_MS, NEWEST_MAX, Sampler
from packhorse.clock import ManualClock
from packhorse.errors import Forbidden, Unavailable
from packhorse.job import JobError, JobSpec, State

CHANCE = Chance(11)


class Lab:
    """A store in this process whose clock is ours, a sampler on it, and what it was asked."""

    def __init__(self, queue: str | None = None) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.backend = MemoryBackend(self.store)
        self.asked: list[str] = []
        self.limits: list[int] = []
        self.opened = 0
        self.fails: Exception | None = None
        self.takes_ms = 0
        self.history = History()
        self.sampler = Sampler(self.make, self.clock, queue)

    def make(self) -> MemoryBackend:
        self.opened += 1
        return Watched(self)

    async def add(self, count: int, queue: str = "default", **fields: Any) -> None:
        ids = CHANCE.ids(self.clock.now_ms(), count)
        specs = [JobSpec(id=job_id, type="email", queue=queue, **fields) for job_id in ids]
        for start in range(0, count, 1_000):
            await self.backend.enqueue(specs[start : start + 1_000])

    async def end(
        self, count: int, state: State = State.SUCCEEDED, message: str = "no such address", **more: Any
    ) -> None:
        while count > 0:
            part = min(count, 1_000)
            claimed = await self.backend.claim(["default"], part, 30_000, "w")
            settlements = [
                Settlement(
                    id=job.id,
                    token=job.token,
                    state=state,
                    error=JobError(attempt=job.attempt, at_ms=self.clock.now_ms(), kind="ValueError", message=message)
                    if state is not State.SUCCEEDED
                    else None,
                    **more,
                )
                for job in claimed
            ]
            await self.backend.settle(settlements)
            count -= part

    async def look(self, after_ms: int = 1_000) -> History:
        self.clock.advance(after_ms)
        self.asked.clear()
        self.limits.clear()
        self.history.add(await self.sampler.look())
        return self.history


class Watched(MemoryBackend):
    """A backend that tells what it was asked, and fails or takes its time when it is told to."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.store)
        self._lab = lab

    def _before(self, verb: str) -> None:
        self._lab.asked.append(verb)
        self._lab.clock.advance(self._lab.takes_ms)
        if self._lab.fails is not None:
            raise self._lab.fails

    async def counts(self) -> dict[str, QueueCounts]:
        self._before("counts")
        return await super().counts()

    async def workers(self) -> list[WorkerInfo]:
        self._before("workers")
        return await super().workers()

    async def find(self, query: Query) -> Page:
        self._before("find")
        assert query.brief
        self._lab.limits.append(query.limit)
        return await super().find(query)

    async def enqueue(self, specs: Sequence[JobSpec]) -> Any:
        raise AssertionError("looking must not write")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_rates_are_exact_by_queue() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(10)
        await lab.look()
        await lab.add(30)
        await lab.add(5, "mail")
        await lab.end(20)
        history = await lab.look()
        assert history.rates() == type(history.rates())(35, 20, 0)
        assert history.rates("default") == type(history.rates())(30, 20, 0)
        assert history.rates("mail").came == 5
        history = await lab.look(1_000)
        assert (history.rates().came, history.rates().ended) == (35 / 2, 20 / 2)

    run(scenario)


def test_retention_does_not_hide_what_ends() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(40)
        await lab.end(40)
        await lab.look()
        lab.clock.advance(10)
        await lab.add(40)
        await lab.end(40)
        await lab.backend.tick(1_000, Keep(succeeded_ms=500))  # drops the first forty
        lab.clock.advance(500)
        history = await lab.look(490)
        assert (history.count(State.SUCCEEDED), history.rates().came, history.rates().ended) == (40, 40, 40)

    run(scenario)


def test_more_than_are_looked_at_are_at_least_as_many_as_the_counts_say() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(10)
        await lab.look()
        await lab.add(NEWEST_MAX - 1)
        assert not (await lab.look()).at_least
        assert lab.history.rates().came == NEWEST_MAX - 1
        await lab.add(3 * NEWEST_MAX)
        assert (await lab.look()).at_least
        assert sum(lab.limits) <= NEWEST_MAX
        assert lab.history.came(30)[-1] == 3 * NEWEST_MAX

    run(scenario)


def test_a_quiet_store_is_asked_little() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(3)
        await lab.look()
        await lab.look()
        assert lab.asked == ["counts", "workers", "find"]
        assert lab.limits == [sampling.NEWEST_MIN]

    run(scenario)


def test_a_slow_store_is_asked_for_a_twentieth_of_the_time() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.look()
        assert lab.sampler.pause_ms(1_000) == 1_000
        lab.takes_ms = 100
        await lab.look()
        assert lab.sampler.took_ms == 100 * len(lab.asked)
        assert lab.sampler.pause_ms(1_000) == 19 * lab.sampler.took_ms
        assert lab.sampler.pause_ms(60_000) == 60_000 - lab.sampler.took_ms

    run(scenario)


def test_failures_are_grouped_as_the_dead_letter_queue_is_and_retries_are_told_apart() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(3)
        await lab.end(2, State.FAILED, "no such address 17")
        await lab.end(1, State.SCHEDULED, "the server is away", delay_ms=60_000)
        failures = (await lab.look()).sample.failures  # type: ignore[union-attr]
        assert sorted((each.retries, each.error) for each in failures.latest) == [
            (False, "ValueError: no such address 17"),
            (False, "ValueError: no such address 17"),
            (True, "ValueError: the server is away"),
        ]
        (group,) = failures.groups
        assert (group.jobs, group.title) == (2, "ValueError: no such address #")

    run(scenario)


def test_failures_are_read_when_their_number_changed_and_not_with_each_look() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(DEAD_MAX + 20)
        await lab.end(DEAD_MAX + 10, State.FAILED)
        await lab.look()
        assert lab.limits[-1] == DEAD_MAX
        await lab.look()
        assert len(lab.limits) == 1
        await lab.end(1, State.FAILED, "another")
        await lab.look(2_000)
        assert lab.history.sample is not None
        assert lab.history.sample.failures.latest[0].error == "ValueError: another"
        await lab.look(FAILURES_STALE_MS)
        assert len(lab.limits) == 2

    run(scenario)


def test_the_longest_running_stand_first_and_too_many_are_not_read() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(2 * sampling.FEW)
        await lab.backend.claim(["default"], 1, 30_000, "w1")
        lab.clock.advance(5_000)
        await lab.backend.claim(["default"], 1, 30_000, "w2")
        running = (await lab.look()).sample.running  # type: ignore[union-attr]
        assert running is not None
        assert [run.worker for run in running] == ["w1", "w2"]
        await lab.backend.claim(["default"], sampling.FEW, 30_000, "w3")
        assert (await lab.look()).sample.running is None  # type: ignore[union-attr]

    run(scenario)


def test_one_queue_only() -> None:
    async def scenario() -> None:
        lab = Lab(queue="mail")
        await lab.add(3)
        await lab.add(2, "mail")
        await lab.end(1, State.FAILED)
        await lab.backend.heartbeat(WorkerInfo(id="w1", queues=("default",)), 30_000)
        await lab.backend.heartbeat(WorkerInfo(id="w2", queues=("mail", "default")), 30_000)
        await lab.look()
        await lab.add(4)
        await lab.add(1, "mail")
        history = await lab.look()
        assert history.sample is not None
        assert list(history.sample.queues) == ["mail"]
        assert history.rates().came == 1
        assert [worker.id for worker in history.sample.workers] == ["w2"]
        assert not history.sample.failures.latest

    run(scenario)


def test_a_store_that_went_away_is_opened_anew() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.add(1)
        await lab.look()
        lab.fails = Unavailable("the server cannot be reached")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await lab.look()
        lab.fails = None
        await lab.add(7)
        history = await lab.look()
        assert lab.opened == 3
        assert history.rates().came == 7 / 3  # none of those that came meanwhile is lost

    run(scenario)


def test_a_store_that_is_away_is_tried_again_soon() -> None:
    async def scenario() -> None:
        lab = Lab()
        await lab.look()
        lab.fails, lab.takes_ms = Unavailable("the server cannot be reached"), 3_000
        with pytest.raises(Unavailable):
            await lab.look()
        assert lab.sampler.pause_ms(1_000) == 6_000
        lab.fails = None
        await lab.look()
        assert lab.sampler.pause_ms(1_000) == 19 * lab.sampler.took_ms

    run(scenario)


def test_a_store_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LOOK_MS_MAX", 50)

    class Hanging(MemoryBackend):
        async def counts(self) -> dict[str, QueueCounts]:
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> None:
        lab = Lab()
        sampler = Sampler(lambda: Hanging(lab.store), lab.clock)
        with pytest.raises(Unavailable, match="no answer within"):
            await sampler.look()
        assert sampler.asking_since_ms is None

    run(scenario)


def test_a_refusal_is_no_outage() -> None:
    async def scenario() -> None:
        lab = Lab()
        lab.fails = Forbidden("the token may not look")
        with pytest.raises(Forbidden):
            await lab.look()

    run(scenario)
