"""`stats`, `health` and `workers`: how the whole stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .failing import DONE, REFUSED, Sorry
from .output import age, emit_fields, emit_json, emit_table, note, warn
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..admin import Admin, Health, Stats
    from .recent import Recent

#: Seconds between two looks of `stats --watch`, at least and at most.
_WATCH_S_MIN, _WATCH_S_MAX = 1.0, 86_400.0


@click.command()
@click.option(
    "--watch",
    "watch_s",
    type=click.FloatRange(_WATCH_S_MIN, _WATCH_S_MAX),
    metavar="SECONDS",
    help="Print it again and again, until Ctrl+C.",
)
@reads
def stats(shell: Shell, as_json: bool, watch_s: float | None) -> int:
    """Count jobs by state and queue, with the age of the oldest pending job.

    On a terminal also shows when the newest 2,000 jobs came, ended and failed, by queue. See `top` for more.
    """
    from ..admin import stats_json

    if as_json:
        if watch_s is not None:
            raise click.UsageError("--json prints one document; leave --watch out")
        emit_json(stats_json(shell.run(lambda admin: admin.stats())))
    elif watch_s is not None:
        shell.run(lambda admin: _watch_stats(shell, admin, watch_s))
    else:
        _print_all(*shell.run(_look))
    return DONE


async def _look(admin: Admin) -> tuple[Stats, Recent | None]:
    """Count; on a terminal also look at the newest jobs."""
    from .recent import read_recent

    return await admin.stats(), await read_recent(admin) if sys.stdout.isatty() else None


async def _watch_stats(shell: Shell, admin: Admin, watch_s: float) -> None:
    """Print until somebody ends it; while the store is away, say so and go on."""
    from ..errors import Unavailable

    while True:
        try:
            found = await _look(admin)
        except Unavailable as error:
            warn(shell.scrub(str(error)))
        else:
            if sys.stdout.isatty():
                click.clear()
            _print_all(*found)
            if not sys.stdout.isatty():
                click.echo()
            sys.stdout.flush()
        await _sleep(watch_s)


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


def _print_all(found: Stats, recent: Recent | None) -> None:
    _print_stats(found)
    if recent is not None:
        from .recent import print_recent

        print_recent(recent)


def _print_stats(found: Stats) -> None:
    states = list(found.states)
    rows: list[list[object]] = [
        [name, *(counts.states.get(state, 0) for state in states), age(counts.oldest_pending_ms), _mark(counts.paused)]
        for name, counts in sorted(found.queues.items())
    ]
    rows.append(["(all)", *found.states.values(), "", ""])
    headers = ["queue", *map(str, states), "oldest", ""]
    emit_table(headers, rows, right=headers[1:-1])


def _mark(paused: bool) -> str:
    return "paused" if paused else ""


@click.command()
@reads
def health(shell: Shell, as_json: bool) -> int:
    """Ask the store whether it answers and takes writes, and how fast. Exits with 1 if it does not.

    Also says what an operator should look at: queues that are paused or that no live worker takes from.
    """
    from ..admin import Health, health_json
    from ..errors import Unavailable

    try:
        found = shell.run(lambda admin: admin.health(thorough=True))
    except Unavailable as error:
        found = Health(status="UNAVAILABLE", problems=(shell.scrub(str(error)),))
    if as_json:
        emit_json(health_json(found))
    elif found.status == "OK":
        _print_health(found)
    else:
        raise Sorry("; ".join(found.problems) or "the store does not answer")
    return DONE if found.status == "OK" else REFUSED


def _print_health(found: Health) -> None:
    emit_fields(
        [
            ("status", found.status),
            ("latency", age(found.latency_ms)),
            ("workers", found.workers),
            ("pending", found.pending),
        ]
    )
    for problem in found.problems:
        emit_fields([("problem", problem)])


@click.command()
@reads
def workers(shell: Shell, as_json: bool) -> int:
    """List the workers that are alive: those whose lease has not run out.

    BUSY of its SLOTS have a job that runs; CLAIMED are all jobs that it holds, those taken ahead of free slots too.
    """
    from ..admin import worker_json
    from ..admin_values import slots_taken
    from ..clock import SYSTEM_CLOCK
    from ..shapes import list_json

    found = shell.run(lambda admin: admin.workers())
    if as_json:
        emit_json(list_json(map(worker_json, found)))
        return DONE
    if not found:
        note("no worker is alive; start one with: packhorse worker APP")
        return DONE
    now_ms = SYSTEM_CLOCK.now_ms()
    in_trouble = any(worker.trouble for worker in found)
    emit_table(
        ["id", "host", "pid", "queues", "busy", "slots", "claimed", "up"] + ["trouble"] * in_trouble,
        [
            [
                worker.id,
                worker.host,
                worker.pid,
                ",".join(worker.queues),
                slots_taken(worker),
                worker.concurrency,
                worker.running,
                age(max(0, now_ms - worker.started_at_ms)),
            ]
            + [worker.trouble] * in_trouble
            for worker in found
        ],
        right=["pid", "busy", "slots", "claimed", "up"],
        below="trouble",
    )
    return DONE
