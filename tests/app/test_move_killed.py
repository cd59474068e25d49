"""A move under load whose mover is killed between any two calls, and whose replies are lost after the work was done.

Workers and producers go on at both ends meanwhile. Whatever happens: no job is lost, none is doubled, each runs as
often as it should and after its parents, and no slot of a schedule is fired twice or missed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse import admin_move
from packhorse.admin_move import Move
from packhorse.backends.base import (
    Backend,
    Firing,
    Keep,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
)
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.job import TERMINAL, JobSpec, State, Unique
from tests.servers import SERVERS, with_parameter

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)
NO_SUCCESSES = Keep(succeeded_ms=0, failed_ms=10**12, cancelled_ms=10**12)
SEEDS = 60 if os.environ.get("PACKHORSE_FULL") else 6
JOBS = 400
QUEUES = ("a", "b")


class Killed(BaseException):
    """The mover is no more."""


class World:
    """Two stores on one clock, their load, and a book of what happened."""

    def __init__(self, seed: int, source: Backend, target: Backend, clock: ManualClock) -> None:
        self.chance = Chance(seed)
        self.clock = clock
        self.stores = [source, target]
        self.count = 0
        self.specs: dict[str, JobSpec] = {}
        self.born_at_target: set[str] = set()
        self.runs: Counter[str] = Counter()
        self.ended: dict[str, State] = {}
        self.claimed: list[tuple[int, Any]] = []
        self.slots: list[int] = []
        self.killings = 0.15
        # In every other world what succeeded is dropped at once, so that nobody remembers it by its row.
        self.keep = NO_SUCCESSES if seed % 2 else FOREVER
        self.batches: list[Any] = []

    # ---- the load ----------------------------------------------------------------------------------------

    def spec(self, store: int) -> JobSpec:
        chance = self.chance
        self.count += 1
        known = [job_id for job_id in self.specs if store == 1 or job_id not in self.born_at_target]
        after = {chance.choice(known) for _ in range(chance.below(3))} if known and chance.happens(0.5) else set()
        return JobSpec(
            id=f"j{self.count:04}",
            type="t",
            queue=chance.choice(QUEUES),
            priority=chance.choice([2, 5]),
            key=chance.choice([None, "x", "y"]),
            delay_ms=chance.choice([0, 0, 0, 40]),
            max_attempts=1_000,
            unique=Unique(key=f"u{self.count}") if chance.happens(0.2) else None,
            after=tuple(sorted(after)),
        )

    async def enqueue(self, store: int, count: int) -> None:
        for _ in range(min(count, JOBS - self.count)):
            spec = self.spec(store)
            # A parent that is not there is refused; one that left and was dropped there would never come.
            if (store == 1 or self.keep is NO_SUCCESSES) and None in await self.stores[store].get(spec.after):
                continue
            if store == 1:
                self.born_at_target.add(spec.id)
            assert (await self.stores[store].enqueue([spec]))[0].created
            self.specs[spec.id] = spec

    async def again(self, store: int) -> None:
        """Make an enqueue again whose reply was lost. A producer stays with its store."""
        known = [spec for job_id, spec in self.specs.items() if (job_id in self.born_at_target) == (store == 1)]
        if known:
            spec = self.chance.choice(known)
            if self.ended.get(spec.id) is not State.SUCCEEDED or self.keep is FOREVER:  # else it may be dropped
                answer = (await self.stores[store].enqueue([spec]))[0]
                assert not answer.created, spec

    async def claim(self, store: int, most: int = 5) -> None:
        for job in await self.stores[store].claim(QUEUES, 1 + self.chance.below(most), 10**9, f"w{store}"):
            assert self.ended.get(job.id) not in TERMINAL, f"{job.id} runs again"
            assert job.id not in {other.id for _, other in self.claimed}, f"{job.id} runs twice at once"
            self.runs[job.id] += 1
            assert job.attempt == self.runs[job.id], f"{job.id} lost count of its attempts"
            for parent in self.specs[job.id].after if job.id in self.specs else ():
                assert self.ended.get(parent) is State.SUCCEEDED, f"{job.id} runs before {parent}"
            self.claimed.append((store, job))

    async def settle(self, share: float = 0.5) -> None:
        for one in [one for one in self.claimed if self.chance.happens(share)]:
            store, job = one
            state = self.chance.choice([State.SUCCEEDED] * 6 + [State.SCHEDULED] * 2 + [State.FAILED])
            delay_ms = 30 if state is State.SCHEDULED else 0
            settlement = Settlement(id=job.id, token=job.token, state=state, delay_ms=delay_ms, result=b"1")
            assert (await self.stores[store].settle([settlement]))[0] == "applied"
            self.claimed.remove(one)
            if state in TERMINAL:
                self.ended[job.id] = state

    async def steer(self, store: int) -> None:
        """Cancel a job, or rerun one that failed or was cancelled."""
        known = list(self.specs)
        if not known or self.keep is NO_SUCCESSES:
            return
        job_id = self.chance.choice(known)
        if any(job.id == job_id for _, job in self.claimed):
            return
        if self.chance.happens(0.5):
            if (await self.stores[store].cancel([job_id]))[0] is Steered.DONE:
                self.ended[job_id] = State.CANCELLED
            return
        if self.ended.get(job_id) is State.SUCCEEDED:
            return
        if any(self.ended.get(parent) is not State.SUCCEEDED for parent in self.specs[job_id].after):
            return  # it would run all the same, if that has ended
        if (await self.stores[store].rerun([Rerun(id=job_id)]))[0] is Steered.DONE:
            self.ended.pop(job_id, None)
            self.runs[job_id] = 0

    async def tick(self, store: int) -> None:
        ticked = await self.stores[store].tick(1_000, self.keep)
        for schedule in ticked.schedules:
            await self._fire(store, schedule)

    async def _fire(self, store: int, schedule: Schedule) -> None:
        slot_ms = schedule.next_ms
        specs = ()
        if slot_ms is not None:
            specs = (JobSpec(id=f"slot-{slot_ms}", type="t", queue="a", schedule=schedule.name),)
        done_ms = slot_ms if slot_ms is not None else schedule.done_ms
        firing = Firing(
            name=schedule.name,
            revision=schedule.revision,
            done_ms=schedule.done_ms,
            new_done_ms=done_ms,
            next_ms=done_ms + 100,
            specs=specs,
        )
        if (await self.stores[store].fire([firing]))[0] == "applied" and slot_ms is not None:
            self.slots.append(slot_ms)

    async def churn(self) -> None:
        """Let something happen between two calls of the mover."""
        chance = self.chance
        self.clock.advance(chance.below(30))
        for _ in range(chance.below(4)):
            store = chance.below(2)
            what = chance.choice([self.claim, self.claim, self.claim, self.tick, self.tick, self.again, self.steer])
            await what(store)
            if chance.happens(0.3):
                await self.settle()
            if self.killings and chance.happens(0.3):
                await self.enqueue(store, chance.below(3))

    # ---- the mover ---------------------------------------------------------------------------------------

    async def move(self) -> None:
        """Move, killed again and again, until nothing is left."""
        for _ in range(500):
            source, target = (Lossy(backend, self) for backend in self.stores)
            try:
                moved = await Move(source, target, batch=1 + self.chance.below(9), wait=False).run()
            except Killed:
                continue
            if moved.done and not self.killings:
                return
            if self.count >= JOBS:
                self.killings = 0.0  # now it may come to an end
                await self.settle(1.0)
        raise AssertionError("a move has no end")


class Lossy(Backend):
    """A connection of a mover that may be killed before or after each call of a verb that moves."""

    def __init__(self, backend: Backend, world: World) -> None:
        self.capabilities = backend.capabilities
        self._backend = backend
        self._world = world

    def __getattribute__(self, name: str) -> Any:
        if name in {"hand_over", "take_over"}:
            return lambda *args: self._lossy(name, args)
        if name in {"queues", "limits", "counts"}:
            return getattr(self._backend, name)
        return super().__getattribute__(name)

    async def _lossy(self, name: str, args: tuple[Any, ...]) -> Any:
        world = self._world
        await world.churn()
        if world.chance.happens(world.killings):
            raise Killed
        answer = await getattr(self._backend, name)(*args)
        if name == "take_over" and args:
            world.batches.append(args[0])
            if world.chance.happens(0.2):  # a message of a mover before comes late
                await self._backend.take_over(world.chance.choice(world.batches))
        if world.chance.happens(world.killings):
            raise Killed
        await world.churn()
        return answer


Lossy.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]  # it passes all on


async def _drain(world: World) -> None:
    """Let the target run all it has."""
    world.killings = 0.0
    await world.stores[1].schedules([ScheduleChange(name="s", paused=True)])
    quiet = 0
    while quiet < 5:
        world.clock.advance(50)
        before = len(world.ended)
        await world.tick(1)
        await world.claim(1, 200)
        await world.settle(1.0)
        quiet = 0 if len(world.ended) > before or world.claimed else quiet + 1


async def _check(world: World) -> None:
    source, target = world.stores
    ids = sorted(world.specs)
    assert [one for one in await source.get(ids) if one is not None] == []
    assert await source.counts() == {} or not any(one.states for one in (await source.counts()).values())
    records = {one.id: one for one in await target.get(ids) if one is not None}
    lost = set(ids) - records.keys()
    if world.keep is NO_SUCCESSES:
        lost = {job_id for job_id in lost if world.ended.get(job_id) is not State.SUCCEEDED}
    assert not lost
    for job_id, record in records.items():
        state = record.state
        if job_id in world.ended:
            assert state is world.ended[job_id], job_id
        else:
            parents = [records[parent].state for parent in world.specs[job_id].after if parent in records]
            assert state is State.CANCELLED, f"{job_id} is {state}, its parents are {parents}"
            assert any(parent in {State.FAILED, State.CANCELLED} for parent in parents), job_id
    total = sum(sum(one.states.values()) for one in (await target.counts()).values())
    assert total == len(ids) + len(set(world.slots)) or world.keep is NO_SUCCESSES
    slots = sorted(world.slots)
    assert len(slots) == len(set(slots)), "a slot was fired twice"
    assert slots == list(range(slots[0], slots[-1] + 1, 100)), "a slot was missed"


PAIRS = [("memory", "memory"), ("sqlite", "sqlite"), ("memory", "sqlite"), ("sqlite", "memory")]
PAIRS += [pair for kind in SERVERS for pair in ((kind, "memory"), ("memory", kind), (kind, kind))]


def _seeds(pair: tuple[str, str]) -> range:
    """Many where a call costs nothing, few where it goes to a server."""
    if pair == PAIRS[0]:
        return range(SEEDS)
    first = int(pair[0] == pair[1])
    return range(SEEDS // 3) if not set(pair).intersection(SERVERS) else range(first, first + SEEDS // 6)


def _make(kind: str, path: Path, clock: ManualClock, request: pytest.FixtureRequest) -> Backend:
    if kind == "memory":
        return MemoryBackend(MemoryStore(clock))
    if kind == "sqlite":
        return open_backend(f"sqlite:///{path}?synchronous=normal", clock)
    return open_backend(next(request.getfixturevalue(f"{kind}_urls")), clock)


@pytest.fixture
def postgres_urls(database_of_this_run: str) -> Iterator[str]:
    """URLs of empty stores, one after the other. They go with the database."""
    return (with_parameter(database_of_this_run, "schema", f"move{number}") for number in _numbers)


@pytest.fixture
def redis_urls(prefix_of_this_run: str) -> Iterator[str]:
    return (f"{prefix_of_this_run}.move{number}" for number in _numbers)


_numbers = itertools.count()


@pytest.mark.parametrize(
    ("pair", "seed"),
    [(pair, seed) for pair in PAIRS for seed in _seeds(pair)],
    ids=lambda value: "-to-".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_mover_that_is_killed_at_random_loses_and_doubles_nothing(
    pair: tuple[str, str], seed: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_move, "POLL_MS", 1)  # between its looks nothing happens here that it could wait for

    async def main() -> None:
        clock = ManualClock()
        source, target = (_make(kind, tmp_path / f"{number}.db", clock, request) for number, kind in enumerate(pair))
        async with asyncio.timeout(280):
            for backend in (source, target):
                await backend.migrate()
                await backend.open()
            try:
                world = World(seed, source, target, clock)
                every = Schedule(name="s", spec=JobSpec(id="", type="t"), every_ms=100)
                await source.schedules([ScheduleChange(name="s", define=every)])
                await world.tick(0)
                await world.enqueue(0, 150)
                for _ in range(10):
                    await world.churn()
                await world.move()
                await _drain(world)
                await _check(world)
                assert [one.name for one in await target.schedules()] == ["s"]
                assert len(world.ended) > 50
            finally:
                await target.close()
                await source.close()

    asyncio.run(main())
