"""The log of changes in the database: commits in any order, transactions open before, what is cut and what is lost."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest
from psycopg import RawCursor

from packhorse.backends.base import CHANGES_KEPT_MS, CHANGES_MAX, Keep, Settlement
from packhorse.backends.following import RENEW_MS
from packhorse.backends.postgres import PostgresBackend, following
from packhorse.backends.postgres.connection import parse_url
from packhorse.backends.postgres.packing import use_packing
from packhorse.backends.postgres.script import Store
from packhorse.clock import ManualClock
from packhorse.errors import Unavailable
from packhorse.job import JobSpec, State
from tests.servers import Private
from tests.witness import Witness, at_most, boot_s

from .helpers import new, opened, run, shell, until

#: Well below the time for which a lock is waited for.
SOON_S = 4


class Follower:
    """Somebody who asks."""

    def __init__(self, backend: PostgresBackend, cursor: str) -> None:
        self.backend = backend
        self.cursor = cursor

    async def told(self) -> list[str] | None:
        """Answer the ids of the jobs that moved; None: a gap."""
        found = await self.backend.changes(self.cursor)
        self.cursor = found.cursor
        return None if found.gap else [change.id for change in found.changes]


async def _follow(backend: PostgresBackend) -> Follower:
    with at_most(SOON_S):
        return Follower(backend, (await backend.changes()).cursor)


async def _add(backend: PostgresBackend, count: int = 1) -> list[str]:
    specs = new(count)
    await backend.enqueue(specs)
    return ids(specs)


def ids(specs: list[JobSpec]) -> list[str]:
    return [spec.id for spec in specs]


def _holding(url: str) -> Any:
    return closing(shell(url, autocommit=False))


# ---- transactions --------------------------------------------------------------------------------------------


def test_what_is_committed_late_is_told_then(postgres_url: str) -> None:
    """Its rows have lower numbers than many that were told before."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            follower = await _follow(backend)
            with _holding(postgres_url) as first, _holding(postgres_url) as second:
                early, late = new(2), new(3)
                await backend.bind(first).enqueue(early)
                await backend.bind(second).enqueue(late)
                for _ in range(3):
                    added = await _add(backend, 2)
                    assert await follower.told() == added
                second.commit()
                assert await follower.told() == ids(late)
                others = await _add(backend)
                first.commit()
                assert sorted(await follower.told() or ()) == sorted([*ids(early), *others])
                assert await follower.told() == []

    run(main())


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_moved_jobs_before_anybody_asked_is_a_gap_at_its_commit(postgres_url: str, end: str) -> None:
    """It could not know, so nothing of it was written down. Until then, and after a rollback, nothing is missing."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            with _holding(postgres_url) as user:
                await backend.bind(user).enqueue(new(2))
                follower, other = await _follow(backend), await _follow(backend)
                added = await _add(backend)
                assert await follower.told() == added
                getattr(user, end)()
                assert await follower.told() == (None if end == "commit" else [])
                assert await other.told() == (None if end == "commit" else added)
                assert await follower.told() == await other.told() == []
                assert (await _follow(backend)).cursor

    run(main())


def test_open_transactions_that_moved_no_jobs_are_no_gap(postgres_url: str, witness: Witness) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            with _holding(postgres_url) as user, _holding(postgres_url) as reader:
                user.execute("CREATE TEMPORARY TABLE theirs AS SELECT pg_current_xact_id()")
                reader.execute("SELECT count(*) FROM jobs")
                began = boot_s()
                follower = await _follow(backend)
                assert witness.since_s(began) < 0.9  # nobody waits for them either
                user.commit()
                reader.commit()
                assert await follower.told() == []

    run(main())


def test_a_transaction_that_looks_into_the_past_is_told(postgres_url: str) -> None:
    """REPEATABLE READ: it cannot see that somebody asks since, so it writes everything down."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            with _holding(postgres_url) as user:
                user.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                user.execute("SELECT count(*) FROM jobs")
                follower = await _follow(backend)
                specs = new(2)
                await backend.bind(user).enqueue(specs)
                user.commit()
                assert await follower.told() == ids(specs)

    run(main())


