"""The log that is kept with a job: what its runs logged, the latest of it, in the store.

Kept under names that no durable step can have (`Note`): `~log.<attempt modulo LOGS_KEPT_MAX>`, each the JSON of one
attempt. So it moves and goes with the job on every backend, and no older run can write into it. A run that was put off
or given back has the number of the next one, which writes over it; so does an attempt LOGS_KEPT_MAX later.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from .. import codec
from ..backends.base import Note, Settlement
from ..job import LOG_BYTES_MAX, LOG_PREFIX, LOGS_KEPT_MAX, Claimed
from .log_format import cut, error_of, message_of

#: What is kept of one attempt: the latest lines, at most so many; and LOG_BYTES_MAX of their JSON in all.
LINES_MAX = 200
LINE_CHARS_MAX = 2_000
#: What a worker keeps for all its runs, bytes; beyond it new lines are only counted.
ALL_BYTES_MAX = 64 << 20

_LOGGER_CHARS_MAX = 128
#: What stands around the lines.
_FRAME_BYTES = 128


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """A line of a job's log."""

    at_ms: int
    level: str
    logger: str
    message: str


class AttemptLog(msgspec.Struct, frozen=True):
    """What is kept of one attempt; `left_out` older or further lines are not."""

    attempt: int
    left_out: int = 0
    lines: list[LogLine] = []


def name_of(attempt: int) -> str:
    """Answer the name under which the log of an attempt is kept."""
    return f"{LOG_PREFIX}{attempt % LOGS_KEPT_MAX}"


def read_logs(steps: Mapping[str, bytes] | None) -> list[AttemptLog]:
    """Answer the logs among what a job remembers, by attempt. What is none, whoever wrote it, is left out."""
    found = []
    for name, data in (steps or {}).items():
        if name.startswith(LOG_PREFIX) and len(data) <= 2 * LOG_BYTES_MAX:
            try:
                found.append(_decode(data))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
    return sorted(found, key=lambda log: log.attempt)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AttemptLog).decode


def line_of(record: logging.LogRecord) -> bytes:
    """Write a record as a line of a log: bounded, valid everywhere, without secrets."""
    message = message_of(record, LINE_CHARS_MAX)
    if (error := error_of(record)) is not None:
        message = f"{message} ({error})"
    text = cut(codec.clean_text(message, 2 * LINE_CHARS_MAX), LINE_CHARS_MAX)
    logger = codec.clean_text(record.name, _LOGGER_CHARS_MAX)[:_LOGGER_CHARS_MAX]
    level = codec.clean_text(record.levelname.lower(), 16)[:16]
    return _encode(LogLine(int(record.created * 1000), level, logger, text))


class RunLog:
    """The lines of one run, as JSON: the latest that fit."""

    __slots__ = ("attempt", "bytes", "ended", "left_out", "lines", "since_ms")

    def __init__(self, attempt: int, since_ms: int) -> None:
        self.attempt = attempt
        self.since_ms = since_ms  # boot clock
        self.lines: deque[bytes] = deque()
        self.bytes = _FRAME_BYTES
        self.left_out = 0
        self.ended = False  # what is logged from now on is too late

    def add(self, line: bytes) -> None:
        """Take a line; the oldest go for it."""
        self.lines.append(line)
        self.bytes += len(line) + 1
        while len(self.lines) > LINES_MAX or self.bytes > LOG_BYTES_MAX:
            self.bytes -= len(self.lines.popleft()) + 1
            self.left_out += 1

    def value(self) -> bytes:
        """Write what is kept of it."""
        head = b'{"attempt":%d,"left_out":%d,"lines":[' % (self.attempt, self.left_out)
        return head + b",".join(self.lines) + b"]}"


Key = tuple[str, str]


