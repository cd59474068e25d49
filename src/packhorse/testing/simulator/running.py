"""Many seeds: in this process or in several, with what they covered added up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import msgspec

from ...backends.memory import MemoryBackend
from .world import MakeBackend, Report, run_seed

#: Seeds handed to a process at once: enough to forget the cost of the hand-over, few enough for live progress.
_CHUNK = 20


class Summary(msgspec.Struct):
    """What many seeds came to."""

    seeds: int = 0
    virtual_ms: int = 0
    counted: dict[str, int] = msgspec.field(default_factory=dict)
    failed: list[Report] = msgspec.field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Take in what other seeds came to."""
        self.seeds += other.seeds
        self.virtual_ms += other.virtual_ms
        for what, count in other.counted.items():
            self.counted[what] = self.counted.get(what, 0) + count
        self.failed.extend(other.failed)


def run_here(seeds: Sequence[int]) -> Summary:
    """Run seeds one after the other."""
    summary = Summary()
    for seed in seeds:
        report = run_seed(seed)
        failed = [report] if report.violation is not None else []
        summary.add(Summary(seeds=1, virtual_ms=report.virtual_ms, counted=report.counted, failed=failed))
    return summary


def run_many(seeds: Sequence[int], processes: int = 0) -> Iterator[Summary]:
    """Run seeds in `processes` processes (0: one for each core); answers the sum so far after each batch."""
    processes = processes or os.cpu_count() or 1
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    total = Summary()
    if processes == 1 or len(chunks) == 1:
        for chunk in chunks:
            total.add(run_here(chunk))
            yield total
        return
    # spawn: a forked child would share nothing useful and inherit the threads' locks of whoever called
    with ProcessPoolExecutor(min(processes, len(chunks)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_here, chunk) for chunk in chunks]):
            total.add(future.result())
            yield total


def first_failing(seeds: Sequence[int], make_backend: MakeBackend = MemoryBackend) -> Report | None:
    """Answer the first seed that breaks the promise; None if all keep it."""
    return next((report for seed in seeds if (report := run_seed(seed, make_backend)).violation), None)


def excerpt(report: Report, lines_max: int = 60) -> str:
    """Tell a failure: what was broken, and the lines of the trace that speak of the same job, then the last ones."""
    job = next((word for word in (report.violation or "").replace("#", " ").split() if _is_label(word)), None)
    about = [line for line in report.trace if job is not None and _speaks_of(line, job)]
    lines = about[-lines_max // 2 :]
    rest = [line for line in report.trace[-lines_max // 2 :] if line not in lines]
    told = sorted([*lines, *rest], key=report.trace.index)
    return "\n".join([f"seed {report.seed}: {report.violation}", *told])


def _is_label(word: str) -> bool:
    return word[:1] == "j" and word[1:].rstrip(":,").isdigit()


def _speaks_of(line: str, job: str) -> bool:
    return job.rstrip(":,") in line.replace("#", " ").replace(",", " ").split()
