"""The same random calls on memory, the executable specification, and on Redis: every answer must be equal.

Limits, lanes, turns, families and unique keys above all: there the two are written quite differently.
`PACKHORSE_FULL=1` runs more seeds.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from packhorse.backends.base import Backend, Keep, Limit, Query, QueueChange, Rerun, Settlement, WorkerInfo
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.errors import PackhorseError
from packhorse.job import JobSpec, State, Unique
from packhorse.testing.conformance.stores import RedisHarness
from packhorse.testing.model import by_id

SEEDS = 200 if os.environ.get("PACKHORSE_FULL") else 12
FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)
BRIEFLY = Keep(succeeded_ms=500, failed_ms=2_000, cancelled_ms=1_000)
TYPES = ["t1", "t2", "t3"]
KEYS = [None, "a", "b", "c", "d"]
ENDS = [State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.PENDING, State.SCHEDULED]


class Twins:
    """Both backends, on one clock; what is asked of one is asked of the other."""

    def __init__(self, seed: int, url: str, *, structure: bool) -> None:
        self.chance = Chance(seed)
        self.structure = structure
        self.harness = RedisHarness(url)
        assert self.harness.clock is not None
        self.clock: ManualClock = self.harness.clock
        self.store = MemoryStore(self.clock)
        self.both: list[Backend] = [MemoryBackend(self.store), open_backend(self.harness.url, self.clock)]
        self.held: list[dict[str, str]] = [{}, {}]  # id → token, which differ between the two
        self.count = 0
        self.cursors: list[str | None] = [None, None]
        self.said: list[str] = []

    def agree(self, answers: list[Any], what: str) -> Any:
        self.said.append(f"{what[:900]} -> {answers[0]}"[:1200] if what not in {"get", "counts", "workflows"} else what)
        assert answers[0] == answers[1], f"{what}\nmemory {answers[0]}\nredis  {answers[1]}\n" + "\n".join(
            self.said[-9:]
        )
        return answers[0]

    def _spec(self) -> JobSpec:
        choice = self.chance.choice
        self.count += 1
        unique = after = None
        if self.structure:
            if self.chance.happens(0.3):
                states = choice([Unique(key="k").states, (State.PENDING,), (State.RUNNING, State.FAILED)])
                unique = Unique(
                    key=choice(["x", "y"]),
                    for_ms=choice([0, 0, 200]),
                    states=states,
                    on_conflict=choice(["existing", "refuse", "replace"]),
                )
            if self.chance.happens(0.4) and self.count > 5:
                after = tuple({f"j{self.chance.below(self.count - 1) + 1:05}" for _ in range(choice([1, 1, 2, 4]))})
        return JobSpec(
            id=f"j{self.count:05}",
            type=choice(TYPES),
            key=choice(KEYS),
            queue=choice(["q1", "q2"]),
            priority=choice([0, 5, 5, 5, 9]),
            delay_ms=choice([0, 0, 0, 50]),
            max_attempts=3,
            unique=unique,
            after=after or (),
            after_failed=choice(["cancel", "cancel", "continue"]),
            workflow=choice([None, "w1", "w2"]) if self.structure else None,
            tags=choice([(), (), ("red",), ("red", "blue")]),
            payload=choice([b"{}", b'{"a":[1,2]}', b'"' + b"x" * 300 + b'"']),
        )

    async def _both(self, call: Any) -> list[Any]:
        answers: list[Any] = []
        for number, one in enumerate(self.both):
            try:
                answers.append(await call(one, self.held[number]))
            except PackhorseError as error:
                answers.append((type(error), str(error)))
        return answers

    async def enqueue(self) -> None:
        specs = [
            self._spec() for _ in range(self.chance.choice([1, 1, 3, 20] if self.structure else [1, 1, 3, 20, 70]))
        ]
        self.agree(await self._both(lambda one, _: one.enqueue(specs)), f"enqueue {specs}")

    async def claim(self) -> None:
        choice = self.chance.choice
        queues, limit, worker = choice([["q1"], ["q2"], ["q1", "q2"]]), choice([1, 2, 5, 30, 100]), choice(["w1", "w2"])
        claims = [await one.claim(queues, limit, 10_000, worker) for one in self.both]
        self.agree(
            [[(job.id, job.attempt, job.ready_at_ms) for job in jobs] for jobs in claims], f"claim {queues} {limit}"
        )
        for held, jobs in zip(self.held, claims, strict=True):
            held.update({job.id: job.token for job in jobs})

    async def settle(self) -> None:
        ids = self._some(sorted(self.held[0]), 20)
        ends = [(job_id, self.chance.choice(ENDS)) for job_id in ids]
        follow = {job_id: (self._spec(),) if self.structure and self.chance.happens(0.2) else () for job_id in ids}
        answers = []
        for one, held in zip(self.both, self.held, strict=True):
            settlements = [
                Settlement(
                    id=job_id,
                    token=held.pop(job_id),
                    state=state,
                    delay_ms=30 if state is State.SCHEDULED else 0,
                    follow_ups=follow[job_id],
                    result=b"[1]" if state is State.SUCCEEDED else None,
                )
                for job_id, state in ends
            ]
            answers.append(await one.settle(settlements))
        self.agree(answers, f"settle {ends} {follow}")

    async def limit(self) -> None:
        choice = self.chance.choice
        changes = []
        for _ in range(choice([1, 1, 2])):
            job_type, key = choice(TYPES), choice([None, None, "*", "a", "b"])
            if self.chance.happens(0.35):
                changes.append(Limit(type=job_type, key=key, cleared=True))
                continue
            rate, burst, concurrency = choice([None, 5, 20, 100, 7]), choice([None, 1, 3]), choice([None, 1, 2, 5])
            period_ms = choice([1_000, 1_000, 777, 86_400_000])
            changes.append(
                Limit(type=job_type, key=key, rate=rate, burst=burst, concurrency=concurrency, period_ms=period_ms)
            )
        self.agree([await one.limits(changes) for one in self.both], f"limits {changes}")
        about = (choice(TYPES), choice(KEYS))
        self.agree([await one.limits(about=about) for one in self.both], f"limits about {about}")

    async def retire(self) -> None:
        worker = self.chance.choice(["w1", "w2"])
        self.agree([by_id(await one.retire(worker, "gone")) for one in self.both], f"retire {worker}")
        await self._forget_lost()

    async def cancel(self) -> None:
        ids = await self._ids()
        self.agree([await one.cancel(ids) for one in self.both], f"cancel {ids}")

    async def delete(self) -> None:
        ids = await self._ids()
        self.agree([await one.delete(ids) for one in self.both], f"delete {ids}")
        await self._forget_lost()

    async def rerun(self) -> None:
        choice = self.chance.choice
        reruns = [
            Rerun(
                id=job_id,
                delay_ms=choice([0, 0, 40]),
                payload=choice([None, None, b"[]"]),
                queue=choice([None, None, "q1", "q2"]),
                priority=choice([None, None, 1]),
            )
            for job_id in await self._ids()
        ]
        self.agree([await one.rerun(reruns) for one in self.both], f"rerun {reruns}")

    async def capacity(self) -> None:
        change = QueueChange(queue="q1", capacity=self.chance.choice([0, 0, 20, 100]), paused=self.chance.happens(0.1))
        self.agree([await one.queues([change]) for one in self.both], f"queues {change}")

    async def _ids(self) -> list[str]:
        states = (
            self.chance.choice([(State.PENDING,), (State.FAILED, State.CANCELLED), ()])
            if self.structure
            else (State.PENDING,)
        )
        query = Query(states=states, limit=1_000, tag=self.chance.choice([None, None, "blue"]))
        pages = [await one.find(query) for one in self.both]
        self.agree([page.jobs for page in pages], f"find {states}")
        return self._some([job.id for job in pages[0].jobs], 30 if not self.structure else 4)

    async def pass_time(self) -> None:
        # Never past a lease: in which order jobs of several dead workers lapse, and take turns, nobody promises.
        self.clock.advance(self.chance.choice([0, 1, 10, 40, 200, 1_000]))
        keep = BRIEFLY if self.structure else FOREVER
        ticks = [await one.tick(1_000, keep) for one in self.both]
        self.agree([(t.promoted, by_id(t.lapses), t.dropped, t.freed, t.now_ms) for t in ticks], "tick")
        for worker in ("w1", "w2"):
            for one in self.both:
                await one.heartbeat(WorkerInfo(id=worker), 10_000)
        await self._forget_lost()

    async def _forget_lost(self) -> None:
        running = {job.id for job in (await self.both[0].find(Query(states=(State.RUNNING,), limit=1_000))).jobs}
        for held in self.held:
            for job_id in set(held) - running:
                del held[job_id]

    def _some(self, ids: list[str], most: int) -> list[str]:
        self.chance.shuffle(ids)  # type: ignore[arg-type]  # a list of text is a list of objects that nobody adds to
        return ids[: self.chance.choice([1, 3, most])]

    async def changes(self) -> None:
        """Compare what was told since the last time: to where each job came."""
        answers = []
        for number, one in enumerate(self.both):
            found = await one.changes(self.cursors[number])
            self.cursors[number] = found.cursor
            answers.append((found.gap, {change.id: (change.state, change.at_ms) for change in found.changes}))
        self.agree(answers, "changes")

    async def compare(self) -> None:
        """Compare all jobs as `get` tells of them, the counts, and how far the workflows are."""
        self.agree([await one.counts() for one in self.both], "counts")
        ids = [f"j{number:05}" for number in range(max(1, self.count - 200), self.count + 1)]
        for memory, redis in zip(*[await one.get(ids) for one in self.both], strict=True):
            self.agree([memory, redis], "get")
        self.agree([await one.workflows() for one in self.both], "workflows")
        await self.changes()


def _run(seed: int, url: str, *, structure: bool, rounds: int) -> None:
    async def main() -> None:
        twins = Twins(seed, url, structure=structure)
        for one in twins.both:
            await one.open()
        moves = [*[twins.enqueue] * 5, *[twins.claim] * 5, *[twins.settle] * 3]
        moves += [twins.retire, twins.cancel, twins.pass_time, twins.pass_time]
        if structure:
            moves += [twins.rerun, twins.rerun, twins.delete, twins.capacity, twins.limit]
        else:
            moves += [twins.limit, twins.limit]
        try:
            for _ in range(rounds):
                await twins.chance.choice(moves)()
                await twins.compare()
        finally:
            for one in twins.both:
                await one.close()
            await twins.harness.clean()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_limits_and_turns_are_as_in_memory(seed: int, redis_url: str) -> None:
    _run(seed, redis_url, structure=False, rounds=120)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_families_and_keys_are_as_in_memory(seed: int, redis_url: str) -> None:
    _run(seed, redis_url, structure=True, rounds=120)
