"""What it costs to watch: drains with metrics on (as always) and off, in turn.

Usage: python bench/observing.py [ROUNDS] [JOBS]

Off is what no user can choose: the store without its measuring wrapper, runs that nobody counts. The two take turns on
the same machine within the same minute; CPU time a job is what to read, rates swing with whatever else goes on.
"""

import asyncio
import statistics
import sys
import tempfile
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import msgspec

from packhorse.backends import measured
from packhorse.backends.base import Backend
from packhorse.benchmark import measures
from packhorse.benchmark.tasks import app
from packhorse.clock import SYSTEM_CLOCK, process_cpu_ms
from packhorse.event_loop import new_event_loop
from packhorse.observe.runs import Runs
from packhorse.worker import runner, settler
from packhorse.worker.local import LocalWorker


def unmeasured(inner: Backend, sheet: object, clock: object) -> Backend:
    """Answer the store itself."""
    inner.sheet = sheet  # the app folds it at the end
    return inner


@contextmanager
def nothing_counted():
    """Take all that counts and marks a run off the way of a job."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(measured, "MeasuredBackend", unmeasured))
        cells = SimpleNamespace(ends=None, successes_ns=deque(maxlen=0))
        stack.enter_context(patch.object(Runs, "cells", lambda *_, **__: cells))
        stack.enter_context(patch.object(settler, "count_ends", lambda *_: None))
        stack.enter_context(patch.object(runner, "CURRENT_JOB", SimpleNamespace(set=lambda _: None)))
        yield


async def drain(jobs: int) -> tuple[float, float]:
    """Drain jobs that do nothing; answers CPU us a job and jobs/s."""
    await measures.enqueue_bulk(jobs)
    cpu_ms, began_ms = process_cpu_ms(), SYSTEM_CLOCK.boot_ms()
    await LocalWorker(app, burst=True).run()
    answer = (process_cpu_ms() - cpu_ms) / jobs * 1_000, jobs / (SYSTEM_CLOCK.boot_ms() - began_ms) * 1_000
    await app.aclose()
    return answer


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    print(f"{rounds} rounds of {jobs:,} jobs in turn: CPU us a job (median, least), jobs/s (median)")
    for scheme in ("memory", "sqlite"):
        figures: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
        with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=new_event_loop) as runner_:
            for number in range(rounds):
                for mode in ("off", "on") if number % 2 else ("on", "off"):
                    name = f"{mode}{number}"
                    url = f"sqlite:///{Path(directory) / name}.db" if scheme == "sqlite" else f"memory://{name}"
                    app.settings = msgspec.structs.replace(app.settings, url=url)
                    with nothing_counted() if mode == "off" else ExitStack():
                        figures[mode].append(runner_.run(drain(jobs)))
        for mode, found in figures.items():
            cpu = [cpu_us for cpu_us, _ in found]
            rate = statistics.median(rate for _, rate in found)
            print(f"{scheme:8} {mode:8} {statistics.median(cpu):>12.2f} {min(cpu):>9.2f} {rate:>10,.0f}")
        off, on = ([cpu for cpu, _ in figures[mode]] for mode in ("off", "on"))
        paired = statistics.median(b / a for a, b in zip(off, on, strict=True))
        print(
            f"{scheme:8} on/off: {paired:.3f} of the CPU (median of pairs), {min(on) / min(off):.3f} (least of each)\n"
        )


if __name__ == "__main__":
    main()
