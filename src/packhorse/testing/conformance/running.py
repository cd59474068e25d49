"""Running the cases: one for pytest, all of them for a report."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import pkgutil
import tempfile
import traceback
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ...backends.opening import open_backend
from ...clock import SYSTEM_CLOCK, ManualClock, precise_boot_ms
from ...errors import ConfigurationError
from .case import Broken, Case, registered, run_on
from .harness import Harness, SharedHarness

HarnessFactory = Callable[[], Harness]


class Result(msgspec.Struct, frozen=True):
    """How one case ended. `problem` is empty when it passed."""

    case: Case
    problem: str = ""
    skipped: str = ""
    took_ms: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """How all cases ended; `str()` of it is for people."""

    results: list[Result]

    @property
    def failed(self) -> list[Result]:
        """The cases that did not pass."""
        return [result for result in self.results if result.problem]

    @property
    def ok(self) -> bool:
        """Whether every case that could be asked passed, and one could."""
        return not self.failed and any(not result.skipped for result in self.results)

    def __str__(self) -> str:
        skipped = [result for result in self.results if result.skipped]
        lines = [f"FAILED {result.case}\n    {result.problem}" for result in self.failed]
        lines += [f"skipped {result.case}: {result.skipped}" for result in skipped]
        passed = len(self.results) - len(self.failed) - len(skipped)
        took_s = sum(result.took_ms for result in self.results) / 1000
        lines.append(f"{passed} passed, {len(self.failed)} failed, {len(skipped)} skipped in {took_s:.1f} s")
        return "\n".join(lines)


def cases() -> list[Case]:
    """Answer all cases, file by file."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return sorted(registered(), key=lambda case: case.topic)


def run_case(case: Case, make_harness: HarnessFactory) -> None:
    """Run one case on a fresh harness. Raises what went wrong; `unittest.SkipTest` where it cannot be asked."""
    asyncio.run(run_on(case, make_harness()))


def harness_factory(url: str, directory: Path, *, manual_clock: bool = False) -> HarnessFactory:
    """Answer what makes an empty store for each case: a new file in `directory` for SQLite, a new one in memory.

    Of any other URL `{case}` is replaced by a number, another for each case, and must name a new store. Without it the
    URL is taken as it is; its store must hold no jobs and is emptied after each case. With `manual_clock` the backend
    is given a clock that it must go by, and no case waits; without, durations are short and pass in reality.

    Raises ConfigurationError for the URL of a server of packhorse: that moves time on by itself, which cases that count
    what a tick did would take for faults. The store behind it can be checked.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme == "memory":
        return _memory
    if scheme == "sqlite":
        return lambda: _sqlite(directory)
    if scheme in {"http", "https"}:
        raise ConfigurationError(
            "a server of packhorse ticks its store by itself, which this suite would take for faults; "
            "give the URL of the store behind it"
        )
    numbers = itertools.count()

    def make() -> Harness:
        clock = ManualClock() if manual_clock else None
        own = url.replace("{case}", str(next(numbers)))
        kind = SharedHarness if own == url else Harness
        return kind(lambda: open_backend(own, clock or SYSTEM_CLOCK), clock)

    return make


def check(
    target: str | HarnessFactory,
    only: Sequence[Case] | None = None,
    *,
    stop: bool = False,
    manual_clock: bool = False,
) -> Report:
    """Run all cases against a URL, or on the harnesses that a function makes; answers how each ended.

    `only` chooses cases; `stop` leaves the rest out once one has failed. For a URL and `manual_clock` see
    `harness_factory`.
    """
    with tempfile.TemporaryDirectory(prefix="packhorse-conformance-") as directory:
        make_harness = (
            harness_factory(target, Path(directory), manual_clock=manual_clock) if isinstance(target, str) else target
        )
        results = []
        for case in cases() if only is None else only:
            results.append(_result(case, make_harness))
            if stop and results[-1].problem:
                break
        return Report(results)


def _result(case: Case, make_harness: HarnessFactory) -> Result:
    started_ms = precise_boot_ms()
    problem = skipped = ""
    try:
        run_case(case, make_harness)
    except unittest.SkipTest as reason:
        skipped = str(reason)
    except Broken as broken:
        problem = str(broken)
    except Exception as error:  # a backend may raise anything: that is its report
        place = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return Result(case, problem, skipped, precise_boot_ms() - started_ms)


def _memory() -> Harness:
    from .stores import MemoryHarness

    return MemoryHarness()


def _sqlite(directory: Path) -> Harness:
    from .stores import SQLiteHarness

    return SQLiteHarness(Path(tempfile.mkdtemp(dir=directory)) / "jobs.db", ManualClock())
