"""Group commit, settlements, and what one call may do to its neighbours: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends import stored
from packhorse.backends.base import Enqueued, Keep, Note, Settlement, Verdict, WorkerInfo
from packhorse.backends.sqlite import SQLiteBackend, rows
from packhorse.backends.sqlite import engine as engine_module
from packhorse.backends.sqlite.ops import Op, Transaction
from packhorse.backends.sqlite.rows import INLINE_BYTES
from packhorse.clock import ManualClock
from packhorse.errors import UniqueConflict
from packhorse.job import Claimed, JobError, JobSpec, State

from .helpers import count_jobs, new, opened, run, shell, succeeded, unique, until


@contextmanager
def traced(backend: SQLiteBackend) -> Iterator[list[str]]:
    """The statements that the writer runs meanwhile."""
    said: list[str] = []
    db = backend._engine._db
    assert db is not None
    db.set_trace_callback(said.append)
    try:
        yield said
    finally:
        db.set_trace_callback(None)


@contextmanager
def locked(path: Path) -> Iterator[Any]:
    """The write lock in the hands of another program."""
    db = shell(path)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.close()


async def _claim(backend: SQLiteBackend, limit: int = 1_000, worker: str = "w") -> list[Claimed]:
    return await backend.claim(["default"], limit, 30_000, worker)


def _commits(said: list[str]) -> int:
    return sum(statement == "COMMIT" for statement in said)


# ---- group commit ------------------------------------------------------------------------------------------


def test_concurrent_enqueues_share_a_commit(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with traced(backend) as said, locked(tmp_path / "a.db") as other:
                tasks = [asyncio.create_task(backend.enqueue(new())) for _ in range(200)]
                await asyncio.sleep(0)  # each task ran up to where it waits
                other.execute("ROLLBACK")
                await asyncio.gather(*tasks)
            assert _commits(said) <= 3, _commits(said)
            assert not any(statement.startswith("SAVEPOINT") for statement in said)
        assert count_jobs(tmp_path / "a.db") == 200

    run(main())


def test_a_group_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "GROUP_ITEMS_MAX", 10)

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with traced(backend) as said:
                await asyncio.gather(*[backend.enqueue(new()) for _ in range(100)])
            assert _commits(said) >= 10

    run(main())


def test_a_call_that_fails_harms_no_neighbour(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            [held] = new(unique=unique("k"))
            await backend.enqueue([held])
            again, good = new(), new(3)
            calls = [
                new(2),
                again,
                again,  # the same id once more
                [*new(2), *new(unique=unique("k", "refuse")), *new(2)],  # nothing of it may stay
                [*new(2), JobSpec(id="lone \udc80", type="t")],  # cannot be written at all
                good,
            ]
            with locked(tmp_path / "a.db"):
                tasks = [asyncio.create_task(backend.enqueue(specs)) for specs in calls]
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert answers[0] == [Enqueued(spec.id, True) for spec in calls[0]]
            assert answers[1:3] == [[Enqueued(again[0].id, True)], [Enqueued(again[0].id, False)]]
            assert isinstance(answers[3], UniqueConflict)
            assert isinstance(answers[4], UnicodeEncodeError)
            assert answers[5] == [Enqueued(spec.id, True) for spec in good]
        assert count_jobs(tmp_path / "a.db") == 1 + 2 + 1 + 3

    run(main())


def test_cancelled_while_it_waits_is_not_done(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with locked(tmp_path / "a.db"):
                first = asyncio.create_task(backend.enqueue(new()))
                await asyncio.sleep(0)  # it ran up to where it waits
                await until(backend._engine._writes.empty, "the writer took it")  # type: ignore[union-attr]
                second = asyncio.create_task(backend.enqueue(new()))
                await asyncio.sleep(0)
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)
            await first
        assert count_jobs(tmp_path / "a.db") == 1

    run(main())


def test_jobs_claimed_for_a_caller_that_went_away_are_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            [spec] = new()
            await backend.enqueue([spec])
            task = asyncio.create_task(_claim(backend))
            await asyncio.sleep(0)
            other = shell(tmp_path / "a.db")
            while other.execute("SELECT state FROM jobs").fetchone()[0] != 4:
                pass  # the loop stands still, so the answer is on its way and not delivered yet
            other.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            [again] = await _claim(backend)
            assert again.id == spec.id
            assert again.attempt == 1, "the attempt was given back"

    run(main())


def test_batches_take_few_statements(tmp_path: Path) -> None:
    """Each statement may cost 5 ms beside a busy event loop: see engine.py."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with traced(backend) as said:
                await backend.enqueue(new(1_000))
                assert len(said) <= 15, said
                said.clear()
                jobs = await _claim(backend, 500)
                assert len(said) <= 7, said
                said.clear()
                await backend.settle([succeeded(job) for job in jobs])
                assert len(said) <= 5, said
                await _claim(backend, 500, "dead")
                said.clear()
                assert len(await backend.retire("dead", "it died")) == 500
                assert len(said) <= 17, said

    run(main())


