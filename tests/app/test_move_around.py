"""Jobs moved from store to store and around, while each is worked on: the same ids, the same states, each run once.

`PACKHORSE_FULL=1` moves 100,000.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from pathlib import Path

import pytest

from packhorse.admin_move import Move
from packhorse.backends.base import Backend, Keep, Settlement
from packhorse.backends.opening import open_backend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import JobSpec, State
from tests.servers import SERVERS

JOBS = 100_000 if os.environ.get("PACKHORSE_FULL") else 2_000
FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)

ROUTES = [("sqlite", "sqlite")]
ROUTES += [(kind, other) for kind in SERVERS for other in ("sqlite",)]
ROUTES += [("sqlite", kind) for kind in SERVERS]
if len(SERVERS) == 2:
    ROUTES.append(("sqlite", *SERVERS, "sqlite"))


class Book:
    """What was enqueued, and what ran."""

    def __init__(self) -> None:
        self.wanted: dict[str, State] = {}
        self.runs: Counter[str] = Counter()
        self.parent: dict[str, str] = {}

    async def fill(self, backend: Backend) -> None:
        """Enqueue jobs and bring most of them into the state they are to be in: 1,000 a round."""
        for _ in range(JOBS // 1_000):
            for state, count in ((State.SUCCEEDED, 200), (State.FAILED, 100), (State.CANCELLED, 50)):
                specs = self._specs(count, state)
                await backend.enqueue(specs)
                jobs = await backend.claim(["default"], count, 60_000, "filler")
                await backend.settle([Settlement(id=job.id, token=job.token, state=state, result=b"7") for job in jobs])
            later = self._specs(150, State.SCHEDULED, delay_ms=10**8)
            parents = self._specs(100, State.SUCCEEDED, queue="work", key="k")
            children = self._specs(100, State.SUCCEEDED, queue="work")
            children = [
                JobSpec(id=child.id, type="t", queue="work", after=(parent.id,), tags=("child",))
                for child, parent in zip(children, parents, strict=True)
            ]
            self.parent |= {child.id: child.after[0] for child in children}
            await backend.enqueue([*later, *parents, *children, *self._specs(300, State.SUCCEEDED, queue="work")])

    def _specs(self, count: int, wanted: State, **fields: object) -> list[JobSpec]:
        ids = CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)
        self.wanted |= dict.fromkeys(ids, wanted)
        return [JobSpec(id=job_id, type="t", **fields) for job_id in ids]  # type: ignore[arg-type]

    async def work(self, backend: Backend, stop: asyncio.Event | None = None) -> None:
        """Run jobs a few at a time until told to stop, or all until none is left."""
        while stop is None or not stop.is_set():
            await backend.tick(1_000, FOREVER)
            jobs = await backend.claim(["work"], 10 if stop else 1_000, 60_000, "worker")
            for job in jobs:
                self.runs[job.id] += 1
                assert job.id not in self.parent or self.runs[self.parent[job.id]] == 1, "a child before its parent"
            done = [Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, result=b"7") for job in jobs]
            await backend.settle(done)
            if stop is None and not jobs:
                return
            await asyncio.sleep(0.02 if stop else 0)


async def _around(urls: list[str]) -> None:
    backends = [open_backend(url) for url in urls]
    book = Book()
    for backend in backends:
        await backend.migrate()
        await backend.open()
    try:
        await book.fill(backends[0])
        for source, target in itertools.pairwise(backends):
            stop = asyncio.Event()
            workers = [asyncio.create_task(book.work(backend, stop)) for backend in (source, target)]
            moved = await Move(source, target, batch=max(100, JOBS // 100)).run()
            assert (moved.done, moved.known) == (True, 0)
            stop.set()
            await asyncio.gather(*workers)
        await book.work(backends[-1])
        await _check(book, backends)
    finally:
        for backend in backends:
            await backend.close()


async def _check(book: Book, backends: list[Backend]) -> None:
    ids = sorted(book.wanted)
    for backend in backends[:-1]:
        assert not any(one.states for one in (await backend.counts()).values()), "something was left behind"
    found: dict[str, State] = {}
    for start in range(0, len(ids), 1_000):
        found |= {job.id: job.state for job in await backends[-1].get(ids[start : start + 1_000]) if job is not None}
    assert found == book.wanted
    assert sum(sum(one.states.values()) for one in (await backends[-1].counts()).values()) == len(ids)
    assert set(book.runs.values()) == {1}, "a job ran twice"
    assert len(book.runs) == JOBS // 2


@pytest.mark.timeout(1_800 if JOBS > 2_000 else 300)
@pytest.mark.parametrize("route", ROUTES, ids="-".join)
def test_around(route: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    urls = [
        f"sqlite:///{tmp_path}/{number}.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
        for number, kind in enumerate(route)
    ]
    asyncio.run(_around(urls))
