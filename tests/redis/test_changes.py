"""The log of changes on the server: what it costs, what stays of it, and what its loss means."""

from __future__ import annotations

import asyncio
from contextlib import closing

from packhorse.backends.base import CHANGES_KEPT_MS, CHANGES_MAX, Keep, Settlement
from packhorse.backends.following import RENEW_MS
from packhorse.backends.redis import RedisBackend
from packhorse.clock import ManualClock
from packhorse.job import State

from .kit import add, claim, key, keys, opened, run, shell

LOG = {"listening", "changes"}


async def _settle(backend: RedisBackend, count: int) -> None:
    jobs = await claim(backend, count)
    assert len(jobs) == count
    await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])


def test_nothing_is_written_down_while_nobody_asks(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            await add(backend, 10)
            await _settle(backend, 10)
            with closing(shell(redis_url)) as client:
                assert not keys(client, backend) & LOG

    run(main)


def test_each_call_is_one_entry_whatever_it_moved(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            cursor = (await backend.changes()).cursor
            await add(backend, 500)
            await _settle(backend, 500)
            with closing(shell(redis_url)) as client:
                assert client.xlen(key(backend, "changes")) == 3
            found = await backend.changes(cursor)
            assert (len(found.changes), found.gap) == (1_500, False)

    run(main)


def test_the_log_is_bounded(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            await backend.changes()
            for _ in range(3 * CHANGES_MAX // 100):
                await add(backend, 100)
            with closing(shell(redis_url)) as client:
                # The server cuts whole nodes of its tree: of 100 entries, or 4 KB, at the most.
                assert CHANGES_MAX // 100 <= client.xlen(key(backend, "changes")) <= CHANGES_MAX // 100 + 100

    run(main)


def test_a_log_that_nobody_reads_goes_with_the_next_tick_or_move(redis_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            for way in ("tick", "move"):
                cursor = (await backend.changes()).cursor
                await add(backend, 3)
                with closing(shell(redis_url)) as client:
                    assert keys(client, backend) >= LOG
                    clock.advance(CHANGES_KEPT_MS + RENEW_MS + 1)
                    if way == "tick":
                        await backend.tick(100, Keep())
                    else:
                        await add(backend, 1)
                    assert not keys(client, backend) & LOG, way
                assert (await backend.changes(cursor)).gap

    run(main)


def test_a_store_that_nobody_uses_any_more_keeps_no_log(redis_url: str) -> None:
    """Not even a tick comes: the server itself removes it."""

    async def main() -> None:
        async with opened(redis_url) as backend:
            with closing(shell(redis_url)) as client:
                for _ in range(2):  # the second time there are entries
                    await backend.changes()
                    await add(backend, 1)
                    for name in LOG:
                        assert CHANGES_KEPT_MS < client.pttl(key(backend, name)) <= 4 * CHANGES_KEPT_MS

    run(main)


def test_who_asks_writes_at_most_now_and_then(redis_url: str) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            cursor = (await backend.changes()).cursor
            with closing(shell(redis_url)) as client:
                first = client.hgetall(key(backend, "listening"))
                for _ in range(99):
                    clock.advance(RENEW_MS // 100)
                    cursor = (await backend.changes(cursor)).cursor
                assert client.hgetall(key(backend, "listening")) == first
                clock.advance(RENEW_MS // 50)
                await backend.changes(cursor)
                assert client.hgetall(key(backend, "listening")) != first

    run(main)


def test_entries_that_are_missing_are_a_gap(redis_url: str) -> None:
    """Whoever removed them: an operator, or a failover that lost the last writes."""

    async def main() -> None:
        async with opened(redis_url) as backend:
            cursor = (await backend.changes()).cursor
            for _ in range(3):
                await add(backend, 2)
            with closing(shell(redis_url)) as client:
                client.xdel(key(backend, "changes"), "4-0")
                found = await backend.changes(cursor)
                assert (found.changes, found.gap) == ([], True)
                client.delete(key(backend, "changes"))
            await add(backend, 1)
            assert (await backend.changes(cursor)).gap
            found = await backend.changes(found.cursor)
            assert (len(found.changes), found.gap) == (1, False)

    run(main)


def test_calls_that_share_a_script_are_told_each(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            cursor = (await backend.changes()).cursor
            added = await asyncio.gather(*(add(backend, 1) for _ in range(50)))
            found = await backend.changes(cursor)
            assert sorted(change.id for change in found.changes) == sorted(job_id for (job_id,) in added)

    run(main)
