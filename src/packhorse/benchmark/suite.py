"""The whole measurement of one URL, in order: floor first, then the product, each in the same run."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..backends.opening import open_backend, redact
from ..clock import SYSTEM_CLOCK, pause, precise_boot_ms
from ..errors import ConfigurationError
from ..event_loop import new_event_loop
from ..job import LIVE
from ..wording import quantity
from . import measures
from .measures import Figure
from .meter import Meter, idle_round_trip, read, served
from .places import Places
from .tasks import app, stamp, touch

Tell = Callable[[str], None]


class Report(msgspec.Struct, kw_only=True):
    """What was measured, on what."""

    url: str
    machine: str
    jobs: int
    figures: list[Figure]


def machine() -> str:
    """Name what a figure depends on."""
    return f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"


def run(target: str, jobs: int, backlog: int, directory: Path, tell: Tell) -> Report:
    """Measure `memory`, `sqlite` or the URL of a server, each measurement on a store of its own that is removed after.

    A URL of another kind is taken as it is: its store must be empty.
    """
    with Places(target, directory) as places:
        if places.kind == "other":
            _on_loop(_must_be_empty(target))
        figures = _measure(places, jobs, backlog, directory, tell)
    named = places.kind if places.kind != "other" else redact(target)
    return Report(url=named, machine=machine(), jobs=jobs, figures=figures)


async def _must_be_empty(url: str) -> None:
    """Refuse a store with jobs that live: they would be taken for those of the measurement."""
    backend = open_backend(url)
    await backend.open()
    try:
        counts = await backend.counts()
    finally:
        await backend.close()
    live = sum(count for queue in counts.values() for state, count in queue.states.items() if state in LIVE)
    if live:
        raise ConfigurationError(
            f"{redact(url)} has {quantity(live, 'live job')}, and measuring would take all of it; "
            "give the URL of an empty store"
        )


def _measure(places: Places, jobs: int, backlog: int, directory: Path, tell: Tell) -> list[Figure]:
    fresh, memory = places.fresh, places.kind == "memory"
    meter = places.meter()
    figures: list[Figure] = []

    def keep(*found: Figure) -> None:
        figures.extend(found)
        for figure in found:
            tell(line(figure))

    tell("floor")
    keep(_on_loop(_floor(fresh("floor"), jobs, meter)))
    if places.kind == "sqlite":
        keep(measures.sync_floor(directory))
    if meter is not None:
        keep(idle_round_trip(meter))
    tell("enqueue")
    keep(*_enqueue(fresh, jobs, meter))
    tell("drain")
    if memory:
        keep(*_on_loop(_drain_here(fresh("drain"), jobs)))
        keep(_on_loop(_drain_limited_here(fresh("limited"), jobs)))
        keep(_on_loop(_latency_here(fresh("latency"))))
    else:
        keep(_drain_there(fresh("drain"), jobs, meter))
        keep(_drain_there(fresh("limited"), jobs, meter, limited=True), _naps_there(fresh("naps"), jobs))
        keep(_latency_there(fresh("latency")))
        tell("a worker with keeper and runner: start, memory, idle")
        keep(*_real_worker(fresh("worker"), directory))
    if backlog:
        tell(f"backlog of {backlog:,}")
        keep(*_on_loop(measures.backlog(fresh("backlog"), backlog)))
    if meter is not None:
        meter.close()
    return figures


#: What this version set out to reach on two cores, no-op async handlers (jobs/s at least, ms and % at most).
TARGETS: dict[tuple[str, str], float] = {
    ("memory", "drain, no-op async handlers"): 100_000,
    ("sqlite", "drain, no-op async handlers"): 25_000,
    ("memory", "enqueue to start, worker idle"): 0.2,
    ("sqlite", "enqueue to start, worker idle"): 3.0,
    ("sqlite", "enqueue in bulk (enqueue_many of 1,000)"): 50_000,
    ("memory", "claim at the backlog / claim at none"): 2.0,
    ("sqlite", "claim at the backlog / claim at none"): 2.0,
    ("redis", "drain, no-op async handlers"): 40_000,
    ("postgres", "drain, no-op async handlers"): 25_000,
    ("redis", "enqueue to start, worker idle"): 1.0,
    ("postgres", "enqueue to start, worker idle"): 2.0,
    ("redis", "enqueue in bulk (enqueue_many of 1,000)"): 50_000,
    ("postgres", "enqueue in bulk (enqueue_many of 1,000)"): 40_000,
    ("redis", "claim at the backlog / claim at none"): 2.0,
    ("postgres", "claim at the backlog / claim at none"): 2.0,
    ("sqlite", "start to first job, beyond the interpreters"): 100.0,
    ("sqlite", "memory of a runner process"): 50.0,
    ("sqlite", "memory of the keeper process"): 50.0,
    ("sqlite", "idle cost of the runner"): 1.0,
    ("sqlite", "idle cost of the keeper"): 1.0,
}


def table(reports: list[Report]) -> list[tuple[str, str, str, str, str, str]]:
    """Lay the figures out in rows: backend, what, measured, CPU per job, target, note."""
    rows = []
    for report in reports:
        for figure in report.figures:
            target = TARGETS.get((report.url, figure.name))
            if figure.per_second is not None:
                measured, wanted = f"{figure.per_second:,.0f}/s", f"≥ {target:,.0f}/s" if target else ""
            elif figure.p50_ms is not None:
                measured, wanted = f"p50 {figure.p50_ms:.2f} ms", f"≤ {target:g} ms" if target else ""
            else:
                measured = f"{figure.value:,.2f} {figure.unit}"
                wanted = f"≤ {target:g} {figure.unit}" if target else ""
            cpu = f"{figure.cpu_us_per_job:.1f} µs" if figure.cpu_us_per_job is not None else ""
            if figure.server_cpu_us_per_job is not None:
                cpu += f" + {figure.server_cpu_us_per_job:.1f}"
            rows.append((report.url, figure.name, measured, cpu, wanted, figure.note))
    return rows


def line(figure: Figure) -> str:
    """Write a figure as one plain line."""
    parts = [f"{figure.name:<46}"]
    if figure.per_second is not None:
        parts.append(f"{figure.per_second:>10,.0f}/s")
    if figure.cpu_us_per_job is not None:
        parts.append(f"{figure.cpu_us_per_job:>8.1f} µs CPU/job")
    if figure.server_cpu_us_per_job is not None:
        parts.append(f"+ {figure.server_cpu_us_per_job:.1f} µs in the server")
    if figure.p50_ms is not None:
        parts.append(f"p50 {figure.p50_ms:.2f} ms  p99 {figure.p99_ms:.2f} ms")
    if figure.value is not None:
        parts.append(f"{figure.value:>10.2f} {figure.unit}")
    if figure.note:
        parts.append(f"({figure.note})")
    return " ".join(parts)


def _on_loop(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(coroutine)


def _use(url: str) -> None:
    app.settings = msgspec.structs.replace(app.settings, url=url)


async def _floor(url: str, jobs: int, meter: Meter | None) -> Figure:
    backend = open_backend(url)
    await backend.open()
    try:
        await measures.fill(backend, jobs)
        before = read(meter)
        return served(await measures.floor(backend, jobs), meter, before)
    finally:
        await backend.close()


def _enqueue(fresh: Callable[[str], str], jobs: int, meter: Meter | None) -> list[Figure]:
    async def bulk() -> Figure:
        try:
            await app.backend()
            before = read(meter)
            return served(await measures.enqueue_bulk(jobs), meter, before)
        finally:
            await app.aclose()

    async def concurrent() -> Figure:
        try:
            return await measures.enqueue_concurrent(max(64, jobs // 10))
        finally:
            await app.aclose()

    _use(fresh("bulk"))
    figures = [_on_loop(bulk())]
    _use(fresh("concurrent"))
    figures.append(_on_loop(concurrent()))
    _use(fresh("single"))
    figures.append(measures.enqueue_single(max(100, jobs // 50)))
    app.close()
    return figures


async def _drain_here(url: str, jobs: int) -> list[Figure]:
    _use(url)
    try:
        await measures.enqueue_bulk(jobs)
        figures = [await measures.drain("drain, no-op async handlers", jobs, 100)]
        figures.append(await measures.naps(max(1_000, jobs // 10), 10.0, 100))
        return figures
    finally:
        await app.aclose()


async def _drain_limited_here(url: str, jobs: int) -> Figure:
    _use(url)
    try:
        await measures.limit_noop(await app.backend())
        await measures.enqueue_bulk(jobs)
        return await measures.drain(measures.LIMITED, jobs, 100)
    finally:
        await app.aclose()


async def _latency_here(url: str) -> Figure:
    _use(url)
    try:
        return await measures.latency_here(200)
    finally:
        await app.aclose()


def _child(url: str, what: str, count: int, concurrency: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "packhorse.benchmark.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps([url, what, count, concurrency]) + "\n")
    child.stdin.flush()
    return child


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = child.communicate(timeout=600)
    if child.returncode:
        raise ConfigurationError(f"the measuring process ended with exit code {child.returncode}")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def _drain_there(url: str, jobs: int, meter: Meter | None, *, limited: bool = False) -> Figure:
    _use(url)

    async def enqueue() -> None:
        try:
            if limited:
                await measures.limit_noop(await app.backend())
            await measures.enqueue_bulk(jobs)
        finally:
            await app.aclose()

    _on_loop(enqueue())
    before = read(meter)
    figure = msgspec.convert(_answer(_child(url, "drain", jobs, 100))["figure"], Figure)
    figure.note += ", enqueued from another process"
    served(figure, meter, before)
    if limited:
        figure.name = measures.LIMITED
    return figure


def _naps_there(url: str, jobs: int) -> Figure:
    return msgspec.convert(_answer(_child(url, "naps", max(1_000, jobs // 10), 100))["figure"], Figure)


def _latency_there(url: str, count: int = 150) -> Figure:
    _use(url)
    child = _child(url, "latency", count, 10)
    assert child.stdout is not None
    child.stdout.readline()  # it is ready
    for _ in range(count):
        stamp.enqueue(precise_boot_ms())
        pause(0.02)
    app.close()
    return measures.latency_figure(_answer(child)["latencies_ms"], "enqueued from another process")


def _real_worker(url: str, directory: Path) -> list[Figure]:
    """Start the real thing: how soon it runs its first job, how much memory it holds, what it costs when idle."""
    _use(url)
    mark = directory / "started"
    touch.enqueue(str(mark))
    bare_ms = min(_bare_start_ms() for _ in range(3))
    environ = {**os.environ, "PACKHORSE_URL": url, "PACKHORSE_LOG_LEVEL": "error"}
    # As installed, with bytecode: a checkout may never have been compiled, or be forbidden to write it.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    modules = ("worker.runner_process", "worker.keeper", "cli.main", "cli.worker", "backends.sqlite")
    imports = ", ".join(f"packhorse.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"import {imports}"], env=environ, check=True)
    started_ms = precise_boot_ms()
    worker = subprocess.Popen(
        [sys.executable, "-m", "packhorse", "worker", "packhorse.benchmark.tasks:app"], env=environ
    )
    try:
        first_ms = _wait_for(mark) - started_ms
        runner = next(info for info in _workers(url) if info.pid)
        memory = [
            Figure(name="memory of a runner process", value=measures.rss_mb(runner.pid), unit="MB"),
            Figure(name="memory of the keeper process", value=measures.rss_mb(worker.pid), unit="MB"),
        ]
        pause(1.0)
        idle = [(pid, measures.cpu_ms(pid)) for pid in (worker.pid, runner.pid)]
        pause(5.0)
        keeper_cost, runner_cost = (100 * (measures.cpu_ms(pid) - before) / 5_000 for pid, before in idle)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
        app.close()
    note = f"{first_ms:.0f} ms from the command, of which two bare interpreters {2 * bare_ms:.0f}"
    return [
        Figure(name="start to first job, beyond the interpreters", value=first_ms - 2 * bare_ms, unit="ms", note=note),
        *memory,
        Figure(name="idle cost of the runner", value=runner_cost, unit="% of a core"),
        Figure(name="idle cost of the keeper", value=keeper_cost, unit="% of a core"),
    ]


def _bare_start_ms() -> float:
    started_ms = precise_boot_ms()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return precise_boot_ms() - started_ms


def _wait_for(mark: Path) -> float:
    end_ms = SYSTEM_CLOCK.boot_ms() + 30_000
    while SYSTEM_CLOCK.boot_ms() < end_ms:
        if mark.exists() and mark.read_text(encoding="ascii"):
            return float(mark.read_text(encoding="ascii"))
        pause(0.005)
    raise ConfigurationError("the worker did not start its first job within 30 s")


def _workers(url: str) -> list[Any]:
    async def look() -> list[Any]:
        backend = open_backend(url)
        await backend.open()
        try:
            for _ in range(100):
                found = await backend.workers()
                if found and found[0].pid:
                    return found
                await asyncio.sleep(0.1)
            return []
        finally:
            await backend.close()

    return asyncio.run(look())


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Make a place for the stores of one run."""
    return tempfile.TemporaryDirectory(prefix="packhorse-bench-")
