"""Parents and children where many moves, several processes or ticks share the work."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from packhorse.backends.base import BATCH_MAX, Backend, Keep, Query, Rerun, Settlement, Steered
from packhorse.backends.sqlite import SQLiteBackend, dropping, reviving
from packhorse.clock import ManualClock
from packhorse.job import Claimed, JobSpec, State

from .helpers import new, opened, run, shell, succeeded

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)
AT_ONCE = Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0)


async def _family(backend: Backend, count: int, **fields: object) -> tuple[str, list[str]]:
    """Store a parent in queue `parents` and its children; answers their ids."""
    (parent,) = new(queue="parents")
    children = [spec for _ in range(0, count, BATCH_MAX) for spec in new(BATCH_MAX, after=(parent.id,), **fields)]
    await backend.enqueue([parent])
    for start in range(0, count, BATCH_MAX):
        await backend.enqueue(children[start : start + BATCH_MAX][: count - start])
    return parent.id, [child.id for child in children[:count]]


async def _claim(backend: Backend) -> Claimed:
    (job,) = await backend.claim(["parents"], 1, 30_000, "w")
    return job


async def _end(backend: Backend, state: State = State.SUCCEEDED) -> None:
    job = await _claim(backend)
    await backend.settle([Settlement(id=job.id, token=job.token, state=state)])


async def _states(backend: Backend, ids: list[str]) -> Counter[State | None]:
    found = [
        job for start in range(0, len(ids), BATCH_MAX) for job in await backend.get(ids[start : start + BATCH_MAX])
    ]
    return Counter(job.state if job is not None else None for job in found)


async def _ticks(backend: Backend, keep: Keep = FOREVER) -> int:
    """Tick until nothing is left over; answers how many children that served."""
    freed = 0
    for _ in range(200):
        ticked = await backend.tick(BATCH_MAX, keep)
        freed += ticked.freed
        if ticked.next_due_ms != 0 and ticked.dropped == 0:
            return freed
    raise AssertionError("ticks have no end")


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "deleted"])
def test_of_many_children_the_first_thousand_are_told_at_once_and_the_others_by_ticks(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            parent, children = await _family(backend, 2_500)
            if how in {"cancelled", "deleted"}:
                verb = backend.cancel if how == "cancelled" else backend.delete
                assert await verb([parent]) == [Steered.DONE]
            else:
                await _end(backend, State(how))
            reached = State.PENDING if how == "succeeded" else State.CANCELLED
            assert await _states(backend, children) == {reached: 1_000, State.WAITING: 1_500}
            first = await backend.tick(BATCH_MAX, FOREVER)
            assert (first.freed, first.next_due_ms) == (1_000, 0)
            assert await _ticks(backend) == 500
            assert await _states(backend, children) == {reached: 2_500}
            assert (await backend.tick(BATCH_MAX, FOREVER)).next_due_ms is None
            if reached is State.CANCELLED:
                told = (await backend.get(children[-1:]))[0]
                outcome = "failed" if how == "failed" else "cancelled"
                assert told is not None
                assert [f"parent {parent} ended as {outcome}" in error.message for error in told.errors] == [True]

    run(main())


def test_a_deleted_parent_is_out_of_sight_while_its_children_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            parent, _ = await _family(backend, 1_500, workflow="w")
            await backend.delete([parent])
            assert await backend.get([parent]) == [None]
            assert (await backend.find(Query(queue="parents"))).jobs == []
            assert "parents" not in await backend.counts()
            assert await backend.delete([parent]) == await backend.cancel([parent]) == [Steered.MISSING]
            again = JobSpec(id=parent, type="t", queue="parents")
            assert [answer.created for answer in await backend.enqueue([again])] == [True]
            await _ticks(backend)
            assert (await backend.counts())["parents"].states == {State.PENDING: 1}
        db = shell(tmp_path / "a.db")
        assert db.execute("SELECT count(*) FROM jobs WHERE state > 7").fetchone()[0] == 0
        db.close()

    run(main())


def test_another_process_goes_on_where_one_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            _, children = await _family(backend, 1_200)
            await _end(backend)
        async with opened(tmp_path / "a.db") as backend:
            assert await _ticks(backend) == 200
            assert await _states(backend, children) == {State.PENDING: 1_200}

    run(main())


def test_a_later_parent_does_not_wait_for_the_rest_of_an_earlier_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=ManualClock()) as backend:
            await _family(backend, 2_000)
            await _end(backend)
            _, (child,) = await _family(backend, 1)
            await _end(backend)
            assert await _states(backend, [child]) == {State.PENDING: 1}

    run(main())


def test_parents_that_end_in_concurrent_calls_free_a_child_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as one, opened(tmp_path / "a.db") as two:
            parents = new(40, queue="parents")
            children = new(20, after=tuple(parent.id for parent in parents))
            await one.enqueue([*parents, *children])
            jobs = await one.claim(["parents"], 40, 30_000, "w")
            calls = [(one if number % 2 else two).settle([succeeded(job)]) for number, job in enumerate(jobs)]
            await asyncio.gather(*calls)
            claimed = [job.id for _ in range(3) for job in await two.claim(["default"], 100, 30_000, "v")]
            assert claimed == [child.id for child in children]
            assert all(job is not None and job.waiting_for == 0 for job in await one.get(claimed))

    run(main())


def test_a_rerun_revives_bounded_and_ticks_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviving, "EDGES_MAX", 50)

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            parent, children = await _family(backend, 300)
            grandchildren = [new(after=(child,))[0] for child in children]
            await backend.enqueue(grandchildren)
            ids = [*children, *(job.id for job in grandchildren)]
            await _end(backend, State.FAILED)
            await _ticks(backend)
            assert await _states(backend, ids) == {State.CANCELLED: 600}
            assert await backend.rerun([Rerun(id=parent)]) == [Steered.DONE]
            revived = (await _states(backend, ids))[State.WAITING]
            assert 0 < revived < 300
            await _ticks(backend)
            assert await _states(backend, ids) == {State.WAITING: 600}
            await _end(backend)
            assert await _states(backend, children) == {State.PENDING: 300}

    run(main())


def test_reruns_of_one_call_go_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            first, second, third = (job.id for job in new(3))
            chain = [
                JobSpec(id=first, type="t", queue="parents"),
                JobSpec(id=second, type="t", after=(first,)),
                JobSpec(id=third, type="t", after=(second,)),
            ]
            await backend.enqueue(chain)
            await _end(backend, State.FAILED)
            reruns = [Rerun(id=name) for name in (third, first, second)]
            # The third is on its own, its parent being cancelled; the second is revived by the first.
            assert await backend.rerun(reruns) == [Steered.DONE, Steered.DONE, Steered.LIVE]
            found = await backend.get([first, second, third])
            states = [job.state for job in found if job is not None]
            assert states == [State.PENDING, State.WAITING, State.PENDING]

    run(main())


def test_a_seq_that_is_used_again_inherits_no_family(tmp_path: Path) -> None:
    """SQLite gives the number of the last job that was deleted to the next one."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            _, (child,) = await _family(backend, 1)
            await backend.delete([child])
            (other,) = new(queue="default")
            await backend.enqueue([other])
            await _end(backend, State.FAILED)
            assert await _states(backend, [other.id]) == {State.PENDING: 1}
            record = (await backend.get([other.id]))[0]
            assert record is not None
            assert (record.after, record.waiting_for, record.errors) == ((), 0, ())

    run(main())


