"""The parts of the frame: queues, workers, what fails, what runs longest, the keys. Pure functions to lines."""

from __future__ import annotations

from collections.abc import Sequence

from ...admin_values import slots_taken
from ...backends.base import WorkerInfo
from ...job import State
from ..output import age
from .history import History
from .lines import Column, Line, Paint, Piece, table
from .samples import ErrorGroup, Failure, Run, Sample

#: Cells of a queue's sparkline, of a worker's queues and of its bar; and on terminals of so many columns.
_PAST, _TAKES, _BAR = 10, 20, 8
_WIDE, _PAST_WIDE, _TAKES_WIDE = 110, 30, 40


def _queue_columns(past: int) -> tuple[Column, ...]:
    return (
        Column("QUEUE", least=12),
        Column("", 9),
        Column("PENDING", 7, right=True),
        Column("PAST", past, spare=4),
        Column("OLDEST", 7, right=True, spare=1),
        Column("RUNNING", 7, right=True),
        Column("SCHED", 7, right=True, spare=5),
        Column("WAITING", 7, right=True, spare=6),
        Column("FAILED", 7, right=True),
        Column("IN/S", 6, right=True, spare=3),
        Column("OUT/S", 6, right=True, spare=2),
    )


def _worker_columns(width: int) -> tuple[Column, ...]:
    return (
        Column("WORKER", least=12),
        Column("QUEUES", _TAKES if width < _WIDE else _TAKES_WIDE, spare=3),
        Column("", _BAR, spare=2),
        Column("BUSY", 9, right=True),
        Column("CLAIMED", 7, right=True, spare=4),
        Column("UP", 7, right=True),
        Column("LEASE", 6, right=True, spare=1),
    )


_FAILURES = (
    Column("FAILED", 7, right=True),
    Column("TYPE", 16),
    Column("QUEUE", 12, spare=3),
    Column("ATTEMPT", 7, right=True, spare=1),
    Column("", 7, spare=2),
    Column("ERROR", least=30),
)
_GROUPS = (
    Column("JOBS", 7, right=True),
    Column("LAST", 7, right=True),
    Column("TYPES", 20, spare=2),
    Column("SAME ERROR", least=16),
    Column("GROUP", 12, spare=1),
)
_RUNNING = (
    Column("RUNS", 7, right=True),
    Column("TYPE", 16),
    Column("QUEUE", 12, spare=2),
    Column("ATTEMPT", 7, right=True, spare=3),
    Column("WORKER", 18, spare=1),
    Column("JOB", least=36),
)

HELP = (
    ("q", "quit"),
    ("p", "stop asking the store, and go on"),
    ("+ -", "ask less often, more often: every 1, 2, 5, 10, 30, 60 s"),
    ("j k", "scroll; also the arrows, Page Up, Page Down, g and G for the ends"),
    ("f", "what fails: dead letters by error, and the latest failures"),
    ("w", "all workers"),
    ("?", "this page"),
    ("Esc", "back to all"),
)
_HELP_TEXT = (
    "IN/S: jobs that came, OUT/S: jobs that ended, a second, over the last 5 s.",
    "PAST: how many waited to run or ran. Sparklines go back up to 2 minutes.",
    "BUSY: jobs that run, of slots. CLAIMED: these and what a worker took ahead.",
    "A queue with 'no worker' has pending jobs and nobody alive who takes them.",
    "The store is asked for at most 5 % of the time: a slow one less often.",
)


def number(value: int) -> str:
    """Write a count in 7 characters: `12,345`, `1.23M`."""
    if value < 1_000_000:
        return f"{value:,}"
    return f"{value / 1e6:.2f}M" if value < 100_000_000 else f"{value / 1e9:.2f}G"


def rate(value: float | None) -> str:
    """Write jobs a second: `0.2`, `12`, `1,234`."""
    if value is None:
        return "-"
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:.1f}" if 0 < value < 9.95 else number(round(value))


def queues(history: History, sample: Sample, paint: Paint, width: int, offset: int, room: int) -> list[Line]:
    """Draw `room` queues from `offset` on, after a head."""
    served = {queue for worker in sample.workers for queue in worker.queues}
    past = _PAST if width < _WIDE else _PAST_WIDE
    rows = [_queue(history, sample, paint, name, served, past) for name in history.order[offset : offset + room]]
    return table(paint, _queue_columns(past), rows or [["no queues", *[""] * 10]], width)


