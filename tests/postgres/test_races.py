"""What many do at the same time: each job goes to one, each key to one, each limit holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from packhorse.backends.base import Keep, Limit, QueueChange, Settlement, Verdict, WorkerInfo
from packhorse.backends.postgres import claiming
from packhorse.backends.postgres.script import LOCK, Script, Statement
from packhorse.chance import Chance
from packhorse.job import JobSpec, State, Unique
from tests.witness import Witness, boot_s

from .helpers import new, opened, run, shell, until

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


def test_claim_never_exceeds_its_limit(postgres_url: str) -> None:
    """With a subquery in place of the CTE the planner can claim all there are (nested loop, LIMIT run once a row)."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            for _ in range(2):
                await backend.enqueue(new(1_000))
            store, claim = backend._store, claiming.Claim(("default",), 10, 30_000, "w")
            from psycopg import RawCursor

            from packhorse.backends.postgres.packing import use_packing

            with shell(postgres_url, cursor_factory=RawCursor) as db:
                use_packing(db.adapters)
                for setting in ("hashjoin", "mergejoin", "hashagg", "sort", "material"):
                    db.execute(f"SET enable_{setting} = off".encode())
                values = (None, *claiming.arguments(store, claim, ("default",), 10, 7))
                rows = db.execute(store.sql(claiming.TAKE).encode(), values).fetchall()
                assert len(rows) == 10
                assert db.execute("SELECT count(*) FROM jobs WHERE state = 4").fetchone()[0] == 10

    run(main())


def test_each_job_goes_to_one_claimer(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two, opened(postgres_url) as three:
            jobs = [*new(400), *new(300, priority=2), *new(300, key="k")]
            await one.enqueue(jobs)
            claimed: list[str] = []

            async def drain(backend: Any, worker: str) -> None:
                misses = 0
                while misses < 3:
                    found = await backend.claim(["default"], 7, 30_000, worker)
                    claimed.extend(job.id for job in found)
                    misses = 0 if found else misses + 1

            await asyncio.gather(*(drain(backend, f"w{n}") for n, backend in enumerate((one, two, three) * 3)))
            assert sorted(claimed) == sorted(job.id for job in jobs)

    run(main())


def test_racers_for_a_key_get_one_job_whoever_rolls_back(postgres_url: str) -> None:
    """B33: 50 at once, some in transactions that are rolled back; the key ends with exactly one job."""

    async def main() -> None:
        chance = Chance(5)
        async with opened(postgres_url + "&pool=8") as backend:
            for round_ in range(4):
                key = f"key{round_}"

                async def racer(number: int, key: str = key) -> str | None:
                    spec = JobSpec(id=f"{key}-{number}", type="work", unique=Unique(key=key))
                    if number % 5:
                        return (await backend.enqueue([spec]))[0].id
                    import psycopg

                    async with await psycopg.AsyncConnection.connect(backend.location.conninfo) as db:
                        answer = (await backend.bind(db).enqueue([spec]))[0].id
                        await asyncio.sleep(chance.uniform(0, 0.02))
                        if chance.happens(0.5):
                            await db.rollback()
                            return None
                        await db.commit()
                        return answer

                answers = {answer for answer in await asyncio.gather(*map(racer, range(50))) if answer is not None}
                with shell(postgres_url) as db:
                    stored = [row[0] for row in db.execute("SELECT id FROM jobs WHERE unique_key = %s", (key,))]
                assert len(stored) == 1
                assert answers == set(stored)

    run(main())


@pytest.mark.parametrize("key", [None, "tenant"])
def test_a_concurrency_limit_holds_over_all_claimers(postgres_url: str, key: str | None) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            await one.limits([Limit(type="work", key="*" if key else None, concurrency=3)])
            await one.enqueue([*new(120, key=key), *new(40, type="other")])
            running = most = done = 0

            async def work(backend: Any, worker: str) -> None:
                nonlocal running, most, done
                while done < 120:
                    jobs = await backend.claim(["default"], 5, 30_000, worker)
                    mine = [job for job in jobs if job.type == "work"]
                    running += len(mine)
                    most = max(most, running)
                    await asyncio.sleep(0.002)
                    running -= len(mine)
                    done += len(mine)
                    await backend.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs])

            async with asyncio.timeout(60):
                await asyncio.gather(*(work(backend, f"w{n}") for n, backend in enumerate((one, two) * 3)))
            assert 1 <= most <= 3

    run(main())


def test_nothing_starts_after_a_pause_was_acknowledged(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            await one.enqueue(new(1_000))
            is_paused = False
            late = []

            async def claimer() -> None:
                while True:
                    was_paused = is_paused
                    found = await two.claim(["default"], 3, 30_000, "w")
                    if was_paused and found:
                        late.extend(found)
                    if was_paused:
                        return

            async def pauser() -> None:
                nonlocal is_paused
                await asyncio.sleep(0.05)
                await one.queues([QueueChange(queue="default", paused=True)])
                is_paused = True

            await asyncio.gather(pauser(), *(claimer() for _ in range(4)))
            assert late == []

    run(main())


def test_a_settlement_and_the_reaper_meet(postgres_url: str) -> None:
    """B24: whoever comes second changes nothing; no job is succeeded and run again."""

    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            for round_ in range(20):
                await one.enqueue(new(20, max_attempts=2))
                jobs = await one.claim(["default"], 20, 1, f"w{round_}")
                assert len(jobs) == 20
                await asyncio.sleep(0.003)  # the lease of 1 ms runs out
                settle = one.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs])
                verdicts, ticked = await asyncio.gather(settle, two.tick(1_000, FOREVER))
                found = await one.get([job.id for job in jobs])
                states = [record.state for record in found if record is not None]
                applied = Counter(verdicts)[Verdict.APPLIED]
                assert states.count(State.SUCCEEDED) == applied
                assert states.count(State.PENDING) == 20 - applied
                assert ticked.lapsed <= 20 - applied
                again = await one.claim(["default"], 20, 30_000, "again")
                await one.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in again])

    run(main())