def test_retention_goes_past_parents_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More kept ones than a tick looks at, before those that may go."""
    monkeypatch.setattr(dropping, "EDGES_MAX", 30)

    async def main() -> None:
        clock = ManualClock()
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            kept = new(50, queue="parents")
            (child,) = new(after=tuple(job.id for job in kept))
            await backend.enqueue([*kept, child])
            for _ in kept:
                await _end(backend)
            free = new(50, queue="parents")
            others = [new(after=(job.id,), queue="others")[0] for job in free]
            await backend.enqueue([*free, *others])
            for _ in free:
                await _end(backend)
            jobs = await backend.claim(["others"], 100, 30_000, "w")
            await backend.settle([succeeded(job) for job in jobs])
            clock.advance(1)
            for _ in range(60):
                await backend.tick(10, AT_ONCE)
            assert await _states(backend, [job.id for job in kept]) == {State.SUCCEEDED: 50}
            assert await _states(backend, [job.id for job in (*free, *others)]) == {None: 100}
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            await backend.settle([succeeded(job)])
            clock.advance(1)
            for _ in range(60):
                await backend.tick(10, AT_ONCE)
            assert await backend.counts() == {}
        db = shell(tmp_path / "a.db")
        for table in ("jobs", "edges", "families", "parents", "extras", "revivals"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0, table
        db.close()

    run(main())


def test_ten_thousand_parents_fit_one_child(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            ids: list[str] = []
            for _ in range(10):
                parents = new(1_000, queue="parents")
                ids += [parent.id for parent in parents]
                await backend.enqueue(parents)
            (child,) = new(after=tuple(ids))
            await backend.enqueue([child])
            record = (await backend.get([child.id]))[0]
            assert record is not None
            assert (record.waiting_for, record.after) == (10_000, tuple(ids))
            while jobs := await backend.claim(["parents"], 1_000, 30_000, "w"):
                await backend.settle([succeeded(job) for job in jobs])
            assert await _states(backend, [child.id]) == {State.PENDING: 1}

    run(main(), limit_s=60)


async def _is_quick(backend: SQLiteBackend) -> int:
    """Answer how many statements a settlement of 100 plain jobs takes."""
    await backend.enqueue(new(100, queue="plain"))
    jobs = await backend.claim(["plain"], 100, 30_000, "w")
    said: list[str] = []
    db = backend._engine._db
    assert db is not None
    db.set_trace_callback(said.append)
    await backend.settle([succeeded(job) for job in jobs])
    db.set_trace_callback(None)
    return len(said)


def test_families_of_others_cost_a_settlement_one_statement(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            assert await _is_quick(backend) == 5
            await _family(backend, 2_000)
            assert await _is_quick(backend) == 6

    run(main())
