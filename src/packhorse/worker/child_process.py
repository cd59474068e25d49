"""The child process of `executor="process"`: runs one handler at a time, and can be killed.

Started as `python -m packhorse.worker.child_process SOCKET_FD`. SIGTERM unwinds the handler (its `finally` blocks
run); the runner kills the process when that takes too long. When the runner is gone, so is the child.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import queue
import runpy
import signal
import socket
import sys
import threading
from typing import Any

import msgspec

from .. import outcome as outcomes
from ..app import Packhorse
from ..backends.base import Note
from ..context import Context
from ..job import Claimed
from ..task import Task
from .forking import end_copy, forks
from .frames import LENGTH_BYTES, ChildDone, ChildJob, ChildNote, ChildSetup, Frame, pack, unpack
from .handler import inject
from .importing import import_app


class ToldToStop(BaseException):
    """Raised in the handler by SIGTERM."""


class ChildContext(Context):
    """A context whose progress travels to the runner."""

    def __init__(self, app: Packhorse, job: Claimed, end: socket.socket) -> None:
        super().__init__(app, job)
        self._end = end

    def keep_note(self, note: Note) -> None:
        """Send progress to the runner."""
        self._end.sendall(pack(ChildNote(note)))


def _read_frames(end: socket.socket, inbox: queue.SimpleQueue[Frame]) -> None:
    stream = end.makefile("rb")
    while True:
        head = stream.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            os._exit(0)  # the runner is gone; nobody waits for what this handler does
        inbox.put(unpack(stream.read(int.from_bytes(head))))


def _find(setup: ChildSetup) -> Task[..., Any]:
    sys.path[:0] = [path for path in setup.paths if path not in sys.path]
    if setup.app is not None:
        app = import_app(setup.app)
    else:
        found = _names(setup.module).values()
        owners = [value for value in found if isinstance(value, Packhorse) and setup.task in value.tasks]
        owners += [value.app for value in found if isinstance(value, Task) and value.type == setup.task]
        if not owners:
            raise LookupError(f"no task {setup.task!r} in {setup.module}; define it at module level")
        app = owners[0]
    return app.tasks[setup.task]


def _names(module: str) -> dict[str, Any]:
    if module.endswith(".py"):  # a program: its `if __name__ == "__main__"` part must not run again here
        return runpy.run_path(module, run_name="__packhorse_child__")
    return vars(importlib.import_module(module))


def _run(task: Task[..., Any], job: Claimed, end: socket.socket) -> ChildDone:
    ctx = ChildContext(task.app, job, end)
    forks_at_start = forks()
    try:
        value = asyncio.run(inject(task.app, task, _call(task))(task.arguments.read(job.payload), ctx))
        outcome = outcomes.from_result(value)
    except BaseException as error:  # whatever a handler raises is about its job
        outcome = outcomes.from_exception(error, task.fail_on)
    end_copy(forks_at_start)
    return ChildDone(outcome, ctx.follow_ups)


def _call(task: Task[..., Any]) -> Any:
    async def run(kwargs: dict[str, Any], ctx: Context) -> Any:
        value = task.handler(**kwargs)
        return await value if inspect.isawaitable(value) else value

    return run


def _told_to_stop(number: int, frame: object) -> None:
    raise ToldToStop("asked to stop")


def main() -> None:
    """Run jobs until the runner is gone."""
    end = socket.socket(fileno=int(sys.argv[1]))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_read_frames, args=(end, inbox), daemon=True).start()
    setup = inbox.get()
    assert isinstance(setup, ChildSetup)
    try:
        task = _find(setup)
    except Exception as error:  # importing the app runs user code
        inbox.get()
        outcome = msgspec.structs.replace(outcomes.from_exception(error), kind=outcomes.Kind.UNKNOWN)
        end.sendall(pack(ChildDone(outcome, [])))
        return
    while True:
        message = inbox.get()
        if isinstance(message, ChildJob):
            signal.signal(signal.SIGTERM, _told_to_stop)
            done = _run(task, message.job, end)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end.sendall(pack(done))


if __name__ == "__main__":
    main()
