"""Unique keys in one file: races, what is kept over a restart, and what goes with a job."""

from __future__ import annotations

import asyncio
from pathlib import Path

from packhorse.backends.base import Keep, Rerun, Steered
from packhorse.clock import ManualClock
from packhorse.job import State, Unique

from .helpers import new, opened, run, shell, succeeded


def _rows(path: Path, table: str) -> int:
    db = shell(path)
    try:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        db.close()


def test_racing_replacers_leave_one_job_of_a_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as one, opened(tmp_path / "a.db") as two:
            key = Unique(key="k", on_conflict="replace")
            calls = [(one if number % 2 else two).enqueue(new(unique=key)) for number in range(60)]
            answers = [answer for call in await asyncio.gather(*calls) for answer in call]
            assert all(answer.created for answer in answers)
            found = [job for job in await one.get([answer.id for answer in answers]) if job is not None]
            assert len(found) == 60
            live = [job for job in found if job.state is State.PENDING]
            replaced = [job for job in found if job.state is State.CANCELLED]
            assert (len(live), len(replaced)) == (1, 59)
            assert all([error.kind for error in job.errors] == ["Replaced"] for job in replaced)
            assert _rows(tmp_path / "a.db", "keys") == 1

    run(main())


def test_a_window_outlives_the_process_and_goes_with_its_job(tmp_path: Path) -> None:
    clock = ManualClock()
    key = Unique(key="k", for_ms=60_000, states=(State.PENDING,))

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            (first,) = new(unique=key)
            await backend.enqueue([first])
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            await backend.settle([succeeded(job)])
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            assert [answer.id for answer in await backend.enqueue(new(unique=key))] == [first.id]
            assert (await backend.tick(10, Keep(succeeded_ms=0))).dropped == 1
            assert (_rows(tmp_path / "a.db", "keys"), _rows(tmp_path / "a.db", "windows")) == (0, 0)
            assert [answer.created for answer in await backend.enqueue(new(unique=key))] == [True]

    run(main())


def test_a_dropped_job_takes_no_key_of_another_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            first, second = new(2, unique=Unique(key="k"))
            await backend.enqueue([first])
            await backend.cancel([first.id])
            await backend.enqueue([second])
            assert await backend.delete([first.id]) == [Steered.DONE]
            assert [answer.id for answer in await backend.enqueue(new(unique=Unique(key="k")))] == [second.id]

    run(main())


def test_a_job_that_is_rerun_elsewhere_leaves_its_key_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            (first,) = new(unique=Unique(key="k", for_ms=60_000))
            await backend.enqueue([first])
            await backend.cancel([first.id])
            assert await backend.rerun([Rerun(id=first.id, queue="other")]) == [Steered.DONE]
            assert [answer.created for answer in await backend.enqueue(new(unique=Unique(key="k")))] == [True]
            held = await backend.enqueue(new(unique=Unique(key="k"), queue="other"))
            assert [answer.id for answer in held] == [first.id]
            assert _rows(tmp_path / "a.db", "keys") == 2

    run(main())


def test_a_refusal_harms_no_neighbour(tmp_path: Path) -> None:
    """Calls of one transaction: the refused ones store nothing, the others all."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(unique=Unique(key="k")))
            calls = []
            for _ in range(10):
                calls.append(backend.enqueue(new(5)))
                calls.append(backend.enqueue([*new(5), *new(unique=Unique(key="k", on_conflict="refuse"))]))
                calls.append(backend.enqueue([*new(5), *new(after=("nobody",))]))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            refused = [type(outcome).__name__ for outcome in outcomes if isinstance(outcome, BaseException)]
            assert refused == ["UniqueConflict", "UnknownParent"] * 10
            assert _rows(tmp_path / "a.db", "jobs") == 1 + 10 * 5

    run(main())
