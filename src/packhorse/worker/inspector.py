"""The thread of a runner, or of a handler's child process, that says what it is doing (see `inspection`).

It waits in `recv` and costs nothing until it is asked. It reads the stacks of other threads and of waiting runs while
it holds the interpreter lock, so nothing moves under it; where code in C keeps that lock, it cannot answer, and the
keeper asks by a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from ..clock import SYSTEM_CLOCK
from ..job import Claimed
from ..observe import interrupts
from ..observe.current import CURRENT_JOB
from ..observe.profiling import DURATION_MS_MAX, NO_JOB, RATE_MAX, THE_WORKER, Mode, Sampler, Seen, join
from ..observe.stacks import (
    FRAMES_MAX,
    Spot,
    Stack,
    cut,
    frames_of,
    is_idle,
    job_at,
    owner_of,
    place_of,
    uncollected,
    walk,
)
from .inspection import (
    Declined,
    Halt,
    Handlers,
    Look,
    Looked,
    Sample,
    Sampled,
    pack,
    read_asked,
)
from .resumed import Resumed

if TYPE_CHECKING:
    from .engine import Engine
    from .executors import HandlerChild
    from .run import Run

log = logging.getLogger("packhorse.worker")

#: Waiting runs that are shown.
RUNS_MAX = 1_000
#: Waiting runs that one sample looks at: of more, each takes others, which stand for all. One takes about 10 µs, so
#: that with 200 runs 100 samples a second took 14 % of a processor (2026-11-22).
_RUNS_SAMPLED = 6
_THREADS_MAX = 200
#: How long a child process may take to answer beyond the time of the profile.
_CHILD_S = 2.0
_LOOK_S = 0.2
_MY_NAME = "packhorse-inspector"
_RESUMED = Resumed.__await__.__code__


class View(Protocol):
    """What there is to see in a process."""

    def stacks(self) -> list[Stack]:
        """Answer the stacks of all threads, and of runs that wait."""

    def seen(self, mode: Mode) -> Iterator[Seen]:
        """Look around once for a profile."""

    def interrupted(self, frame: FrameType) -> Seen:
        """Say what the main thread does, called in it while it was in this frame. Waits for no lock."""

    def children(self) -> list[HandlerChild]:
        """Answer the processes below this one that can be asked too."""


# ---- what a thread does --------------------------------------------------------------------------------------


def threads(loop_thread: int, name_of: dict[int, str]) -> Iterator[tuple[int, list[FrameType]]]:
    """Answer threads with their frames, innermost first: the loop's, then the others, without those that ask.

    To be looked through within `uncollected`.
    """
    found = sys._current_frames()  # noqa: SLF001  # the one way to see another thread; documented for this use
    if loop_thread in found:
        yield loop_thread, interrupts.without(walk(found[loop_thread]))
    others = [ident for ident in found if ident != loop_thread and not name_of.get(ident, "").startswith(_MY_NAME)]
    for ident in others[:_THREADS_MAX]:
        yield ident, walk(found[ident])


def thread_names() -> dict[int, str]:
    """Answer the names of all threads."""
    return {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None}


def is_own(frames: list[FrameType], inner: list[FrameType], start: FrameType | None) -> bool:
    """Answer whether a thread, of which `cut` made these, is at work of packhorse's own: a task that settles, or so."""
    if start is not None or len(inner) == len(frames):
        return False
    file, function = place_of(frames[len(inner)])
    return owner_of(file) == "packhorse" and function != "main"  # below all, in a runner


def spots_of(frames: list[FrameType]) -> list[Spot]:
    """Answer frames as spots."""
    return [(frame.f_code, frame.f_lineno or 0) for frame in frames]


# ---- what a run waits for ------------------------------------------------------------------------------------


def awaited(task: asyncio.Task[Any]) -> list[Spot]:
    """Answer where a waiting task waits, innermost first: through coroutines, and through tasks that it waits for."""
    spots: list[Spot] = []
    seen: set[int] = set()
    following: asyncio.Task[Any] | None = task
    while following is not None and id(following) not in seen and len(spots) < FRAMES_MAX:
        seen.add(id(following))
        spots += islice(_links(following.get_coro()), FRAMES_MAX)
        following = _waited_for(following)
    return spots[:FRAMES_MAX][::-1]


