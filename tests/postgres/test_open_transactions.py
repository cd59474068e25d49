"""A user's transaction that stays open holds up nothing but what it has to."""

from __future__ import annotations

import asyncio
from contextlib import closing

import msgspec
import pytest

from packhorse.backends.base import (
    BATCH_MAX,
    Firing,
    Keep,
    Limit,
    Note,
    QueueChange,
    Schedule,
    ScheduleChange,
    Settlement,
    Verdict,
    WorkerInfo,
)
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.errors import InvalidOption, Unavailable
from packhorse.job import State, Unique
from tests.witness import Witness, at_most, boot_s

from .helpers import new, opened, run, shell

#: Well below the time for which a lock is waited for.
SOON_S = 3


def _holding(url: str):
    return closing(shell(url, autocommit=False))


def test_a_claim_by_key_takes_what_a_transaction_leaves_it(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.limits([Limit(type="work", key="*", concurrency=1)])
            specs = [spec for number in range(150) for spec in new(1, key=f"k{number:03}")]
            for spec in specs[:3]:
                await backend.enqueue([spec])
            await backend.enqueue(specs[3:])
            with _holding(postgres_url) as user:
                held = [spec.id for spec in specs[:70]]
                await backend.bind(user).enqueue(new(1, type="child", after=tuple(held)))
                with at_most(SOON_S):
                    claimed = await backend.claim(["default"], 5, 30_000, "w")
                assert len(claimed) == 5
                assert not {job.id for job in claimed} & set(held)
            assert len(await backend.claim(["default"], 150, 30_000, "w")) == 145

    run(main())


def test_a_job_stored_in_a_lane_that_was_forgotten_meanwhile_is_found(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.limits([Limit(type="work", concurrency=5), Limit(type="other", concurrency=5)])
            with _holding(postgres_url) as user:
                [spec] = new(1)
                await backend.bind(user).enqueue([spec])
                await backend.limits([Limit(type="work", cleared=True)])
                assert await backend.claim(["default"], 5, 30_000, "w") == []
                user.commit()
            await backend.tick(BATCH_MAX, Keep())
            assert [job.id for job in await backend.claim(["default"], 5, 30_000, "w")] == [spec.id]

    run(main())


def test_a_job_that_leaves_its_lane_late_is_found_at_once(postgres_url: str) -> None:
    async def main() -> None:
        clock = SYSTEM_CLOCK
        async with opened(postgres_url) as backend:
            # floors are known, and long past the job in the lane
            await backend.limits([Limit(type="work", concurrency=1)])
            await backend.enqueue(new(2))
            with closing(shell(postgres_url)) as db:
                db.execute("UPDATE jobs SET rank = rank - 60000")
                db.execute(
                    "INSERT INTO floors (queue, priority, floor, at_ms, whole_at_ms) "
                    "SELECT 'default', priority, max(rank) + 50000, %s, %s FROM jobs GROUP BY priority",
                    (clock.now_ms(), clock.now_ms()),
                )
            assert len(await backend.claim(["default"], 5, 30_000, "w")) == 1
            await backend.limits([Limit(type="work", cleared=True)])
            found = 0
            for _ in range(3):
                found += len(await backend.claim(["default"], 5, 30_000, "w"))
            assert found == 1

    run(main())


def test_a_tick_steps_over_what_a_transaction_holds(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            held, dead = new(1)[0], new(1)[0]
            await backend.enqueue([held, dead])
            assert len(await backend.claim(["default"], 2, 1_000, "gone")) == 2
            done = new(1, queue="q", unique=Unique(key="k"))[0]
            await backend.enqueue([done])
            [job] = await backend.claim(["q"], 1, 60_000, "w")
            await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
            parent, child, freed = new(1, queue="p")[0], new(1, queue="c")[0], new(1, queue="c")[0]
            await backend.enqueue(
                [parent, *(msgspec.structs.replace(one, after=(parent.id,)) for one in (child, freed))]
            )
            [job] = await backend.claim(["p"], 1, 60_000, "w")
            await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
            due = new(1, queue="due", delay_ms=1)
            await backend.enqueue(due)
            with closing(shell(postgres_url)) as db:  # as a move leaves them that had too many children to tell
                db.execute("UPDATE jobs SET children = 1 WHERE id = %s", (parent.id,))
                db.execute("UPDATE edges SET done = 0")
                db.execute("UPDATE jobs SET state = 1, waiting_for = 1, due_at_ms = created_at_ms WHERE queue = 'c'")
            await asyncio.sleep(1.1)
            with _holding(postgres_url) as user:
                bound = backend.bind(user)
                await bound.enqueue(new(1, queue="later", after=(held.id, child.id)))
                await bound.enqueue(new(1, queue="q", unique=Unique(key="k")))
                with at_most(SOON_S):
                    ticked = await backend.tick(BATCH_MAX, Keep(succeeded_ms=0))
                assert (ticked.promoted, ticked.lapsed, ticked.freed) == (1, 1, 1)
                states = [record.state for record in await backend.get([held.id, dead.id, child.id, freed.id])]
                assert states == [State.RUNNING, State.PENDING, State.WAITING, State.PENDING]
                assert await backend.get([done.id]) != [None]
                user.commit()
            await backend.tick(BATCH_MAX, Keep(succeeded_ms=0))
            states = [record.state for record in await backend.get([held.id, child.id])]
            assert states == [State.PENDING, State.PENDING]
            assert (await backend.get([done.id]))[0] is None

    run(main())


def test_a_bound_enqueue_to_a_queue_with_a_capacity_lets_others_in(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.queues([QueueChange(queue="default", capacity=10)])
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(1))
                with at_most(SOON_S):
                    await backend.enqueue(new(1))

    run(main())


def test_one_who_waits_keeps_no_others_of_its_group_waiting(postgres_url: str, witness: Witness) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            specs = new(20)
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(specs[:1])
                await asyncio.sleep(0)
                calls = [asyncio.create_task(backend.enqueue([spec])) for spec in specs]
                started = boot_s()
                first = await asyncio.gather(*calls, return_exceptions=True)
                assert witness.since_s(started) < 14
                assert isinstance(first[0], Unavailable)
                assert not [one for one in first[1:] if isinstance(one, BaseException)]

    run(main())


def test_heartbeats_do_not_queue_behind_calls_that_wait(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(1, unique=Unique(key="k")))
                calls = [asyncio.create_task(backend.enqueue(new(1, unique=Unique(key="k")))) for _ in range(8)]
                await asyncio.sleep(0.1)
                with at_most(SOON_S):
                    await backend.heartbeat(WorkerInfo(id="w"), 30_000)
                user.commit()
            await asyncio.gather(*calls)

    run(main())


def test_a_backend_that_does_little_keeps_one_connection(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.backends.postgres.pool._IDLE_MS", 300)

    async def main() -> None:
        async with opened(postgres_url) as backend:
            await asyncio.gather(*(backend.counts() for _ in range(20)))
            assert len(backend._pool._idle) > 1
            await asyncio.sleep(0.2)
            await backend.counts()
            await asyncio.sleep(0.2)
            await backend.counts()
            assert len(backend._pool._idle) == 1

    run(main())


def test_a_settlement_that_waits_keeps_no_others_from_theirs(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(f"{postgres_url}&timeout=2") as backend:
            specs = new(2)
            await backend.enqueue(specs)
            jobs = await backend.claim(["default"], 2, 30_000, "w")
            ends = [Settlement(id=job.id, token=job.token, state=State.FAILED) for job in jobs]
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(1, type="child", after=(jobs[0].id,)))
                with pytest.raises(Unavailable):
                    await backend.settle(ends)
                states = [record.state for record in await backend.get([job.id for job in jobs])]
                assert states == [State.RUNNING, State.FAILED]
                user.commit()
            assert await backend.settle(ends) == [Verdict.APPLIED, Verdict.STALE]

    run(main())


def test_a_transaction_goes_on_after_a_user_without_rights_was_refused(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            role = f"poor_{CHANCE.ids(SYSTEM_CLOCK.now_ms(), 1)[0]}"
            with _holding(postgres_url) as user:
                user.execute(f'CREATE ROLE "{role}"'.encode())
                user.execute(f'SET LOCAL ROLE "{role}"'.encode())
                with pytest.raises(InvalidOption, match="grant"):
                    await backend.bind(user).enqueue(new(1))
                assert user.execute("SELECT 1").fetchall() == [(1,)]
                user.rollback()

    run(main())


def test_a_schema_with_a_long_name_rings(postgres_url: str) -> None:
    async def main() -> None:
        long = f"{postgres_url.partition('?')[0]}?schema={'a' * 63}"
        async with opened(long) as backend, opened(long) as other:
            with other.watch(["queue:default"]) as bell:
                await asyncio.sleep(0.2)
                await backend.enqueue(new(1))
                assert await bell.wait(30_000)

    run(main())


def test_a_slot_that_waits_for_a_key_keeps_no_others_from_firing(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(f"{postgres_url}&timeout=2") as backend:
            specs = {"a": new(1, unique=Unique(key="k"))[0], "b": new(1, queue="b")[0]}
            await backend.schedules(
                [
                    ScheduleChange(name=name, define=Schedule(name=name, spec=spec, every_ms=60_000))
                    for name, spec in specs.items()
                ]
            )
            ticked = await backend.tick(BATCH_MAX, Keep())
            firings = [
                Firing(
                    name=one.name,
                    revision=one.revision,
                    done_ms=one.done_ms,
                    new_done_ms=ticked.now_ms,
                    next_ms=ticked.now_ms + 60_000,
                    specs=(specs[one.name],),
                )
                for one in ticked.schedules
            ]
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(1, unique=Unique(key="k")))
                with pytest.raises(Unavailable):
                    await backend.fire(firings)
                assert [job.id for job in await backend.claim(["b"], 5, 30_000, "w")] == [specs["b"].id]
                user.rollback()
            assert await backend.fire(firings) == [Verdict.APPLIED, Verdict.STALE]

    run(main())


def test_a_lease_is_renewed_though_a_step_has_to_wait(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(f"{postgres_url}&timeout=2") as backend:
            [spec] = new(1)
            await backend.enqueue([spec])
            [job] = await backend.claim(["default"], 1, 500, "w")
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(1, type="child", after=(spec.id,)))
                with pytest.raises(Unavailable):
                    await backend.heartbeat(
                        WorkerInfo(id="w"), 30_000, [Note(id=job.id, token=job.token, step="s", result=b"1")]
                    )
                user.commit()
            assert (await backend.tick(BATCH_MAX, Keep())).lapsed == 0
            pulse = await backend.heartbeat(WorkerInfo(id="w"), 30_000)
            assert pulse.held == {job.id: job.token}

    run(main())