class RunLogs:
    """The logs of the runs of one worker. Lines come from any thread; they are never waited for."""

    def __init__(self, level: int, boot_ms: Callable[[], int], on_unsent: Callable[[], None]) -> None:
        self.level = level
        self._boot_ms = boot_ms
        self._on_unsent = on_unsent
        # The same thread may come back while it holds this: what the garbage collector ends may log.
        self._guard = threading.RLock()
        self._is_copy = False
        self._logs: dict[Key, RunLog] = {}
        self._unsent: dict[Key, None] = {}  # oldest first
        self._bytes = 0
        _all.add(self)

    def end_in_copy(self) -> None:
        """Keep nothing in a forked copy: the store hears of the runs here from its parent, who may hold the lock."""
        self._guard = threading.RLock()
        self._is_copy = True

    def __len__(self) -> int:
        return len(self._logs)

    @property
    def has_unsent(self) -> bool:
        """Whether there are lines that the store does not have."""
        return bool(self._unsent)

    def keep(self, job: Claimed, record: logging.LogRecord) -> None:
        """Take what was logged while `job` ran. Called by the record factory, and so never raises."""
        try:
            line = line_of(record)
        except Exception:  # a record that cannot be written is the logger's own business
            return
        self.add(job, [line])

    def add(self, job: Claimed, lines: Iterable[bytes], left_out: int = 0) -> None:
        """Take lines that are written already; `left_out` others were before them."""
        if self._is_copy:
            return
        key = (job.id, job.token)
        with self._guard:
            log = self._logs.get(key)
            if log is None:
                new = RunLog(job.attempt, self._boot_ms())
                log = self._logs.setdefault(key, new)
                if log is new:
                    self._bytes += log.bytes
            if log.ended:
                return
            log.left_out += left_out
            for line in lines:
                if self._bytes < ALL_BYTES_MAX:
                    before = log.bytes
                    log.add(line)
                    self._bytes += log.bytes - before
                else:
                    log.left_out += 1
            tell = not self._unsent
            self._unsent[key] = None
        if tell:
            self._on_unsent()

    # ---- to the store ------------------------------------------------------------------------------------

    def notes(self, count_max: int, bytes_max: int, but: Collection[str] = ()) -> list[Note]:
        """Take what is to be sent now, the oldest first; not of the jobs whose tokens are in `but`."""
        with self._guard:
            return self._take([key for key in self._unsent if key[1] not in but], count_max, bytes_max)

    def ended_notes(self, ended: Sequence[Settlement], count_max: int, bytes_max: int) -> list[Note]:
        """Take what is to be sent before these ends; what their runs log from now on is too late."""
        with self._guard:
            keys = []
            for settlement in ended:
                key = (settlement.id, settlement.token)
                log = self._logs.get(key)
                if log is not None:
                    log.ended = True
                    if key in self._unsent:
                        keys.append(key)
            return self._take(keys, count_max, bytes_max)

    def _take(self, keys: Iterable[Key], count_max: int, bytes_max: int) -> list[Note]:
        notes: list[Note] = []
        for key in keys:
            value = self._logs[key].value()
            if len(notes) >= count_max or (notes and bytes_max < len(value)):
                break
            bytes_max -= len(value)
            del self._unsent[key]
            notes.append(Note(id=key[0], token=key[1], step=name_of(self._logs[key].attempt), result=value))
        return notes

    def unsent(self, notes: Iterable[Note]) -> None:
        """Take back what could not be sent: it is sent later, with what has come since."""
        with self._guard:
            for note in notes:
                if (note.id, note.token) in self._logs:
                    self._unsent[note.id, note.token] = None

    def forget(self, ended: Iterable[Settlement]) -> None:
        """Drop the logs of runs that have ended, sent or not."""
        with self._guard:
            for settlement in ended:
                self._drop((settlement.id, settlement.token))

    def keep_held(self, held: Mapping[str, str], sent_ms: int) -> None:
        """Drop the logs of runs that were not ours any more at `sent_ms`, boot clock: lost, or past their end."""
        with self._guard:
            for key, log in list(self._logs.items()):
                if log.since_ms < sent_ms and held.get(key[0]) != key[1]:
                    self._drop(key)

    def _drop(self, key: Key) -> None:
        log = self._logs.pop(key, None)
        if log is not None:
            self._unsent.pop(key, None)
            self._bytes -= log.bytes


_all: weakref.WeakSet[RunLogs] = weakref.WeakSet()


def _end_in_copy() -> None:
    for logs in _all:
        logs.end_in_copy()


os.register_at_fork(after_in_child=_end_in_copy)
