"""`stacks`: what a live worker is doing, thread by thread and job by job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .failing import DONE, Sorry
from .finding import find_worker
from .output import emit_json, note, say
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..observe.stacks import Stack


@click.command()
@click.argument("worker", required=False)
@reads
def stacks(shell: Shell, as_json: bool, worker: str | None) -> int:
    """Show what the threads and the waiting jobs of WORKER are doing, even where its event loop is blocked.

    WORKER is an id or its beginning, a pid, or host:pid; the only one on this machine if left out. Never shows values.
    """
    from ..worker.control import AskStacks, Refused, Stacks, ask

    found = find_worker(shell, worker, "stacks")
    answer = ask(found.path, AskStacks(found.kept.worker))
    if not isinstance(answer, Stacks):
        raise Sorry(answer.reason if isinstance(answer, Refused) else "the worker answered something else; try again")
    if as_json:
        emit_json(
            {
                "worker": found.kept.worker,
                "pid": found.kept.pid,
                "trouble": answer.trouble or None,
                "notes": answer.notes,
                "stacks": [_json(stack) for stack in answer.stacks],
            }
        )
        return DONE
    if answer.trouble:
        note(answer.trouble)
    for line in answer.notes:
        note(line)
    for stack in sorted(answer.stacks, key=lambda stack: (not stack.is_loop, not stack.job_id, stack.doing)):
        _print(stack)
    return DONE


def _json(stack: Stack) -> dict[str, Any]:
    return {
        "thread": stack.thread or None,
        "loop": stack.is_loop,
        "doing": stack.doing,
        "job": stack.job_id or None,
        "type": stack.job_type or None,
        "frames": [{"file": frame.file, "line": frame.line, "function": frame.function} for frame in stack.frames],
    }


def _print(stack: Stack) -> None:
    who = f"thread {stack.thread}" if stack.thread else "waiting"
    loop = ", the event loop" if stack.is_loop else ""
    job = f", job {stack.job_id or 'not known'} ({stack.job_type})" if stack.job_id or stack.job_type else ""
    idle = ", idle" if stack.thread and stack.doing == "waits" and not job else ""
    say(f"{who}{loop}{job}{idle}")
    for frame in stack.frames:
        say(f"    {frame.file}:{frame.line} {frame.function}")
