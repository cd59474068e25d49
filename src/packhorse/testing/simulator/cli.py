"""`python -m packhorse.testing.simulator`: run seeds, watch them, replay one."""

from __future__ import annotations

import argparse
import sys

from ...clock import precise_boot_ms
from .running import Summary, excerpt, run_many
from .world import run_seed

#: Failures told in full; more are only counted.
_TOLD_MAX = 3
_SEEDS_SHOWN_MAX = 50


def main(arguments: list[str] | None = None) -> int:
    """Run the command; answers 0 if the promise was kept, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m packhorse.testing.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many seeds to run (1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seed", type=int, help="run this one seed only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happened")
    parser.add_argument("--processes", type=int, default=0, help="processes to use (one for each core)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed, trace=options.trace)
    return _many(range(options.start, options.start + options.seeds), options.processes)


def _one(seed: int, *, trace: bool) -> int:
    report = run_seed(seed)
    if trace:
        sys.stdout.write("\n".join(report.trace) + "\n")
    elif report.violation is not None:
        sys.stdout.write(excerpt(report) + "\n")
    verdict = f"broke the promise: {report.violation}" if report.violation else "kept the promise"
    sys.stdout.write(f"seed {seed} {verdict} ({report.virtual_ms / 1000:.1f} s of its time, trace {report.digest})\n")
    return 1 if report.violation else 0


def _many(seeds: range, processes: int) -> int:
    started_ms = precise_boot_ms()
    summary = Summary()
    for summary in run_many(seeds, processes):
        _show(summary, len(seeds), precise_boot_ms() - started_ms)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    seconds = (precise_boot_ms() - started_ms) / 1000
    failed = sorted(summary.failed, key=lambda report: report.seed)
    for report in failed[:_TOLD_MAX]:
        sys.stdout.write(excerpt(report) + "\n\n")
    if failed:
        shown = " ".join(str(report.seed) for report in failed[:_SEEDS_SHOWN_MAX])
        sys.stdout.write(f"{len(failed)} seeds failed: {shown}\nreplay one with --seed N --trace\n")
    covered = ", ".join(f"{count} × {what}" for what, count in sorted(summary.counted.items()))
    sys.stdout.write(
        f"{summary.seeds} seeds in {seconds:.1f} s, {summary.virtual_ms / 3_600_000:.1f} hours of theirs\n"
    )
    sys.stdout.write(f"covered: {covered}\n")
    return 1 if failed else 0


def _show(summary: Summary, wanted: int, elapsed_ms: float) -> None:
    """Renew the line of progress that people see."""
    if not sys.stderr.isatty():
        return
    rate = summary.seeds / max(elapsed_ms / 1000, 1e-3)
    left_s = (wanted - summary.seeds) / max(rate, 1e-3)
    sys.stderr.write(
        f"\r{summary.seeds}/{wanted} seeds, {rate:.0f} a second, {len(summary.failed)} failed, {left_s:.0f} s left   "
    )
    sys.stderr.flush()
