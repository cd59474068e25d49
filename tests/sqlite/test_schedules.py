"""Schedules and durable steps in one file: races, restarts, and what is left when a job goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from packhorse.backends.base import Firing, Keep, Note, Rerun, Schedule, ScheduleChange, Verdict, WorkerInfo
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.clock import ManualClock
from packhorse.job import JobSpec, State, Unique

from .helpers import new, opened, run, shell, succeeded

_SPEC = JobSpec(
    id="template",
    type="t",
    payload=b'{"n": "\xc3\xa9"}',
    tags=("a",),
    meta={"k": "v"},
    unique=Unique(key="k", for_ms=5, states=(State.PENDING,), on_conflict="replace"),
    key="tenant",
)


async def _define(backend: SQLiteBackend, name: str, **fields: object) -> Schedule:
    schedule = Schedule(**{"name": name, "spec": _SPEC, "every_ms": 1_000, **fields})  # type: ignore[arg-type]
    found = await backend.schedules([ScheduleChange(name=name, define=schedule)])
    return next(one for one in found if one.name == name)


def test_of_racing_firings_one_is_applied(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as one, opened(tmp_path / "a.db", clock=clock) as two:
            schedule = await _define(one, "s")
            for turn in range(5):
                firings = [
                    Firing(
                        name="s",
                        revision=schedule.revision,
                        done_ms=schedule.done_ms + turn,
                        new_done_ms=schedule.done_ms + turn + 1,
                        next_ms=clock.now_ms() + 1_000,
                        specs=tuple(new(2)),
                    )
                    for _ in range(8)
                ]
                calls = [(one if number % 2 else two).fire([firing]) for number, firing in enumerate(firings)]
                verdicts = [call[0] for call in await asyncio.gather(*calls)]
                assert verdicts.count(Verdict.APPLIED) == 1
                applied = firings[verdicts.index(Verdict.APPLIED)]
                found = await one.get([spec.id for firing in firings for spec in firing.specs])
                assert [job.id for job in found if job is not None] == [spec.id for spec in applied.specs]

    run(main())


def test_a_schedule_comes_back_as_it_was_defined(tmp_path: Path) -> None:
    clock = ManualClock()
    daily = {"every_ms": None, "cron": "0 9 * * *", "tz": "Europe/Paris", "source": "app"}

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            defined = await _define(backend, "b", **daily)
            await _define(backend, "a")
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            assert [one.name for one in await backend.schedules()] == ["a", "b"]
            assert (await backend.schedules())[1] == defined
            assert (
                await _define(backend, "b", every_ms=None, cron="0 9 * * *", tz="Europe/Paris", source="app") == defined
            )

    run(main())


def test_a_tick_that_only_hands_out_schedules_writes_nothing(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            await _define(backend, "s")
            size = (tmp_path / "a.db-wal").stat().st_size
            for _ in range(20):
                ticked = await backend.tick(100, Keep())
                assert ([one.name for one in ticked.schedules], ticked.next_due_ms) == (["s"], 0)
            assert (tmp_path / "a.db-wal").stat().st_size == size

    run(main())


def test_results_of_steps_come_back_byte_for_byte_and_go_with_the_job(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(3, payload=b"[1]"))
            jobs = await backend.claim(["default"], 3, 30_000, "w")
            first, other, _ = jobs
            results = {"small": b"1", "bytes": bytes(range(256)), "large": b"x" * 300_000}
            notes = [Note(id=first.id, token=first.token, step=name, result=result) for name, result in results.items()]
            notes.append(Note(id=other.id, token="1", step="not mine", result=b"2"))
            notes.append(Note(id=first.id, token=first.token, progress=0.5))
            await backend.heartbeat(WorkerInfo(id="w"), 30_000, notes)
            found = await backend.get([job.id for job in jobs])
            assert [job.steps for job in found if job is not None] == [results, None, None]
            await backend.settle([succeeded(job) for job in jobs])
            await backend.rerun([Rerun(id=first.id, payload=b"[1]")])
            assert [job.steps for job in await backend.get([first.id]) if job is not None] == [results]
            await backend.cancel([first.id])
            await backend.rerun([Rerun(id=first.id, payload=b"[2]")])
            assert [job.steps for job in await backend.get([first.id]) if job is not None] == [None]
            await backend.delete([first.id])
        db = shell(tmp_path / "a.db")
        assert db.execute("SELECT count(*) FROM steps").fetchone()[0] == 0
        db.close()

    run(main())
