"""The same random calls on memory, the executable specification, and on PostgreSQL: every answer must be equal.

Limits, lanes and turns above all: there the two are written quite differently. `PACKHORSE_FULL=1` runs more seeds.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from packhorse.backends.base import Backend, Keep, Limit, Query, Settlement, WorkerInfo
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.backends.postgres.connection import parse_url
from packhorse.backends.postgres.script import Script, Statement
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.job import JobSpec, State
from packhorse.testing.model import by_id

SEEDS = 200 if os.environ.get("PACKHORSE_FULL") else 8
FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)
TYPES = ["t1", "t2", "t3"]
KEYS = [None, "a", "b", "c", "d"]
ENDS = [State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.PENDING, State.SCHEDULED]


class Twins:
    """Both backends, on one clock; what is asked of one is asked of the other."""

    def __init__(self, seed: int, url: str) -> None:
        self.chance = Chance(seed)
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.both: list[Backend] = [MemoryBackend(self.store), open_backend(url, self.clock)]
        self.held: list[dict[str, str]] = [{}, {}]  # id → token, which differ between the two
        self.count = 0
        self.cursors: list[str | None] = [None, None]
        self.said: list[str] = []

    def agree(self, answers: list[Any], what: str) -> Any:
        self.said.append(f"{what} -> {answers[0]}"[:300])
        assert answers[0] == answers[1], f"{what}\nmemory {answers[0]}\npostgres {answers[1]}\n" + "\n".join(
            self.said[-9:]
        )
        return answers[0]

    async def enqueue(self) -> None:
        choice = self.chance.choice
        specs = []
        for _ in range(choice([1, 1, 3, 20, 70])):
            self.count += 1
            specs.append(
                JobSpec(
                    id=f"j{self.count:05}",
                    type=choice(TYPES),
                    key=choice(KEYS),
                    queue=choice(["q1", "q2"]),
                    priority=choice([0, 5, 5, 5, 9]),
                    delay_ms=choice([0, 0, 0, 50]),
                    max_attempts=3,
                )
            )
        self.agree([await one.enqueue(specs) for one in self.both], "enqueue")

    async def claim(self) -> None:
        choice = self.chance.choice
        queues, limit, worker = choice([["q1"], ["q2"], ["q1", "q2"]]), choice([1, 2, 5, 30, 100]), choice(["w1", "w2"])
        claims = [await one.claim(queues, limit, 10_000, worker) for one in self.both]
        self.agree([[job.id for job in jobs] for jobs in claims], f"claim {queues} {limit}")
        for held, jobs in zip(self.held, claims, strict=True):
            held.update({job.id: job.token for job in jobs})

    async def settle(self) -> None:
        ids = self._some(sorted(self.held[0]), 20)
        ends = [(job_id, self.chance.choice(ENDS)) for job_id in ids]
        answers = []
        for one, held in zip(self.both, self.held, strict=True):
            settlements = [
                Settlement(
                    id=job_id, token=held.pop(job_id), state=state, delay_ms=30 if state is State.SCHEDULED else 0
                )
                for job_id, state in ends
            ]
            answers.append(await one.settle(settlements))
        self.agree(answers, f"settle {ends}")

    async def limit(self) -> None:
        choice = self.chance.choice
        changes = []
        for _ in range(choice([1, 1, 2])):
            job_type, key = choice(TYPES), choice([None, None, "*", "a", "b"])
            if self.chance.happens(0.35):
                changes.append(Limit(type=job_type, key=key, cleared=True))
                continue
            rate, burst, concurrency = choice([None, 5, 20, 100]), choice([None, 1, 3]), choice([None, 1, 2, 5])
            changes.append(Limit(type=job_type, key=key, rate=rate, burst=burst, concurrency=concurrency))
        self.agree([await one.limits(changes) for one in self.both], f"limits {changes}")
        about = (choice(TYPES), choice(KEYS))
        self.agree([await one.limits(about=about) for one in self.both], f"limits about {about}")

    async def retire(self) -> None:
        worker = self.chance.choice(["w1", "w2"])
        self.agree([by_id(await one.retire(worker, "gone")) for one in self.both], f"retire {worker}")
        await self._forget_lost()

    async def cancel(self) -> None:
        pending = await self.both[0].find(Query(states=(State.PENDING,), limit=1_000))
        ids = self._some([job.id for job in pending.jobs], 30)
        self.agree([await one.cancel(ids) for one in self.both], f"cancel {ids}")

    async def pass_time(self) -> None:
        # Never past a lease: in which order jobs of several dead workers lapse, and take turns, nobody promises.
        self.clock.advance(self.chance.choice([0, 1, 10, 40, 200, 1_000]))
        ticks = [await one.tick(1_000, FOREVER) for one in self.both]
        self.agree([(ticked.promoted, by_id(ticked.lapses), ticked.now_ms) for ticked in ticks], "tick")
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

    async def places(self) -> None:
        """Compare where every pending job stands, which no verb tells."""
        found = await self.both[1]._pool.run(_read_places)  # type: ignore[attr-defined]
        pending = [(job.id, job.place[0]) for job in self.store.jobs.values() if job.state is State.PENDING]
        self.agree([sorted(pending), found], "places")


def _read_places() -> Script[list[tuple[str, int]]]:
    rows = yield Statement("SELECT id, rank FROM SCHEMA.jobs WHERE state = 3 ORDER BY id".replace("SCHEMA", _schema[0]))
    return [tuple(row) for row in rows]


_schema = [""]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_postgres_answers_as_memory_does(seed: int, postgres_url: str) -> None:
    async def main() -> None:
        twins = Twins(seed, postgres_url)
        _schema[0] = parse_url(postgres_url).schema
        for one in twins.both:
            await one.open()
        moves = [*[twins.enqueue] * 5, *[twins.claim] * 5, *[twins.settle] * 3, *[twins.limit] * 2]
        moves += [twins.retire, twins.cancel, twins.pass_time, twins.pass_time]
        try:
            for _ in range(120):
                await twins.chance.choice(moves)()
                await twins.places()
                twins.agree([await one.counts() for one in twins.both], "counts")
                await twins.changes()
        finally:
            for one in twins.both:
                await one.close()

    asyncio.run(main())