def _queue(history: History, sample: Sample, paint: Paint, name: str, served: set[str], past: int) -> list[str | Piece]:
    counts = sample.queues[name]
    states = counts.states
    pending, failed = states.get(State.PENDING, 0), states.get(State.FAILED, 0)
    rates = history.rates(name)
    alone = pending > 0 and name not in served
    note = Piece("paused", "yellow") if counts.paused else Piece("no worker", "bold red") if alone else Piece("")
    return [
        Piece(name, "bold" if pending else ""),
        note,
        number(pending),
        Piece(paint.spark(history.depth(name, past)), "cyan"),
        "" if counts.oldest_pending_ms is None else age(counts.oldest_pending_ms),
        Piece(number(states.get(State.RUNNING, 0)), "cyan" if states.get(State.RUNNING, 0) else ""),
        number(states.get(State.SCHEDULED, 0)),
        number(states.get(State.WAITING, 0)),
        Piece(number(failed), "red" if failed else ""),
        rate(rates.came),
        rate(rates.ended),
    ]


def worker_lines(sample: Sample, paint: Paint, width: int) -> list[Line]:
    """Draw a head and all workers, those in trouble first, each with its trouble on a line below."""
    columns = _worker_columns(width)
    if not sample.workers:
        return table(paint, columns, [[Piece("none alive", "bold red"), *[""] * 6]], width)
    workers = sorted(sample.workers, key=lambda each: (not each.trouble, each.host, each.pid, each.id))
    head, *lines = table(paint, columns, [_worker(worker, sample, paint) for worker in workers], width)
    found = [head]
    for worker, line in zip(workers, lines, strict=True):
        found.append(line)
        if worker.trouble:
            found.append([Piece(paint.fit(f"  ! {worker.trouble}", width), "bold red")])
    return found


def _worker(worker: WorkerInfo, sample: Sample, paint: Paint) -> list[str | Piece]:
    up_ms = max(0, sample.now_ms - worker.started_at_ms)
    taken = slots_taken(worker)
    return [
        Piece(name_of(worker), "bold red" if worker.trouble else ""),
        ",".join(worker.queues[:20]),
        Piece(paint.bar(taken, worker.concurrency, _BAR), "cyan"),
        f"{taken}/{worker.concurrency}",
        number(worker.running),
        age(up_ms) if worker.started_at_ms else "",
        age(worker.lease_left_ms),
    ]


def name_of(worker: WorkerInfo) -> str:
    """Answer what people call a worker: its machine and process, or its id where it told neither."""
    return f"{worker.host} {worker.pid}" if worker.host else worker.id


def failure_lines(sample: Sample, paint: Paint, width: int) -> list[Line]:
    """Draw a head and the latest failures."""
    latest = sample.failures.latest
    rows = [_failure(failure, sample) for failure in latest]
    return table(paint, _FAILURES, rows or [["", "nothing failed", *[""] * 4]], width)


def _failure(failure: Failure, sample: Sample) -> list[str | Piece]:
    return [
        age(max(0, sample.now_ms - failure.at_ms)),
        failure.type,
        failure.queue,
        f"{failure.attempt}/{failure.max_attempts}",
        Piece("retries", "yellow") if failure.retries else Piece("dead", "red"),
        failure.error,
    ]


def group_lines(sample: Sample, paint: Paint, width: int) -> list[Line]:
    """Draw a head and the dead letters by error."""
    rows = [_group(each, sample) for each in sample.failures.groups]
    return table(paint, _GROUPS, rows or [["", "", "", "no dead letters", ""]], width)


def _group(group: ErrorGroup, sample: Sample) -> list[str | Piece]:
    return [
        Piece(number(group.jobs), "red"),
        age(max(0, sample.now_ms - group.last_at_ms)),
        ",".join(group.types),
        group.title,
        group.fingerprint,
    ]


def running_lines(sample: Sample, paint: Paint, width: int) -> list[Line]:
    """Draw a head and the jobs that run, the longest first."""
    names = {worker.id: name_of(worker) for worker in sample.workers}
    if sample.running is None:
        return table(paint, _RUNNING, [["", "too many", "", "", "", "more than are looked through"]], width)
    rows = [_run(run, sample, names) for run in sample.running]
    return table(paint, _RUNNING, rows or [["", "nothing runs", *[""] * 4]], width)


def _run(run: Run, sample: Sample, names: dict[str, str]) -> Sequence[str | Piece]:
    return [
        age(max(0, sample.now_ms - run.started_at_ms)),
        run.type,
        run.queue,
        f"{run.attempt}/{run.max_attempts}",
        names.get(run.worker, run.worker),
        run.id,
    ]


def help_lines() -> list[Line]:
    """Draw what the keys do and what the numbers mean."""
    keys = [[Piece(f"{key:>5}", "bold"), Piece(f"  {text}")] for key, text in HELP]
    return [*keys, [], *([Piece(f"  {text}")] for text in _HELP_TEXT)]
