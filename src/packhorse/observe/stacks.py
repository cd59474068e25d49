"""Stacks of threads and of runs that wait: what they are, whose code they show, and how to say it in a line.

Never with locals: a stack goes into logs and over sockets, and locals hold what nobody may read there (FAILURES C20).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Literal, TypeVar

import msgspec

from ..job import Claimed

T = TypeVar("T")
#: A line of a function.
Spot = tuple[CodeType, int]

#: Frames of a stack that are kept, as of `faulthandler`.
FRAMES_MAX = 100
#: Characters of a name or path that are kept; `faulthandler` keeps 500.
NAME_CHARS_MAX = 500
#: Frames that a log line names.
_SAID_MAX = 8
_SAID_CHARS_MAX = 100

Owner = Literal["yours", "library", "python", "packhorse"]

_PACKHORSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100,PTH120  # text is compared
#: Parts of packhorse that have handlers of their own.
_HANDLERS = tuple(_PACKHORSE + name + os.sep for name in ("demo", "benchmark"))
_PYTHON = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120
#: Where this package runs a job: what is above is the job's.
_STARTS = {
    ("runner.py", "_run"),
    ("runner.py", "_run_waiting"),
    ("executors.py", "_guarded"),
    ("child_process.py", "_run"),
}
#: What is below handlers and threads anyway.
_BASE = (
    *(_PYTHON + name for name in ("asyncio" + os.sep, "concurrent" + os.sep, "runpy.py", "threading.py")),
    "<frozen runpy>",
)
#: Functions of Python in which a thread waits; with uvloop the innermost frame of a loop without work is `run`.
_WAITING = {
    "selectors.py": ("select",),
    os.path.join("asyncio", "runners.py"): ("run",),  # noqa: PTH118
    os.path.join("concurrent", "futures", "thread.py"): ("_worker",),  # noqa: PTH118
    "threading.py": ("wait", "_wait_for_tstate_lock", "join"),
    "queue.py": ("get", "put"),
}
#: From 3.12 on garbage is collected between two steps of a program only.
_MAKING_FRAMES_COLLECTS = sys.version_info[:2] < (3, 12)
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]+)(?: \[[^\]\n]*\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A place in code."""

    file: str
    line: int
    function: str


