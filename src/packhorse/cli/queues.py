"""`queues list`, `pause`, `resume` and `capacity`."""

from __future__ import annotations

import click

from ..wording import quantity
from .failing import DONE
from .lazy import Entry, LazyGroup
from .output import age, emit_json, emit_table, note, say
from .shell import Shell, reads

QUEUES = {
    "list": Entry("packhorse.cli.queues:list_queues", "List the queues with their jobs and settings."),
    "pause": Entry("packhorse.cli.queues:pause", "Stop workers from taking jobs of a queue."),
    "resume": Entry("packhorse.cli.queues:resume", "Let workers take jobs of a queue again."),
    "capacity": Entry("packhorse.cli.queues:capacity", "Bound how many jobs a queue may hold."),
}


@click.command(cls=LazyGroup, entries=QUEUES)
def queues() -> None:
    """List, pause, resume and bound queues."""


@click.command("list")
@reads
def list_queues(shell: Shell, as_json: bool) -> int:
    """List the queues that have jobs or settings."""
    from ..admin import queue_json
    from ..job import State
    from ..shapes import list_json

    found = shell.run(lambda admin: admin.queues())
    if as_json:
        emit_json(list_json(map(queue_json, found)))
        return DONE
    if not found:
        note("no queues: nothing was enqueued yet, or all of it was dropped")
        return DONE
    shown = (State.PENDING, State.RUNNING, State.SCHEDULED, State.WAITING, State.FAILED)
    headers = ["queue", *map(str, shown), "oldest", "capacity", ""]
    rows = [
        [
            view.queue,
            *(view.counts.states.get(state, 0) for state in shown),
            age(view.counts.oldest_pending_ms),
            view.capacity,
            "paused" if view.counts.paused else "",
        ]
        for view in found
    ]
    emit_table(headers, rows, right=headers[1:-1])
    return DONE


@click.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@reads
def pause(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Stop workers from taking jobs of queues; what runs goes on. Takes effect at the next claim."""
    shell.run(lambda admin: admin.pause(names))
    return _answer(names, True, as_json)


@click.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@reads
def resume(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Let workers take jobs of queues again."""
    shell.run(lambda admin: admin.resume(names))
    return _answer(names, False, as_json)


@click.command()
@click.argument("name", metavar="QUEUE")
@click.argument("jobs", metavar="N", type=click.IntRange(0))
@reads
def capacity(shell: Shell, as_json: bool, name: str, jobs: int) -> int:
    """Let QUEUE hold at most N pending jobs; 0 lifts it. An enqueue into a full queue waits for room, then fails."""
    shell.run(lambda admin: admin.set_capacity(name, jobs))
    if as_json:
        emit_json({"queue": name, "capacity": jobs or None})
    else:
        say(
            f"queue {name} holds at most {quantity(jobs, 'pending job')}"
            if jobs
            else f"queue {name} holds any number of jobs"
        )
    return DONE


def _answer(names: tuple[str, ...], paused: bool, as_json: bool) -> int:
    from ..shapes import list_json

    if as_json:
        emit_json(list_json({"queue": name, "paused": paused} for name in dict.fromkeys(names)))
    else:
        say(f"{'paused' if paused else 'resumed'} {', '.join(dict.fromkeys(names))}")
    return DONE