# ---- settle ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.PENDING])
def test_of_two_settlements_of_one_token_the_first_counts(tmp_path: Path, state: State) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(3))
            jobs = await _claim(backend)
            first = [succeeded(job, result=b"1") for job in jobs]
            second = Settlement(id=jobs[1].id, token=jobs[1].token, state=state, result=b"2")
            verdicts = await backend.settle([*first, second])
            assert verdicts == [Verdict.APPLIED] * 3 + [Verdict.STALE]
            [record] = await backend.get([jobs[1].id])
            assert record is not None
            assert (record.state, record.result) == (State.SUCCEEDED, b"1")

    run(main())


def test_stale_and_fresh_in_concurrent_calls(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(4))
            a, b, c, d = await _claim(backend)
            with locked(tmp_path / "a.db"):
                tasks = [
                    asyncio.create_task(backend.settle(settlements))
                    for settlements in ([succeeded(a), succeeded(b)], [succeeded(b), succeeded(c)], [succeeded(d)])
                ]
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*tasks)
            assert answers == [
                [Verdict.APPLIED, Verdict.APPLIED],
                [Verdict.STALE, Verdict.APPLIED],
                [Verdict.APPLIED],
            ]

    run(main())


def test_tokens_that_are_not_exactly_right_are_stale(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(2))
            [a], [b] = await _claim(backend, 1), await _claim(backend, 1)
            wrong = [
                b.token,
                "",
                "x",
                "-1",
                "0" + a.token,
                a.token + " ",
                "²",
                str(int(a.token) + 1),
                "9" * 19,
                "9" * 30,
            ]
            for token in wrong:
                for state in (State.SUCCEEDED, State.FAILED):
                    settlement = Settlement(id=a.id, token=token, state=state)
                    assert await backend.settle([settlement]) == [Verdict.STALE], token
            assert await backend.settle([succeeded(a), succeeded(b)]) == [Verdict.APPLIED] * 2

    run(main())


def test_tokens_differ_between_claims_and_between_processes_lives(tmp_path: Path) -> None:
    async def main() -> None:
        tokens = set()
        for _ in range(5):
            async with opened(tmp_path / "a.db") as backend:
                if not tokens:
                    await backend.enqueue(new())
                for _ in range(3):
                    [job] = await _claim(backend)
                    tokens.add(job.token)
                    release = Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True)
                    assert await backend.settle([release]) == [Verdict.APPLIED]
        assert len(tokens) == 15

    run(main())


def test_a_follow_up_may_take_the_key_that_its_parent_frees(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(unique=unique("k")))
            [job] = await _claim(backend)
            follow_up = new(unique=unique("k"))
            assert await backend.settle([succeeded(job, follow_ups=tuple(follow_up))]) == [Verdict.APPLIED]
            assert [one.id for one in await _claim(backend)] == [follow_up[0].id]

    run(main())