def _waited_for(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    future = getattr(task, "_fut_waiter", None)
    children = getattr(future, "_children", ())  # of asyncio.gather: the first that is not done
    for candidate in (future, *children):
        if isinstance(candidate, asyncio.Task) and not candidate.done():
            return candidate
    return None


def _links(awaitable: object) -> Iterator[Spot]:
    while awaitable is not None:
        frame: FrameType | None
        following: object
        match awaitable:
            case CoroutineType():
                frame, following = awaitable.cr_frame, awaitable.cr_await
            case GeneratorType():
                frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
                if awaitable.gi_code is _RESUMED and frame is not None:
                    following = frame.f_locals["self"].coroutine
            case AsyncGeneratorType():
                frame, following = awaitable.ag_frame, awaitable.ag_await
            case _:
                return
        if frame is None:
            return
        yield frame.f_code, frame.f_lineno or 0
        awaitable = following


def _cut_waiting(spots: list[Spot]) -> list[Spot]:
    """Answer what of a waiting run is the handler's, innermost first; none where it waits for packhorse."""
    inner, _ = cut(spots, lambda spot: (spot[0].co_filename, spot[0].co_name))
    return inner if any(owner_of(code.co_filename) != "packhorse" for code, _ in inner) else []


class RunnerView:
    """What there is to see in a runner. `loop_thread` is the ident of the thread of its loop."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        self._engine = engine
        self._loop = loop
        self._loop_thread = loop_thread
        self._turn = 0

    def children(self) -> list[HandlerChild]:
        """Answer the handlers' child processes."""
        return self._engine.executors.children()

    def _runs(self) -> list[Run]:
        return self._engine.runner.runs()

    def _job_of(self, ident: int, start: FrameType | None) -> tuple[str, str]:
        """Answer id and type of the job that a thread works on, '' where that cannot be told."""
        job = job_at(start)
        if job is None and ident == self._loop_thread:
            job = self._job_of_task()
        return (job.id, job.type) if job is not None else ("", "")

    def _job_of_task(self) -> Claimed | None:
        """Answer the job of a task that a handler started: of its context, which Python shows from 3.12 on.

        Before that, the one job there is.
        """
        task = asyncio.current_task(self._loop)
        context = getattr(task, "get_context", lambda: None)()
        if context is not None:
            job: Claimed | None = context.get(CURRENT_JOB)
            return job
        runs = self._runs() if task is not None else []
        return runs[0].job if len(runs) == 1 else None

    def stacks(self) -> list[Stack]:
        """Answer the stacks of all threads, then of waiting runs."""
        found = []
        names = thread_names()
        running: set[str] = set()
        for ident, frames in threads(self._loop_thread, names):
            inner, start = cut(frames, place_of)
            told = start is not None or not (is_idle(frames) or is_own(frames, inner, start))
            job_id, job_type = self._job_of(ident, start) if told else ("", "")
            running.add(job_id)
            shown = inner if job_id and inner else frames
            found.append(
                Stack(
                    thread=names.get(ident, f"thread {ident:#x}"),
                    is_loop=ident == self._loop_thread,
                    doing="waits" if is_idle(frames) else "runs",
                    job_id=job_id,
                    job_type=job_type,
                    frames=frames_of(spots_of(shown)),
                )
            )
        for run in self._runs():
            if run.job.id not in running and len(found) < RUNS_MAX + _THREADS_MAX:
                spots = awaited(run.slot)
                shown_frames = frames_of(_cut_waiting(spots) or spots)
                found.append(Stack(doing="waits", job_id=run.job.id, job_type=run.job.type, frames=shown_frames))
        return found

    def seen(self, mode: Mode) -> Iterator[Seen]:
        """Look at all threads; in mode `wall` only at what jobs do, but at those that wait too."""
        running: set[str] = set()
        names = thread_names() if mode == "cpu" else {}
        for ident, frames in threads(self._loop_thread, names):
            found, job_id = self._seen_in(ident, frames, is_idle(frames))
            if job_id:
                running.add(job_id)
            if job_id or mode == "cpu":
                yield found
        if mode == "wall":
            yield from self._waiting(running)

    def interrupted(self, frame: FrameType) -> Seen:
        """Look at the loop's thread from within it."""
        return self._seen_in(self._loop_thread, walk(frame), idle=False)[0]

    def _seen_in(self, ident: int, frames: list[FrameType], idle: bool) -> tuple[Seen, str]:
        """Answer what a thread does and for which job, '' where for none."""
        inner, start = cut(frames, place_of)
        if is_own(frames, inner, start):
            return Seen(ident, THE_WORKER, [], idle), ""
        job_id, job_type = self._job_of(ident, start) if (inner and not idle) or start is not None else ("", "")
        if job_id and inner:
            return Seen(ident, job_type, [frame.f_code for frame in inner], idle), job_id
        theirs = any(owner_of(frame.f_code.co_filename) in {"yours", "library"} for frame in inner)
        codes = [frame.f_code for frame in inner] if theirs else []
        return Seen(ident, NO_JOB if theirs else THE_WORKER, codes, idle), ""

    def _waiting(self, running: set[str]) -> Iterator[Seen]:
        runs = self._runs()
        times = max(1.0, len(runs) / _RUNS_SAMPLED)
        if times > 1:
            first = self._turn % len(runs)
            self._turn += _RUNS_SAMPLED
            runs = (runs[first:] + runs[:first])[:_RUNS_SAMPLED]
        for run in runs:
            if run.job.id in running:
                continue  # its thread was seen
            spots = _cut_waiting(awaited(run.slot))
            if spots or run.handler.task.executor != "process":  # its own process tells
                yield Seen(None, run.job.type, [code for code, _ in spots], times=times)


class ChildView:
    """What there is to see in a handler's child process."""

    def __init__(self, job_type: str) -> None:
        self._job_type = job_type
        self._main = threading.main_thread().ident or 0

    def children(self) -> list[HandlerChild]:
        """None."""
        return []

    def stacks(self) -> list[Stack]:
        """Answer the stacks of all threads."""
        found = []
        names = thread_names()
        for ident, frames in threads(self._main, names):
            inner, start = cut(frames, place_of)
            job = job_at(start)
            if job is None and ident == self._main:
                continue  # it has nothing to do
            found.append(
                Stack(
                    thread=names.get(ident, f"thread {ident:#x}"),
                    doing="waits" if is_idle(frames) else "runs",
                    job_id=job.id if job is not None else "",
                    job_type=job.type if job is not None else "",
                    frames=frames_of(spots_of(inner if job is not None and inner else frames)),
                )
            )
        return found if any(stack.job_id for stack in found) else []

    def seen(self, mode: Mode) -> Iterator[Seen]:
        """Look at the handler, and in mode `cpu` at threads it started."""
        for ident, frames in threads(self._main, thread_names()):
            inner, start = cut(frames, place_of)
            theirs = any(owner_of(frame.f_code.co_filename) in {"yours", "library"} for frame in inner)
            if start is not None if ident == self._main else theirs and mode == "cpu":
                yield Seen(ident, self._job_type, [frame.f_code for frame in inner], is_idle(frames))

    def interrupted(self, frame: FrameType) -> Seen:
        """Look at the main thread, which runs the handler, from within it."""
        inner, start = cut(walk(frame), place_of)
        if start is None:
            return Seen(self._main, THE_WORKER, [])
        return Seen(self._main, self._job_type, [each.f_code for each in inner])


# ---- the thread ----------------------------------------------------------------------------------------------


class Inspector:
    """Answers what is asked over `end`, in a thread of its own that ends with the other end of it."""

    def __init__(self, end: socket.socket, view: View) -> None:
        self._end = end
        self._view = view
        self._sending = threading.Lock()
        self._sampler: Sampler | None = None
        self._number = 0

    def start(self, handlers: Handlers | None = None) -> None:
        """Begin to answer."""
        if handlers is not None:
            self._send(handlers)
        threading.Thread(target=self._serve, name=_MY_NAME, daemon=True).start()

    def _serve(self) -> None:
        while (asked := read_asked(self._end)) is not None:
            try:
                self._answer(asked)
            except Exception as error:  # nothing that is asked may hurt what runs here
                self._send(Declined(asked.number, f"{type(error).__name__}: {error}"[:500]))
        if self._sampler is not None:
            self._sampler.stopped.set()

    def _answer(self, asked: Look | Sample | Halt) -> None:
        match asked:
            case Look(number=number):
                with uncollected():
                    stacks = self._view.stacks()
                notes = self._look_at_children(stacks)
                self._send(Looked(number, stacks, notes))
            case Sample(number=number) if self._sampler is not None:
                self._send(Declined(number, "a profile of it is being taken already; try again when that is done"))
            case Sample(number=number):
                view, rate = self._view, min(asked.rate, RATE_MAX)
                self._sampler = Sampler(view.seen, SYSTEM_CLOCK, asked.mode, rate, view.interrupted)
                self._number = number
                args = (self._sampler, asked)
                threading.Thread(target=self._sample, args=args, name=f"{_MY_NAME}-samples", daemon=True).start()
            case Halt(number=number):
                if self._sampler is not None and number == self._number:
                    self._sampler.stopped.set()

    def _sample(self, sampler: Sampler, asked: Sample) -> None:
        try:
            duration_ms = min(asked.duration_ms, DURATION_MS_MAX)
            below = Below(self._view, duration_ms, asked)
            sampler.each_second = below.ask
            profile = sampler.run(duration_ms)
            profiles, notes = below.answers(halted=sampler.stopped.is_set())
            profile = join([profile, *profiles])
            profile.notes += notes
            self._send(Sampled(asked.number, profile))
        except Exception as error:
            self._send(Declined(asked.number, f"{type(error).__name__}: {error}"[:500]))
        finally:
            self._sampler = None

    def _look_at_children(self, stacks: list[Stack]) -> list[str]:
        notes = []
        for child in self._view.children():
            number = child.inspection.ask(Look(0))
            answer = child.inspection.hear(number, _LOOK_S)
            if isinstance(answer, Looked):
                for stack in answer.stacks:
                    stack.thread = f"process {child.pid}, {stack.thread}"
                theirs = {stack.job_id for stack in answer.stacks}
                stacks[:] = [stack for stack in stacks if stack.thread or stack.job_id not in theirs] + answer.stacks
            else:
                notes.append(f"process {child.pid} does not answer: its interpreter lock is held, or it has ended")
        return notes

    def _send(self, answer: Looked | Sampled | Declined | Handlers) -> None:
        with self._sending, contextlib.suppress(OSError):  # nobody is there any more: the thread is about to end
            self._end.sendall(pack(answer))


class Below:
    """The part of a profile that child processes take of themselves."""

    def __init__(self, view: View, duration_ms: int, asked: Sample) -> None:
        self._view = view
        self._asked = asked
        self._end_ms = SYSTEM_CLOCK.boot_ms() + duration_ms
        self._numbers: dict[HandlerChild, int] = {}

    def ask(self) -> None:
        """Ask those that were not asked yet; called again and again, since they come and go."""
        left_ms = self._end_ms - SYSTEM_CLOCK.boot_ms()
        for child in self._view.children():
            if child not in self._numbers and left_ms > 0:
                question = Sample(0, left_ms, self._asked.rate, self._asked.mode)
                self._numbers[child] = child.inspection.ask(question)

    def answers(self, *, halted: bool) -> tuple[list[Any], list[str]]:
        """Wait for the answers of all; answers profiles, and who did not answer."""
        profiles, notes = [], []
        for child, number in self._numbers.items():
            if halted:
                child.inspection.tell(Halt(number))
        for child, number in self._numbers.items():
            answer = child.inspection.hear(number, _CHILD_S)
            if isinstance(answer, Sampled):
                profiles.append(answer.profile)
            else:
                notes.append(f"the child process {child.pid} ended or did not answer: what it did is missing")
        return profiles, notes


def handlers_of(engine: Engine) -> Handlers:
    """Answer which functions are handlers."""
    known = []
    for name, handler in engine.handlers.items():
        code = getattr(handler.task.handler, "__code__", None)
        if code is not None:
            known.append((code.co_filename, code.co_name, name))
    return Handlers(known)