class Stack(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a thread or a waiting run was doing. `frames` are innermost first, without what is below a job."""

    thread: str = ""
    doing: Literal["runs", "waits"] = "runs"
    job_id: str = ""
    job_type: str = ""
    is_loop: bool = False  # of the thread of the event loop
    frames: list[Frame] = []


def owner_of(file: str) -> Owner:
    """Answer whose code a file is: the user's, a library's, Python's or packhorse's."""
    if file.startswith(_PACKHORSE):
        return "yours" if file.startswith(_HANDLERS) else "packhorse"
    if "site-packages" in file or "dist-packages" in file:
        return "library"
    if file.startswith((_PYTHON, "<frozen")):
        return "python"
    return "yours"


@lru_cache(maxsize=20_000)
def _kind_of(file: str, function: str) -> Literal["start", "base", "code"]:
    """Answer what a frame is: where a job starts, what is below handlers anyway, or what people want to see."""
    owner = owner_of(file)
    if owner == "packhorse":
        return "start" if (file.rpartition(os.sep)[2], function) in _STARTS else "base"
    return "base" if owner == "python" and file.startswith(_BASE) else "code"


def cut(frames: Sequence[T], place: Callable[[T], tuple[str, str]]) -> tuple[list[T], T | None]:
    """Answer the frames of a job, innermost first, without those below it; and the one of ours that runs the job.

    Without such a frame only what every thread and loop has at its bottom goes. May answer none.
    """
    kinds = [_kind_of(*place(frame)) for frame in frames]
    end = kinds.index("start") if "start" in kinds else len(kinds)
    start = frames[end] if end < len(kinds) else None
    while end and kinds[end - 1] == "base":
        end -= 1
    return list(frames[:end]), start


def frames_of(spots: Iterable[Spot]) -> list[Frame]:
    """Answer spots as frames that can be sent and said."""
    return [Frame(code.co_filename[-NAME_CHARS_MAX:], line, code.co_name[:NAME_CHARS_MAX]) for code, line in spots]


_looking = threading.RLock()
_paused = False


def _forget_looks() -> None:
    """In a forked child: who looked is not here, and will not turn collection on again."""
    global _looking, _paused
    _looking = threading.RLock()
    if _paused:
        _paused = False
        gc.enable()


os.register_at_fork(after_in_child=_forget_looks)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage: around every look at frames of other threads, or of coroutines that they may run.

    One look at a time: the first to end would turn collection on under the other. Not for signal handlers.

    Before Python 3.12 making a frame object may collect garbage, and a finalizer may give the interpreter lock up. Then
    the other thread goes on, and what is read next is memory of frames that are gone: the process crashes, or worse.
    Who turns collection off or on within the look, some 100 µs, loses that.
    """
    global _paused
    if not _MAKING_FRAMES_COLLECTS:
        yield
        return
    with _looking:
        if not gc.isenabled():
            yield
            return
        _paused = True
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            _paused = False


def walk(frame: FrameType | None) -> list[FrameType]:
    """Answer a thread's frames, innermost first. Of one with more than `FRAMES_MAX` the middle is left out."""
    inner: list[FrameType] = []
    outer: deque[FrameType] = deque(maxlen=FRAMES_MAX // 2)
    while frame is not None:
        inner.append(frame) if len(inner) < FRAMES_MAX // 2 else outer.append(frame)
        frame = frame.f_back
    return [*inner, *outer]


def place_of(frame: FrameType) -> tuple[str, str]:
    """Answer file and function of a frame."""
    return frame.f_code.co_filename, frame.f_code.co_name


def is_idle(frames: Sequence[FrameType]) -> bool:
    """Answer whether a thread, innermost frame first, waits for work or for another thread, as far as Python shows."""
    if not frames:
        return True
    file, function = place_of(frames[0])
    return function in _WAITING.get(file.removeprefix(_PYTHON), ()) if file.startswith(_PYTHON) else False


def job_at(start: FrameType | None) -> Claimed | None:
    """Answer the job that a frame of ours runs (see `cut`). The one look at locals there is: at our own."""
    if start is None:
        return None
    found = start.f_locals
    job = found.get("job")
    if job is None and (message := found.get("message")) is not None:
        job = message.job  # in a handler's child process
    return job if isinstance(job, Claimed) else None


def short_file(file: str) -> str:
    """Answer the name of a file as people say it: `shop.py`, `shop/__init__.py`."""
    path = PurePath(file)
    return "/".join(path.parts[-2:]) if path.stem.startswith("__") and len(path.parts) > 1 else path.name or file


def clean(text: str) -> str:
    """Escape what could steer a terminal, break a line or not be in a document at all (FAILURES C22)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say_frame(frame: Frame) -> str:
    """Answer a frame as `shop.py:31 resize`."""
    return clean(f"{short_file(frame.file)[-_SAID_CHARS_MAX:]}:{frame.line} {frame.function[:_SAID_CHARS_MAX]}")


def say_place(frames: Sequence[Frame]) -> str:
    """Answer where a stack is: its innermost frame, and the innermost of the user's if that is another. May be ''."""
    if not frames:
        return ""
    inner = frames[0]
    yours = next((frame for frame in frames if owner_of(frame.file) == "yours"), None)
    if yours is None or yours == inner:
        return say_frame(inner)
    return f"{say_frame(inner)} called from {say_frame(yours)}"


def say_yours(frames: Sequence[Frame]) -> str:
    """Answer the innermost frame of the user's code, or the innermost at all. May be ''."""
    yours = next((frame for frame in frames if owner_of(frame.file) == "yours"), frames[0] if frames else None)
    return say_frame(yours) if yours is not None else ""


def say_frames(frames: Sequence[Frame]) -> str:
    """Answer the innermost frames in one line, innermost first."""
    said = " < ".join(map(say_frame, frames[:_SAID_MAX]))
    return said + (f" < {len(frames) - _SAID_MAX} more" if len(frames) > _SAID_MAX else "")


def read_dump(text: str) -> list[Stack]:
    """Read what `faulthandler` wrote; the thread that took the signal, a runner's loop, comes first.

    What cannot be read is left out: a process may have been killed while it wrote. So are threads that run no Python.
    """
    stacks: list[Stack] = []
    for line in text.splitlines():
        if head := _THREAD.fullmatch(line.rstrip()):
            is_loop = line.startswith("Current")
            stacks.append(Stack(thread=head[1], is_loop=is_loop))
        elif stacks and (found := _FRAME.fullmatch(line)):
            line_number = int(found[2]) if found[2].isdigit() else 0
            stacks[-1].frames.append(Frame(found[1], line_number, found[3]))
    for stack in stacks:
        if stack.is_loop:
            stack.frames = cut(stack.frames, lambda frame: (frame.file, frame.function))[0] or stack.frames
    return sorted((stack for stack in stacks if stack.frames), key=lambda stack: not stack.is_loop)


def loop_of(stacks: Iterable[Stack]) -> Stack | None:
    """Answer the stack of the event loop's thread."""
    return next((stack for stack in stacks if stack.is_loop), None)
