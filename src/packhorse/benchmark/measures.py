"""The single measurements. Each answers rates, CPU time per job and what it was measured on."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..backends.base import BATCH_MAX, Backend, Limit, Settlement
from ..backends.opening import open_backend
from ..chance import CHANCE
from ..clock import SYSTEM_CLOCK, precise_boot_ms, process_cpu_ms
from ..job import JobSpec, State
from ..worker.local import LocalWorker
from .tasks import app, latencies_ms, nap, noop, stamp

LEASE_MS = 30_000
FLOOR_BATCH = 500


class Figure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measured line."""

    name: str
    jobs: int = 0
    per_second: float | None = None
    cpu_us_per_job: float | None = None
    server_cpu_us_per_job: float | None = None  # of a server on this machine
    p50_ms: float | None = None
    p99_ms: float | None = None
    value: float | None = None
    unit: str = ""
    note: str = ""


class Stopwatch:
    """Wall and CPU time of this process since it was made."""

    def __init__(self) -> None:
        self._wall_ms = precise_boot_ms()
        self._cpu_ms = process_cpu_ms()

    def figure(self, name: str, jobs: int, note: str = "") -> Figure:
        """Answer the rate and the CPU time per job so far."""
        wall_ms = precise_boot_ms() - self._wall_ms
        cpu_ms = process_cpu_ms() - self._cpu_ms
        return Figure(
            name=name, jobs=jobs, per_second=jobs / wall_ms * 1000, cpu_us_per_job=cpu_ms / jobs * 1000, note=note
        )


def specs(count: int, queue: str = "default") -> list[JobSpec]:
    """Make no-op jobs without going through the app."""
    return [JobSpec(id=job_id, type="noop", queue=queue) for job_id in CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)]


async def fill(backend: Backend, count: int, progress: Callable[[int], None] | None = None) -> None:
    """Store `count` no-op jobs."""
    for start in range(0, count, BATCH_MAX):
        await backend.enqueue(specs(min(BATCH_MAX, count - start)))
        if progress is not None:
            progress(start)


async def floor(backend: Backend, count: int) -> Figure:
    """Measure the bare backend: claim and settle in batches of 500, one ahead of the other, nothing in between."""
    watch = Stopwatch()
    settling: asyncio.Task[Any] | None = None
    done = 0
    while jobs := await backend.claim(["default"], FLOOR_BATCH, LEASE_MS, "bench-floor"):
        ends = [Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs]
        if settling is not None:
            await settling
        settling = asyncio.ensure_future(backend.settle(ends))
        done += len(jobs)
    if settling is not None:
        await settling
    figure = watch.figure("floor: bare claim + settle, batches of 500", done)
    await backend.retire("bench-floor", "the measurement ended")
    assert done == count, f"{done} of {count} jobs claimed"
    return figure


async def enqueue_bulk(count: int) -> Figure:
    """Measure `app.aenqueue_many` with arguments checked, ids made and batches stored."""
    watch = Stopwatch()
    for start in range(0, count, BATCH_MAX):
        await app.aenqueue_many([noop.job() for _ in range(min(BATCH_MAX, count - start))])
    return watch.figure("enqueue in bulk (enqueue_many of 1,000)", count)


