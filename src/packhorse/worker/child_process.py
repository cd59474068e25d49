"""The child process of `executor="process"`: runs one handler at a time, and can be killed.

Started as `python -m packhorse.worker.child_process SOCKET_FD INSPECTION_FD`. SIGTERM unwinds the handler (its
`finally` blocks run); the runner kills the process when that takes too long. When the runner is gone, so are the child
and all that its handler has started, whatever they do: the job may be running again elsewhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
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
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import msgspec

from .. import outcome as outcomes
from ..app import Packhorse
from ..backends.base import Bound, Note
from ..backends.opening import secrets_of
from ..context import Context
from ..errors import LeaseLost, Unavailable
from ..job import JobRecord
from ..observe import interrupts
from ..observe.current import CURRENT_JOB, CURRENT_WORKER, Here
from ..observe.logs import configure, hide, stamp_records, take_root
from ..observe.tracing import WORKER_SERVICE
from ..task import Task
from .child_log import ChildLines
from .exits import flush_output
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
from .inspector import ChildView, Inspector

if TYPE_CHECKING:
    from ..observe.spans import Tracing

#: How long the end of this process waits for its last spans to be sent, s. The runner waits a second for it.
_FLUSH_S = 0.8


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
        self.tracing: Tracing | None = None
        self._end = end
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, concurrent.futures.Future[ChildAnswer]] = {}

    def listen(self) -> None:
        """Read frames until the runner is gone; then end this process: nobody waits for what its handler does."""
        stream = self._end.makefile("rb")
        try:
            while (frame := _receive(stream)) is not None:
                if not isinstance(frame, ChildAnswer):
                    self.inbox.put(frame)
                elif (future := self._asked.pop(frame.number, None)) is not None and not future.done():
                    future.set_result(frame)
        except Exception:  # nobody would hear of the runner's end any more
            traceback.print_exc()
        self._end_all()

    def send(self, frame: Frame) -> None:
        """Send a frame; blocks while the runner is busy. If it is gone, this process ends."""
        try:
            with self._sending:  # handlers may have threads of their own
                self._end.sendall(pack(frame))
        except ConnectionError:
            self._end_all()

    def _end_all(self) -> NoReturn:
        """End this process, and what its handler has started: the runner led them as a group of their own."""
        if self.tracing is not None:
            self.tracing.flush(_FLUSH_S)
        with suppress(ProcessLookupError):  # a fork of the handler's leads no group
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(0)

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


def _receive(stream: BinaryIO) -> Frame | None:
    """Read a frame; None when the runner is gone. If it did not read all that was sent, that is a reset connection."""
    try:
        head = stream.read(LENGTH_BYTES)
        length = int.from_bytes(head)
        data = stream.read(length)
    except ConnectionError:
        return None
    return unpack(data) if len(head) == LENGTH_BYTES and len(data) == length else None


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


def _start_logs(setup: ChildSetup, task: Task[..., Any], lines: ChildLines) -> None:
    """Let log records carry the job that runs, as in the runner; what a handler logs is told to it."""
    stamp_records()
    settings = task.app.settings
    hide(secrets_of(setup.url) | ({settings.token} if settings.token else set()))
    if setup.log_form is not None:
        take_root(setup.log_form[0])
    keeps = setup.keep_level is not None
    CURRENT_WORKER.set(Here(setup.worker, setup.keep_level or 0, lines.keep if keeps else None))


def _run(task: Task[..., Any], message: ChildJob, line: Line) -> ChildDone:
    ctx = ChildContext(task.app, message, line)
    CURRENT_JOB.set(message.job)
    if message.trace is not None:
        _go_on(task.app, line, message.trace)
    forks_at_start = forks()
    try:
        value = asyncio.run(inject(task.app, task, _call(task))(task.arguments.read(message.job.payload), ctx))
        outcome = outcomes.from_result(value)
    except BaseException as error:  # whatever a handler raises is about its job
        outcome = outcomes.from_exception(error, task.fail_on)
    end_copy(forks_at_start)
    return ChildDone(outcome, ctx.follow_ups)


def _go_on(app: Packhorse, line: Line, traceparent: str) -> None:
    """Let spans of the handler be part of the trace of its run."""
    line.tracing = app.tracing(WORKER_SERVICE)
    if line.tracing is not None:
        from ..observe.spans import go_on

        go_on(traceparent)


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
    interrupts.accept()
    line = Line(end)
    inbox = line.inbox
    threading.Thread(target=line.listen, daemon=True).start()
    setup = inbox.get()
    assert isinstance(setup, ChildSetup)
    if setup.log_form is not None:
        configure(*setup.log_form)
    lines = ChildLines(line.send)
    try:
        task = _find(setup)
        _start_logs(setup, task, lines)
    except Exception as error:  # importing the app runs user code
        inbox.get()
        outcome = msgspec.structs.replace(outcomes.from_exception(error), kind=outcomes.Kind.UNKNOWN)
        line.send(ChildDone(outcome, []))
        return
    Inspector(socket.socket(fileno=int(sys.argv[2])), ChildView(setup.task)).start()
    while True:
        message = inbox.get()
        if isinstance(message, ChildJob):
            lines.begin(message.job)
            signal.signal(signal.SIGTERM, _told_to_stop)
            done = contextvars.copy_context().run(_run, task, message, line)  # what a run sets ends with it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            lines.end()
            flush_output()  # this process is killed when it is not needed any more
            line.send(done)


if __name__ == "__main__":
    main()
