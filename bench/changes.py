"""What following changes costs those who move jobs: CPU a job with nobody asking, and with one who asks each 100 ms.

    python bench/changes.py redis://127.0.0.1/0?prefix=changes --jobs 20000 --rounds 5

Bare batches of 500, then one job a call. CPU of this process, and of the server where that can be told from here; who
asks is another process.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from packhorse.backends.base import Backend, Keep, Settlement
from packhorse.backends.opening import open_backend
from packhorse.benchmark import measures
from packhorse.benchmark.meter import Meter, postgres_meter, redis_meter
from packhorse.benchmark.places import kind_of
from packhorse.clock import process_cpu_ms
from packhorse.job import State

ALL = Keep(succeeded_ms=0, failed_ms=0, cancelled_ms=0)
EVERY_S = 0.1


async def follow(url: str) -> None:
    """Ask for changes until killed, and say when it begins."""
    backend = open_backend(url)
    await backend.open()
    cursor = (await backend.changes()).cursor
    print("following", flush=True)
    while True:
        cursor = (await backend.changes(cursor)).cursor
        await asyncio.sleep(EVERY_S)


async def in_batches(backend: Backend, jobs: int) -> None:
    await measures.fill(backend, jobs)
    await measures.floor(backend, jobs)


async def one_by_one(backend: Backend, jobs: int) -> None:
    for spec in measures.specs(jobs):
        await backend.enqueue([spec])
        (job,) = await backend.claim(["default"], 1, 30_000, "w")
        await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])


async def measure(backend: Backend, jobs: int, meter: Meter | None) -> list[float]:
    """Answer CPU us a job: of the client in batches and one by one, then of the server."""
    figures = []
    for way, count in ((in_batches, jobs), (one_by_one, jobs // 20)):
        before_ms, served = process_cpu_ms(), meter.read() if meter is not None else None
        await way(backend, count)
        client_ms = process_cpu_ms() - before_ms
        server_ms = meter.read().since(served).cpu_ms if meter is not None and served is not None else None
        figures += [client_ms / count * 1000, (server_ms or 0) / count * 1000]
        while (await backend.tick(1_000, ALL)).dropped:
            pass
    return figures


async def run(url: str, jobs: int, rounds: int) -> None:
    meter = {"redis": redis_meter, "postgres": postgres_meter}.get(kind_of(url), lambda _: None)(url)
    backend = open_backend(url)
    await backend.migrate()
    await backend.open()
    found: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        found.setdefault("nobody asks", []).append(await measure(backend, jobs, meter))
    if getattr(backend.capabilities, "changes", False):
        command = (sys.executable, __file__, url, "--follow")
        follower = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert follower.stdout is not None
        await follower.stdout.readline()
        for _ in range(rounds):
            found.setdefault("one asks", []).append(await measure(backend, jobs, meter))
        if follower.returncode is None:
            follower.kill()
        await follower.wait()
    for name, figures in found.items():
        batch, batch_server, one, one_server = (statistics.median(column) for column in zip(*figures, strict=True))
        print(
            f"{name:12} batches of 500: {batch:6.1f} us here, {batch_server:6.1f} us at the server; "
            f"one by one: {one:7.1f} us here, {one_server:7.1f} us at the server",
            flush=True,
        )
    await backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asyncio.run(follow(asked.url) if asked.follow else run(asked.url, asked.jobs, asked.rounds))


if __name__ == "__main__":
    main()
