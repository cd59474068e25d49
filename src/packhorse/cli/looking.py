"""`stats`, `health` and `workers`: how the whole stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .failing import DONE, REFUSED, Sorry
from .output import age, emit_fields, emit_json, emit_table, note
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..admin import Health, Stats


@click.command()
@reads
def stats(shell: Shell, as_json: bool) -> int:
    """Count jobs by state and queue, with the age of the oldest pending job."""
    from ..admin import stats_json

    found = shell.run(lambda admin: admin.stats())
    if as_json:
        emit_json(stats_json(found))
    else:
        _print_stats(found)
    return DONE


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
    """Ask the store whether it answers, and how fast. Exits with 1 if it does not.

    Also says what an operator should look at: queues that are paused or that no live worker takes from.
    """
    from ..admin import Health, health_json
    from ..errors import Unavailable

    try:
        found = shell.run(lambda admin: admin.health())
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
    """List the workers that are alive: those whose lease has not run out."""
    from ..admin import worker_json
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
    emit_table(
        ["id", "host", "pid", "queues", "running", "slots", "up"],
        [
            [
                worker.id,
                worker.host,
                worker.pid,
                ",".join(worker.queues),
                worker.running,
                worker.concurrency,
                age(max(0, now_ms - worker.started_at_ms)),
            ]
            for worker in found
        ],
        right=["pid", "running", "slots", "up"],
    )
    return DONE
