"""The mover: what it copies, what it refuses, and what it does when a store is away or another mover is there."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from packhorse import admin_move
from packhorse.admin_move import Move
from packhorse.backends.base import (
    Backend,
    Limit,
    QueueChange,
    Settlement,
)
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.clock import ManualClock
from packhorse.errors import ConfigurationError, Unavailable, Unsupported
from packhorse.job import JobSpec, State


def _two() -> tuple[MemoryBackend, MemoryBackend]:
    clock = ManualClock()
    return MemoryBackend(MemoryStore(clock)), MemoryBackend(MemoryStore(clock))


def test_settings_are_copied_and_those_of_the_target_stay() -> None:
    async def main() -> None:
        source, target = _two()
        await source.queues([QueueChange(queue="a", paused=True, capacity=7), QueueChange(queue="b", paused=True)])
        await target.queues([QueueChange(queue="b", paused=False)])
        await source.limits([Limit(type="t", concurrency=1, source="app"), Limit(type="u", rate=5)])
        await target.limits([Limit(type="u", rate=9)])
        moved = await Move(source, target).run()
        assert (moved.queues, moved.limits, moved.done) == (1, 1, True)
        queues = await target.queues()
        assert (queues["a"].paused, queues["a"].capacity, queues["b"].paused) == (True, 7, False)
        limits = {limit.type: limit for limit in await target.limits()}
        assert (limits["t"].concurrency, limits["t"].source, limits["u"].rate) == (1, "app", 9)

    asyncio.run(main())


def test_one_store_under_two_names_is_refused() -> None:
    async def main() -> None:
        store = MemoryStore(ManualClock())
        with pytest.raises(ConfigurationError, match="the same store"):
            await Move(MemoryBackend(store), MemoryBackend(store)).run()

    asyncio.run(main())


def test_a_store_that_cannot_is_refused_before_anything_is_done() -> None:
    class Old(MemoryBackend):
        capabilities = Backend.__annotations__ and type(MemoryBackend.capabilities)(durable=True, shared=True)

    async def main() -> None:
        source, target = _two()
        for pair in ((Old(source.store), target), (source, Old(target.store))):
            with pytest.raises(Unsupported, match="transfer"):
                await Move(*pair).run()

    asyncio.run(main())


def test_a_source_put_back_from_a_copy_does_not_lose_its_jobs(tmp_path: Path) -> None:
    """The batches of the copy have other numbers; what the target has already is left out."""

    async def move(name: str) -> Any:
        source, target = (open_backend(f"sqlite:///{tmp_path}/{one}.db") for one in (name, "target"))
        await source.open()
        await target.open()
        try:
            return await Move(source, target, batch=2).run()
        finally:
            await target.close()
            await source.close()

    async def main() -> None:
        source = open_backend(f"sqlite:///{tmp_path}/source.db")
        await source.open()
        await source.enqueue([JobSpec(id=f"j{number}", type="t") for number in range(5)])
        await source.take_over()
        await source.close()
        shutil.copy(tmp_path / "source.db", tmp_path / "copy.db")
        assert (await move("source")).known == 0
        copy = open_backend(f"sqlite:///{tmp_path}/copy.db")
        await copy.open()
        await copy.enqueue([JobSpec(id="j5", type="t")])
        await copy.close()
        moved = await move("copy")
        assert (moved.known, moved.known_ids) == (5, [f"j{number}" for number in range(5)])
        target = open_backend(f"sqlite:///{tmp_path}/target.db")
        await target.open()
        assert {job.id for job in await target.claim(["default"], 9, 1_000, "w")} == {f"j{n}" for n in range(6)}
        await target.close()

    asyncio.run(main())


def test_a_stopped_move_leaves_nothing_on_the_way() -> None:
    async def main() -> None:
        source, target = _two()
        await source.enqueue([JobSpec(id=f"j{number}", type="t") for number in range(10)])
        move = Move(source, target, batch=3, tell=lambda moved: move.stop() if moved.total >= 6 else None)
        moved = await move.run()
        assert (moved.total, moved.done, moved.left) == (6, False, {State.PENDING: 4})
        assert len(await target.claim(["default"], 10, 1_000, "w")) == 6
        assert len(await source.claim(["default"], 10, 1_000, "w")) == 4

    asyncio.run(main())


def test_two_movers_at_once_are_no_harm(tmp_path: Path) -> None:
    async def main() -> None:
        source, target = (open_backend(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
        await source.open()
        await target.open()
        ids = [f"j{number:03}" for number in range(300)]
        await source.enqueue([JobSpec(id=job_id, type="t") for job_id in ids])
        moves = [Move(source, target, batch=7) for _ in range(3)]
        async with asyncio.timeout(60):
            assert all(moved.done for moved in await asyncio.gather(*[move.run() for move in moves]))
        assert sorted(job.id for job in await target.claim(["default"], 1_000, 1_000, "w")) == ids
        await target.close()
        await source.close()

    asyncio.run(main())


def test_a_store_that_is_away_for_a_while_is_waited_for() -> None:
    class Away(MemoryBackend):
        calls = 0

        async def take_over(self, transfer: Any = None) -> Any:
            self.calls += 1
            if self.calls % 2:
                raise Unavailable("no answer within 1 s")
            return await super().take_over(transfer)

    async def main() -> None:
        source, target = _two()
        await source.enqueue([JobSpec(id="j", type="t")])
        moved = await Move(source, Away(target.store)).run()
        assert (moved.done, moved.total, list(target.store.jobs)) == (True, 1, ["j"])

    asyncio.run(main())


def test_a_store_that_stays_away_ends_the_move() -> None:
    class Gone(MemoryBackend):
        async def take_over(self, transfer: Any = None) -> Any:
            if transfer is not None:
                clock.advance(20_000)
                raise Unavailable("no answer within 20 s")
            return await super().take_over(transfer)

    clock = ManualClock()

    async def main() -> None:
        source, target = MemoryBackend(MemoryStore(clock)), MemoryStore(clock)
        await source.enqueue([JobSpec(id="j", type="t")])
        with pytest.raises(Unavailable):
            await Move(source, Gone(target), clock=clock).run()
        assert (await Move(source, MemoryBackend(target)).run()).done
        assert list(target.jobs) == ["j"]

    asyncio.run(main())


def test_stores_that_were_set_back_are_told_from_other_movers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_move, "POLL_MS", 1)

    async def main() -> None:
        source, target = _two()
        await source.enqueue([JobSpec(id="j", type="t")])
        await target.take_over()
        target.store.transfers.arrived[(await source.take_over()).store] = 10**15
        with pytest.raises(ConfigurationError, match="put back"):
            await Move(source, target).run()

    asyncio.run(main())


def test_a_source_with_more_children_to_tell_than_one_move_may_is_moved_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_move, "POLL_MS", 1)

    async def main() -> None:
        source, target = _two()
        await source.enqueue([JobSpec(id="p", type="t")])
        for start in range(0, 3_000, 1_000):
            await source.enqueue([JobSpec(id=f"c{start + n:04}", type="t", after=("p",)) for n in range(1_000)])
        (job,) = await source.claim(["default"], 1, 1_000, "w")
        await source.settle([Settlement(id="p", token=job.token, state=State.SUCCEEDED)])
        moved = await Move(source, target).run()
        assert (moved.done, moved.jobs[State.PENDING], len(target.store.jobs)) == (True, 3_000, 3_001)

    asyncio.run(main())