def test_a_move_checks_state_and_token_in_the_statement_that_writes(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(2))
            jobs = await _claim(backend)

            def move(tx: Transaction, wrong: tuple[int, int]) -> None:
                found = rows.load_by_id(tx.db, [job.id for job in jobs])
                for row in found.values():
                    row.let_go()
                    row.was_state, row.was_token = wrong
                rows.save(tx, found.values())

            token = int(jobs[0].token)
            for wrong in ((stored.RUNNING, token + 1), (stored.PENDING, token)):
                with pytest.raises(AssertionError, match="0 of 2 rows"):
                    await backend._engine.post(Op(move, wrong))
            assert await backend.settle([succeeded(job) for job in jobs]) == [Verdict.APPLIED] * 2

    run(main())


# ---- what is large or odd ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 1_000_000])
def test_payloads_and_results_come_back_byte_for_byte(tmp_path: Path, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            [spec] = new(payload=payload)
            await backend.enqueue([spec])
            [job] = await _claim(backend)
            assert job.payload == payload
            await backend.settle([succeeded(job, result=payload)])
            [record] = await backend.get([spec.id])
            assert record is not None
            assert (record.payload, record.result) == (payload, payload)
            await backend.delete([spec.id])
        db = shell(tmp_path / "a.db")
        left = [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("jobs", "payloads", "extras")]
        db.close()
        assert left == [0, 0, 0]

    run(main())


def test_long_error_histories_survive_a_lapse(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            [spec] = new(max_attempts=10)
            await backend.enqueue([spec])
            for attempt in range(1, 5):
                [job] = await _claim(backend)
                error = JobError(attempt=attempt, at_ms=1, kind="E", message="m", traceback="x" * 10_000)
                await backend.settle([Settlement(id=job.id, token=job.token, state=State.PENDING, error=error)])
            await _claim(backend)
            clock.advance(30_000)
            assert (await backend.tick(100, Keep())).lapsed == 1
            [record] = await backend.get([spec.id])
            assert record is not None
            assert [error.attempt for error in record.errors] == [1, 2, 3, 4, 5]
            assert len(record.errors[0].traceback) == 10_000

    run(main())


def test_progress_keeps_all_digits(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new())
            [job] = await _claim(backend)
            note = Note(id=job.id, token=job.token, progress=1 / 3)
            await backend.heartbeat(WorkerInfo(id="w"), 30_000, [note])
            [record] = await backend.get([job.id])
            assert record is not None
            assert record.progress == 1 / 3

    run(main())


# ---- leases ------------------------------------------------------------------------------------------------


def test_an_idle_worker_that_heartbeats_writes_nothing_by_claiming(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            await backend.heartbeat(WorkerInfo(id="w"), 30_000)
            clock.advance(9_000)
            with traced(backend) as said:
                for _ in range(10):
                    assert await _claim(backend) == []
                await backend.tick(100, Keep())
            assert not any(statement.startswith(("BEGIN", "INSERT", "UPDATE")) for statement in said), said

    run(main())


def test_a_worker_that_only_claims_keeps_its_lease(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with opened(tmp_path / "a.db", clock=clock) as backend:
            await backend.enqueue(new())
            assert len(await _claim(backend)) == 1
            for _ in range(10):
                clock.advance(20_000)
                assert await _claim(backend) == []
                assert (await backend.tick(100, Keep())).lapsed == 0

    run(main())


def test_jobs_of_a_worker_whose_row_is_gone_lapse(tmp_path: Path) -> None:
    """B18, B29."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(3))
            await _claim(backend)
            db = shell(tmp_path / "a.db")
            db.execute("DELETE FROM workers")
            db.close()
            assert (await backend.tick(100, Keep())).lapsed == 3
            assert len(await _claim(backend)) == 3

    run(main())


def test_a_worker_whose_row_is_gone_gets_its_jobs_back_by_a_heartbeat(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.enqueue(new(2))
            jobs = await _claim(backend)
            db = shell(tmp_path / "a.db")
            db.execute("DELETE FROM workers")
            db.close()
            pulse = await backend.heartbeat(WorkerInfo(id="w"), 30_000)
            assert pulse.held == {job.id: job.token for job in jobs}

    run(main())