async def enqueue_concurrent(count: int, callers: int = 64) -> Figure:
    """Measure single enqueues from many callers at once, which share commits."""
    watch = Stopwatch()

    async def caller(share: int) -> None:
        for _ in range(share):
            await noop.aenqueue()

    await asyncio.gather(*(caller(count // callers) for _ in range(callers)))
    return watch.figure(f"enqueue one by one, {callers} callers at once", count // callers * callers)


def enqueue_single(count: int) -> Figure:
    """Measure blocking enqueues one after the other, from one thread."""
    watch = Stopwatch()
    for _ in range(count):
        noop.enqueue()
    return watch.figure("enqueue one by one, blocking, one caller", count)


async def drain(name: str, count: int, concurrency: int) -> Figure:
    """Measure one engine that empties the queue."""
    watch = Stopwatch()
    await LocalWorker(app, concurrency=concurrency, burst=True).run()
    return watch.figure(name, count, f"concurrency {concurrency}")


#: The name of a drain that limits watch without holding anything back.
LIMITED = "drain, limits not reached"


async def limit_noop(backend: Backend) -> None:
    """Set limits on the no-op jobs that nothing reaches: every claim has to ask them all the same."""
    await backend.limits([Limit(type="noop", rate=1_000_000, burst=1_000_000, concurrency=100_000)])


async def naps(count: int, ms: float, concurrency: int) -> Figure:
    """Measure handlers that wait, as for a network."""
    await app.aenqueue_many([nap.job(ms) for _ in range(count)])
    ideal = concurrency / ms * 1000
    figure = await drain(f"handlers that wait {ms:g} ms", count, concurrency)
    figure.note = f"concurrency {concurrency}, at best {ideal:,.0f}/s"
    return figure


async def latency_here(count: int) -> Figure:
    """Measure from before an enqueue to the start of its handler, worker idle, in one process."""
    latencies_ms.clear()
    async with LocalWorker(app, concurrency=10):
        for _ in range(count):
            job = await stamp.aenqueue(precise_boot_ms())
            await job.aresult(timeout=10)
    return latency_figure(latencies_ms, "same process")


def latency_figure(delays_ms: list[float], note: str) -> Figure:
    """Summarise delays."""
    cut = sorted(delays_ms)
    return Figure(
        name="enqueue to start, worker idle",
        jobs=len(cut),
        p50_ms=statistics.median(cut),
        p99_ms=cut[min(len(cut) - 1, len(cut) * 99 // 100)],
        note=note,
    )


def sync_floor(directory: Path, count: int = 100) -> Figure:
    """Measure what this disk takes to keep 4 KiB: an idle job waits for it twice, in its enqueue and in its claim."""
    delays_ms = []
    fd = os.open(directory / "sync-floor", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(count):
            started_ms = precise_boot_ms()
            os.write(fd, bytes(4096))
            os.fdatasync(fd)
            delays_ms.append(precise_boot_ms() - started_ms)
    finally:
        os.close(fd)
    figure = latency_figure(delays_ms, "an idle job waits for two")
    figure.name = "floor: write and sync 4 KiB"
    return figure


async def claim_cost(backend: Backend, rounds: int) -> float:
    """Answer the CPU time of claiming and settling one job of a batch of 100, µs, the least of `rounds`."""
    best = float("inf")
    for _ in range(rounds):
        started = process_cpu_ms()
        jobs = await backend.claim(["default"], 100, LEASE_MS, "bench-claim")
        used = process_cpu_ms() - started
        if jobs:
            best = min(best, used * 1000 / len(jobs))
        await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs])
    return best


async def backlog(url: str, size: int, progress: Callable[[int], None] | None = None) -> list[Figure]:
    """Measure whether a claim costs more when `size` jobs wait than when hardly any does."""
    backend = open_backend(url)
    await backend.open()
    try:
        await fill(backend, 3_000)
        await claim_cost(backend, 5)
        none = await claim_cost(backend, 20)
        watch = Stopwatch()
        await fill(backend, size, progress)
        filled = watch.figure(f"fill a backlog of {size:,}", size)
        many = await claim_cost(backend, 20)
        started = precise_boot_ms()
        await backend.counts()
        counted_ms = precise_boot_ms() - started
    finally:
        await backend.close()
    ratio = Figure(
        name="claim at the backlog / claim at none", value=many / none, unit="x", note=f"{many:.1f} / {none:.1f} µs"
    )
    return [filled, ratio, Figure(name="count the backlog", value=counted_ms, unit="ms")]


def rss_mb(pid: int | None = None) -> float:
    """Answer the resident memory of a process, MB; of this one at its highest where the system has no /proc."""
    try:
        pages = int(Path(f"/proc/{pid or os.getpid()}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def cpu_ms(pid: int) -> float:
    """Answer the CPU time another process has used, ms."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