def test_what_a_savepoint_undid_is_not_told(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            follower = await _follow(backend)
            with _holding(postgres_url) as user:
                bound = backend.bind(user)
                kept = new(1)
                await bound.enqueue(kept)
                user.execute("SAVEPOINT mine")
                await bound.enqueue(new(1))
                user.execute("ROLLBACK TO SAVEPOINT mine")
                user.commit()
                assert await follower.told() == ids(kept)

    run(main())


def test_all_is_told_from_the_first_answer_on_while_others_move_jobs(postgres_url: str) -> None:
    """Many begin to ask at the same moment, in the midst of transactions of all kinds."""

    async def main() -> None:
        async with opened(postgres_url) as backend, opened(postgres_url) as two, opened(postgres_url) as three:
            is_over = False

            async def busy(number: int) -> None:
                while not is_over:
                    job, other = new(1, queue=f"q{number}"), new(1, key="k", queue=f"q{number}")
                    await backend.enqueue(job)
                    await backend.enqueue(other)
                    claimed = await backend.claim([f"q{number}"], 5, 30_000, f"w{number}")
                    states = [State.SUCCEEDED, State.FAILED]
                    await backend.settle(
                        [Settlement(id=one.id, token=one.token, state=states[n % 2]) for n, one in enumerate(claimed)]
                    )

            async def ask(one: PostgresBackend) -> None:
                follower = await _follow(one)
                added = await _add(one, 3)
                told = await follower.told()
                assert told is not None
                assert set(added) <= set(told)

            workers = [asyncio.create_task(busy(number)) for number in range(3)]
            try:
                with closing(shell(postgres_url)) as db:
                    for _ in range(15):
                        await asyncio.gather(*map(ask, (backend, two, three, two)))
                        db.execute("DELETE FROM listening")
            finally:
                is_over = True
                await asyncio.gather(*workers)

    run(main())


# ---- what is kept --------------------------------------------------------------------------------------------


def test_nothing_is_written_down_while_nobody_asks(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await _add(backend, 100)
            with closing(shell(postgres_url)) as db:
                assert db.execute("SELECT count(*) FROM changes").fetchone() == (0,)

    run(main())


def test_a_batch_is_one_row(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.changes()
            await _add(backend, 500)
            jobs = await backend.claim(["default"], 500, 30_000, "w")
            await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
            with closing(shell(postgres_url)) as db:
                assert db.execute("SELECT array_agg(count ORDER BY no) FROM changes").fetchone() == ([500] * 3,)

    run(main())


def test_who_asks_writes_at_most_now_and_then(postgres_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend:
            follower = await _follow(backend)
            with closing(shell(postgres_url)) as db:
                first = db.execute("SELECT xmin::text FROM listening").fetchone()
                for _ in range(99):
                    clock.advance(RENEW_MS // 100)
                    await follower.told()
                assert db.execute("SELECT xmin::text FROM listening").fetchone() == first
                clock.advance(RENEW_MS // 50)
                await follower.told()
                assert db.execute("SELECT xmin::text FROM listening").fetchone() != first

    run(main())


def test_the_log_is_cut_by_count_and_by_age_and_who_is_behind_sees_a_gap(postgres_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend:
            late, steady = await _follow(backend), await _follow(backend)
            for _ in range(4):
                for _ in range(CHANGES_MAX // 1_000):
                    await _add(backend, 1_000)
                clock.advance(RENEW_MS + 1)
                assert await steady.told() is not None
            with closing(shell(postgres_url)) as db:
                [(kept,)] = db.execute("SELECT sum(count) FROM changes").fetchall()
                assert kept <= 3 * CHANGES_MAX
                assert await late.told() is None
                behind = await _follow(backend)
                last = await _add(backend)
                for _ in range(6):  # age alone
                    clock.advance(CHANGES_KEPT_MS // 2)
                    assert await steady.told() is not None
                assert db.execute("SELECT count(*) FROM changes").fetchone() == (0,)
            assert await behind.told() in (None, last)
            added = await _add(backend)
            assert await steady.told() == await behind.told() == added

    run(main())


def test_a_log_that_nobody_reads_goes_with_a_tick(postgres_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend:
            follower = await _follow(backend)
            await _add(backend, 10)
            clock.advance(CHANGES_KEPT_MS)
            await backend.tick(100, Keep())
            assert len(await follower.told() or ()) == 10
            clock.advance(CHANGES_KEPT_MS + 4 * RENEW_MS)
            await backend.tick(100, Keep())
            with closing(shell(postgres_url)) as db:
                assert db.execute("SELECT count(*) FROM changes").fetchone() == (0,)
                assert db.execute("SELECT is_over FROM listening").fetchone() == (True,)
            assert await follower.told() is None
            added = await _add(backend)
            assert await follower.told() == added

    run(main())


def test_a_clock_that_is_set_forward_and_back_hides_no_change(postgres_url: str) -> None:
    """Whether a tick came meanwhile or not: what was not written down is a gap."""

    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend:
            for jump_ms, ticks in ((CHANGES_KEPT_MS + 2 * RENEW_MS, False), (100 * CHANGES_KEPT_MS, True)):
                follower = await _follow(backend)
                clock.jump(jump_ms)
                if ticks:
                    await backend.tick(100, Keep())
                added = await _add(backend)
                clock.jump(-jump_ms)
                assert await follower.told() == (None if ticks else added)

    run(main())


def test_what_one_log_leaves_behind_is_cut_by_the_next(postgres_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend:
            for _ in range(4):
                await _follow(backend)
                await _add(backend, 10)
                clock.advance(CHANGES_KEPT_MS + RENEW_MS + 1)  # no tick comes
            follower = await _follow(backend)
            for _ in range(3):
                clock.advance(CHANGES_KEPT_MS - 1)
                assert await follower.told() == []
            with closing(shell(postgres_url)) as db:
                assert db.execute("SELECT count(*) FROM changes").fetchone() == (0,)

    run(main())


def test_a_look_reads_only_what_is_new(postgres_url: str) -> None:
    """While an old transaction that has written something is open, and nothing that was cut since can be cleaned."""

    async def main() -> None:
        clock = ManualClock()
        async with opened(postgres_url, clock) as backend, opened(postgres_url, clock) as other:
            follower = await _follow(backend)
            with _holding(postgres_url) as old:
                old.execute("CREATE TEMPORARY TABLE theirs AS SELECT pg_current_xact_id()")
                for _ in range(10):
                    await asyncio.gather(*(_add(one, 100) for one in (backend, other) * 20))
                    clock.advance(RENEW_MS + 1)
                    assert await follower.told() is not None
                place = following.read_place(follower.cursor)
                assert place is not None
                names = Store(parse_url(postgres_url).schema, 0, lambda _: None)
                with closing(shell(postgres_url, cursor_factory=RawCursor)) as db:
                    use_packing(db.adapters)
                    values = (clock.now_ms(), place.log, place.snapshot)
                    sql = f"EXPLAIN (ANALYZE, BUFFERS) {names.sql(following.LOOK)}".encode()
                    plan = "\n".join(row[0] for row in db.execute(sql, values).fetchall())
                    buffers = next(line for line in plan.splitlines() if "Buffers" in line)
                    pages = [
                        int(part.partition("=")[2]) for part in buffers.split() if part.startswith(("hit", "read"))
                    ]
                    assert sum(pages) < 60, plan
                    assert "Seq Scan on changes" not in plan

    run(main())


def test_a_crash_of_the_server_is_a_gap(private: Private) -> None:
    """B17: what is unlogged is empty then, and with it the row that says all is written down."""

    async def main() -> None:
        server = private.postgres()
        async with opened(server.url) as backend:
            follower = await _follow(backend)
            before = await _add(backend)
            await asyncio.to_thread(server.restart, hard=True)

            async def works() -> bool:
                try:
                    await backend.counts()
                except Unavailable:
                    return False
                return True

            await until(works, "it works again")
            assert await follower.told() is None
            (job,) = await backend.claim(["default"], 9, 30_000, "w")
            assert [job.id] == before == await follower.told()

    run(main())


def test_changes_are_told_behind_a_pooler_in_transaction_mode(private: Private) -> None:
    async def main() -> None:
        url = private.pgbouncer(private.postgres(fsync="off"), default_pool_size=2).url
        async with opened(url) as one, opened(url) as two:
            follower = await _follow(one)
            added = await _add(two, 5)
            jobs = await one.claim(["default"], 5, 30_000, "w")
            assert sorted(await follower.told() or ()) == sorted(added * 2)
            await two.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
            follower.backend = two
            assert sorted(await follower.told() or ()) == sorted(added)

    run(main())


# ---- cursors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        *("0:0:", "1:2:", "9:8:", "9:9:9", "8:12:9,9", "8:12:11,9", "8:12:7", "8:12:12", "8:12:9,", "8:12:,", "8:12"),
        *("8:12:9:", f"8:{'9' * 19}:", f"8:12:{'0' * 40}9", f"8:{'9' * 18}:{','.join(map(str, range(9, 9_000)))}"),
    ],
)
def test_a_snapshot_that_is_none_is_a_gap(postgres_url: str, place: str) -> None:
    """C6: the server is shown nothing that it would raise an error for."""

    async def main() -> None:
        async with opened(postgres_url) as backend:
            follower = await _follow(backend)
            log, generation, _ = follower.cursor.split(".", 2)
            await _add(backend)
            follower.cursor = f"{log}.{generation}.{place}"
            assert await follower.told() is None
            assert await follower.told() == []

    run(main())


def test_any_snapshot_of_the_right_shape_is_answered(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            follower = await _follow(backend)
            log, generation, _ = follower.cursor.split(".", 2)
            added = await _add(backend)
            for place in ("3:3:", f"3:{'9' * 18}:4,5,77"):
                follower.cursor = f"{log}.{generation}.{place}"
                assert await follower.told() in (added, [])

    run(main())
