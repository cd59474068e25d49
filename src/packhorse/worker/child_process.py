"""The child process of `executor="process"`: runs one handler at a time, and can be killed.

Started as `python -m packhorse.worker.child_process SOCKET_FD`. SIGTERM unwinds the handler (its `finally` blocks
run); the runner kills the process when that takes too long. When the runner is gone, so is the child.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import inspect
import itertools
import os
import queue
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import outcome as outcomes
from ..app import Packhorse
from ..backends.base import Bound, Note
from ..context import Context
from ..errors import LeaseLost, Unavailable
from ..job import JobRecord
from ..task import Task
from .forking import end_copy, forks
from .frames import (
    LENGTH_BYTES,
    ChildAnswer,
    ChildAsk,
    ChildDone,
    ChildJob,
    ChildNote,
    ChildSettled,
    ChildSetup,
    Frame,
    pack,
    unpack,
)
from .handler import inject
from .importing import import_app


class ToldToStop(BaseException):
    """Raised in the handler by SIGTERM."""


class ChildContext(Context):
    """A context whose progress travels to the runner."""

    def __init__(self, app: Packhorse, message: ChildJob, line: Line) -> None:
        self._line = line
        self._settled = False
        super().__init__(app, message.job)
        line.app = app
        line.steps = message.steps
        self.give_reach(line)

    @property
    def settled(self) -> bool:
        """Whether the run has settled its job in a transaction of its own; the runner is told."""
        return self._settled

    @settled.setter
    def settled(self, settled: bool) -> None:
        if settled != self._settled:
            self._settled = settled
            self._line.send(ChildSettled(settled))

    def keep_note(self, note: Note) -> None:
        """Send progress to the runner."""
        self._line.send(ChildNote(note))


class Line:
    """The socket to the runner, and through it what a run can reach of the store."""

    def __init__(self, end: socket.socket) -> None:
        self.inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.steps = False
        self.app: Packhorse | None = None
        self._end = end
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, concurrent.futures.Future[ChildAnswer]] = {}

    def listen(self) -> None:
        """Read frames until the runner is gone; then end this process: nobody waits for what its handler does."""
        stream = self._end.makefile("rb")
        while True:
            head = stream.read(LENGTH_BYTES)
            if len(head) < LENGTH_BYTES:
                os._exit(0)
            frame = unpack(stream.read(int.from_bytes(head)))
            if not isinstance(frame, ChildAnswer):
                self.inbox.put(frame)
            elif (future := self._asked.pop(frame.number, None)) is not None and not future.done():
                future.set_result(frame)

    def send(self, frame: Frame) -> None:
        """Send a frame; blocks while the runner is busy."""
        with self._sending:  # handlers may have threads of their own
            self._end.sendall(pack(frame))

    def _ask(self, ids: Sequence[str] = (), note: Note | None = None) -> concurrent.futures.Future[ChildAnswer]:
        future: concurrent.futures.Future[ChildAnswer] = concurrent.futures.Future()
        number = next(self._numbers)
        self._asked[number] = future
        self.send(ChildAsk(number, list(ids), note))
        return future

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        return _read(await asyncio.shield(asyncio.wrap_future(self._ask(ids))))

    async def keep(self, note: Note) -> None:
        _read(await asyncio.shield(asyncio.wrap_future(self._ask(note=note))))

    def bind(self, connection: object) -> Bound:
        """The connection is here, so the store is opened here too: once, on the app's background loop."""
        assert self.app is not None
        return self.app.portal.call(self.app.backend()).bind(connection)

    def get_blocking(self, ids: Sequence[str], stop: threading.Event) -> list[JobRecord | None]:
        return _read(self._ask(ids).result())

    def keep_blocking(self, note: Note, stop: threading.Event) -> None:
        _read(self._ask(note=note).result())


def _read(answer: ChildAnswer) -> list[JobRecord | None]:
    if answer.lost is not None:
        raise LeaseLost(answer.lost)
    if answer.error is not None:
        raise Unavailable(answer.error)
    return answer.jobs


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
    app.settings = msgspec.structs.replace(app.settings, url=setup.url)  # the worker may have been given another
    return app.tasks[setup.task]


def _names(module: str) -> dict[str, Any]:
    if module.endswith(".py"):  # a program: its `if __name__ == "__main__"` part must not run again here
        return runpy.run_path(module, run_name="__packhorse_child__")
    return vars(importlib.import_module(module))


def _run(task: Task[..., Any], message: ChildJob, line: Line) -> ChildDone:
    ctx = ChildContext(task.app, message, line)
    forks_at_start = forks()
    try:
        value = asyncio.run(inject(task.app, task, _call(task))(task.arguments.read(message.job.payload), ctx))
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
    line = Line(end)
    inbox = line.inbox
    threading.Thread(target=line.listen, daemon=True).start()
    setup = inbox.get()
    assert isinstance(setup, ChildSetup)
    try:
        task = _find(setup)
    except Exception as error:  # importing the app runs user code
        inbox.get()
        outcome = msgspec.structs.replace(outcomes.from_exception(error), kind=outcomes.Kind.UNKNOWN)
        line.send(ChildDone(outcome, []))
        return
    while True:
        message = inbox.get()
        if isinstance(message, ChildJob):
            signal.signal(signal.SIGTERM, _told_to_stop)
            done = _run(task, message, line)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            line.send(done)


if __name__ == "__main__":
    main()
