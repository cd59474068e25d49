"""Claims on PostgreSQL while somebody keeps a transaction open, so that no dead row can be cleaned up.

    python bench/held_transaction.py postgresql://postgres@127.0.0.1/test --minutes 10

A worker runs 200 jobs a second. After the first tenth of the time a transaction with a snapshot is opened and held to
the end. Prints how long claims took, minute by minute or tenth by tenth, and the ratio of the last p99 to the first.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from packhorse.benchmark.places import Places
from packhorse.benchmark.tasks import app, noop
from packhorse.clock import SYSTEM_CLOCK, precise_boot_ms
from packhorse.worker.local import LocalWorker

PARTS = 10


def percentile(delays_ms: list[float], share: float) -> float:
    ordered = sorted(delays_ms)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


async def produce(rate: float, until_ms: int) -> None:
    """Enqueue `rate` jobs a second, in pieces of a twentieth of a second."""
    step_s = 0.05
    started, sent = SYSTEM_CLOCK.boot_ms(), 0
    while SYSTEM_CLOCK.boot_ms() < until_ms:
        wanted = int((SYSTEM_CLOCK.boot_ms() - started) * rate / 1000) - sent
        if wanted > 0:
            await app.aenqueue_many([noop.job() for _ in range(wanted)])
            sent += wanted
        await asyncio.sleep(step_s)


async def measure(url: str, plain_url: str, minutes: float, rate: float) -> float:
    app.settings = msgspec.structs.replace(app.settings, url=url)
    backend: Any = await app.backend()
    delays: list[list[float]] = [[] for _ in range(PARTS)]
    started_ms = SYSTEM_CLOCK.boot_ms()
    length_ms = int(minutes * 60_000)
    claim = backend.claim

    async def timed(*args: Any, **kwargs: Any) -> Any:
        before = precise_boot_ms()
        jobs = await claim(*args, **kwargs)
        part = min(PARTS - 1, (SYSTEM_CLOCK.boot_ms() - started_ms) * PARTS // length_ms)
        delays[part].append(precise_boot_ms() - before)
        return jobs

    backend.claim = timed
    producing = asyncio.create_task(produce(rate, started_ms + length_ms))
    print(f"{'part':>5} {'claims':>8} {'p50 ms':>8} {'p99 ms':>8}  dead rows")
    async with LocalWorker(app, concurrency=100):
        with psycopg.connect(plain_url) as held:
            for part in range(PARTS):
                if part == 1:
                    held.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    held.execute("SELECT txid_current()")
                await asyncio.sleep(
                    max(0, started_ms + length_ms * (part + 1) // PARTS - SYSTEM_CLOCK.boot_ms()) / 1000
                )
                mine = delays[part]
                print(
                    f"{part + 1:>5} {len(mine):>8} {percentile(mine, 0.5):>8.2f} {percentile(mine, 0.99):>8.2f}  "
                    f"{dead_rows(plain_url):,}",
                    flush=True,
                )
    await producing
    with suppress(AttributeError):
        del backend.claim
    await app.aclose()
    ratio = percentile(delays[-1], 0.99) / percentile(delays[0], 0.99)
    print(f"p99 of the last part / of the first: {ratio:.2f}")
    return ratio


def dead_rows(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables").fetchone()
        assert row is not None
        return int(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=200)
    asked = parser.parse_args()
    with Places(asked.url, Path()) as places:
        asyncio.run(measure(places.fresh("held"), asked.url, asked.minutes, asked.rate))


if __name__ == "__main__":
    main()