def test_a_heartbeat_and_the_reaper_meet(postgres_url: str) -> None:
    """What a heartbeat says is held is not taken by a reaper that looked before it."""

    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            for round_ in range(30):
                worker = WorkerInfo(id=f"w{round_}")
                await one.enqueue(new(3, max_attempts=9))
                await one.heartbeat(worker, 1)
                await one.claim(["default"], 3, 1, worker.id)
                await asyncio.sleep(0.003)
                pulse, ticked = await asyncio.gather(one.heartbeat(worker, 60_000), two.tick(1_000, FOREVER))
                assert len(pulse.held) == 3 - ticked.lapsed
                await one.retire(worker.id, "end of the round")
                jobs = await one.claim(["default"], 100, 60_000, "rest")
                await one.settle([Settlement(id=j.id, token=j.token, state=State.CANCELLED) for j in jobs])
                await one.retire("rest", "end of the round")

    run(main())


def test_the_last_of_two_parents_frees_a_child_once(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            for _ in range(25):
                parents = new(2)
                await one.enqueue(parents)
                child = new(1, after=tuple(parent.id for parent in parents))[0]
                await one.enqueue([child])
                jobs = await one.claim(["default"], 2, 30_000, "w")
                ends = [Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs]
                assert await asyncio.gather(one.settle(ends[:1]), two.settle(ends[1:])) == [[Verdict.APPLIED]] * 2
                freed = await one.claim(["default"], 10, 30_000, "w")
                assert [job.id for job in freed] == [child.id]
                await one.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in freed])

    run(main())


def test_a_child_that_comes_as_its_parent_ends_is_freed(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            for _ in range(40):
                parent = new(1)[0]
                await one.enqueue([parent])
                (job,) = await one.claim(["default"], 1, 30_000, "w")
                child = new(1, after=(parent.id,))[0]
                await asyncio.gather(
                    one.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)]), two.enqueue([child])
                )
                freed = await one.claim(["default"], 10, 30_000, "w")
                assert [one.id for one in freed] == [child.id]
                await one.settle([Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in freed])

    run(main())


def test_a_transaction_that_ties_a_child_stops_no_other_family(postgres_url: str, witness: Witness) -> None:
    """An enqueue with `after` in a user's long transaction holds its parent only."""

    async def main() -> None:
        import psycopg

        async with opened(postgres_url) as backend:
            parents = new(20)
            await backend.enqueue(parents)
            jobs = await backend.claim(["default"], 20, 30_000, "w")
            async with await psycopg.AsyncConnection.connect(backend.location.conninfo) as db:
                await backend.bind(db).enqueue(new(1, after=(parents[0].id,)))
                began = boot_s()
                ends = [Settlement(id=j.id, token=j.token, state=State.SUCCEEDED) for j in jobs]
                held = [end for end in ends if end.id == parents[0].id]
                verdicts = await backend.settle([end for end in ends if end not in held])
                assert set(verdicts) == {Verdict.APPLIED}
                await backend.enqueue(new(3, after=(parents[5].id,)))
                assert len(await backend.claim(["default"], 3, 30_000, "w")) == 3
                assert witness.since_s(began) < 2
                waiting = asyncio.create_task(backend.settle(held))
                await asyncio.sleep(0.1)
                await db.commit()
            assert await waiting == [Verdict.APPLIED]
            await until(lambda: _has_started(backend), "the child starts")

    run(main())


def _waits_for(db: Any, key: int) -> bool:
    """Answer whether somebody waits for an advisory lock."""
    of_key = "locktype = 'advisory' AND (classid::int8 << 32 | objid::int8) = %s"
    return db.execute(f"SELECT 1 FROM pg_locks WHERE NOT granted AND {of_key}".encode(), (key,)).fetchone() is not None


async def _has_started(backend: Any) -> bool:
    return len(await backend.claim(["default"], 1, 30_000, "w")) == 1


def test_a_lock_ahead_of_a_statement_holds_until_it_is_done(postgres_url: str) -> None:
    """What goes in one message is one transaction, though no BEGIN is sent."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            key, latch = backend._store.lock_key("gate"), backend._store.lock_key("latch")
            slow = Statement(LOCK, (latch,), ahead=(Statement(LOCK, (key,)),), last=True)

            def script() -> Script[None]:
                yield slow

            for _ in range(7):  # also once statements are prepared
                with shell(postgres_url) as holder, shell(postgres_url) as db:
                    holder.execute("SELECT pg_advisory_lock(%s)", (latch,))
                    task = asyncio.ensure_future(backend._pool.run(script))
                    await until(lambda db=db: _waits_for(db, latch), "it is in its statement")
                    assert db.execute("SELECT pg_try_advisory_xact_lock(%s)", (key,)).fetchone()[0] is False
                await task
                with shell(postgres_url) as db:
                    assert db.execute("SELECT pg_try_advisory_xact_lock(%s)", (key,)).fetchone()[0] is True

    run(main())
