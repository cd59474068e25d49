"""What a runner and a handler's child process say to each other: length-prefixed msgpack frames over a socket pair."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..backends.base import Note
from ..job import Claimed, JobRecord, JobSpec
from ..outcome import Outcome

#: A follow-up list is the largest there is: 1,000 jobs of 1 MiB. Four bytes of length carry it.
LENGTH_BYTES = 4


class ChildSetup(msgspec.Struct, tag=True):
    """Runner → child, first: where the task is found."""

    app: str | None  # module:attribute, as the operator gave it
    module: str  # the handler's own module, where no path was given
    task: str
    url: str
    paths: list[str]
    worker: str = ""
    keep_level: int | None = None  # lines of this level and above are told; None: none
    log_form: tuple[str, str] | None = None  # level and form of lines on stderr; None: as the app says


class ChildJob(msgspec.Struct, tag=True):
    """Runner → child: run this."""

    job: Claimed
    steps: bool = False  # whether the store remembers steps
    trace: str | None = None  # the traceparent of the run's span, where it is traced


class ChildNote(msgspec.Struct, tag=True):
    """Child → runner: progress."""

    note: Note


class ChildLog(msgspec.Struct, tag=True):
    """Child → runner: what the handler logged since it last told, as JSON; `left_out` lines were before that."""

    lines: list[bytes]
    left_out: int = 0


class ChildSettled(msgspec.Struct, tag=True):
    """Child → runner: the handler settles the job in a transaction of its own, or has not been able to."""

    settled: bool


class ChildDone(msgspec.Struct, tag=True):
    """Child → runner: the run ended; the child waits for the next."""

    outcome: Outcome
    follow_ups: list[JobSpec]


class ChildAsk(msgspec.Struct, tag=True):
    """Child → runner: look these jobs up, or keep this note. Answered by the same number."""

    number: int
    ids: list[str] = []
    note: Note | None = None


class ChildAnswer(msgspec.Struct, tag=True):
    """Runner → child: the jobs, None where there is none; or why not."""

    number: int
    jobs: list[JobRecord | None] = []
    lost: str | None = None  # the job belongs to another run by now
    error: str | None = None


Frame = ChildSetup | ChildJob | ChildNote | ChildLog | ChildSettled | ChildDone | ChildAsk | ChildAnswer

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Frame] = msgspec.msgpack.Decoder(Frame).decode


def pack(frame: Frame) -> bytes:
    """Write a frame."""
    data = _encode(frame)
    return len(data).to_bytes(LENGTH_BYTES) + data


def unpack(data: bytes) -> Frame:
    """Read a frame without its length."""
    return _decode(data)
