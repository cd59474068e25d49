"""An event loop that does not turn: noticing it, and saying so once with the stack that blocks it.

A handler that calls `time.sleep`, or searches a long text with a bad pattern, stops every other job of its process.
Under a keeper the keeper watches (`worker/trouble.py`); in a program, a thread beside the loop does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from ..wording import quantity
from .stacks import Frame, cut, frames_of, job_at, place_of, say_frames, say_place, say_yours, uncollected, walk

log = logging.getLogger("packhorse.worker")

#: At most one warning in this time for each loop; what happens meanwhile is counted in the next.
QUIET_MS = 10_000
#: How often the thread of a worker in a program looks, while jobs run.
_LOOK_MS = 250
_STOP_S = 5


class Found(msgspec.Struct, frozen=True):
    """What blocks a loop, as far as it could be seen."""

    frames: Sequence[Frame] = ()
    job_id: str = ""
    job_type: str = ""

    @property
    def place(self) -> str:
        """` in re.py:12 search called from shop.py:31 resize`, or ''."""
        said = say_place(self.frames)
        return f" in {said}" if said else ""

    @property
    def yours(self) -> str:
        """` in shop.py:31 resize (job 01a2…, resize)`, or ''."""
        said = say_yours(self.frames)
        job = ", ".join(filter(None, [f"job {self.job_id}" if self.job_id else "", self.job_type]))
        return (f" in {said}" if said else "") + (f" ({job})" if job else "")


class BlockWatch:
    """Decides from when the loop last turned whether it is blocked. All times are of the boot clock, ms.

    `blocked_ms` 0 is off. `slack_ms` is how old the news may be of a loop that turns.
    """

    def __init__(self, blocked_ms: int, slack_ms: int) -> None:
        self._blocked_ms = blocked_ms
        self._slack_ms = slack_ms
        self._looked_ms = 0
        self._from_ms = 0
        #: Since when it is blocked; None while it turns.
        self.since_ms: int | None = None
        #: How long the last time was.
        self.lasted_ms = 0

    def look(self, now_ms: int, turned_ms: int, *, busy: bool) -> Literal["begins", "over"] | None:
        """Answer what changed since the last look. Look at least once a second."""
        if now_ms - self._looked_ms > 1_000:
            self.forgive(now_ms)  # who looks had no turn either: the machine slept, or has no time for anyone
        self._looked_ms = now_ms
        if self.since_ms is not None:
            if turned_ms <= self.since_ms:
                return None
            self.lasted_ms = turned_ms - self.since_ms
            self.since_ms = None
            return "over"
        late_ms = now_ms - max(turned_ms, self._from_ms)
        if self._blocked_ms and busy and late_ms > self._blocked_ms + self._slack_ms:
            self.since_ms = turned_ms
            return "begins"
        return None

    def forgive(self, now_ms: int) -> None:
        """Count only from now on: until now it could not turn."""
        self._from_ms = now_ms


class BlockLog:
    """The log lines of one loop: one when it is blocked, one when that is over, at most once in `QUIET_MS`."""

    def __init__(self, logger: logging.Logger, who: str) -> None:
        self._log = logger
        self._who = who
        self._said_ms = -QUIET_MS
        self._saying = False
        self._unsaid = 0
        self._unsaid_ms_max = 0

    def begins(self, now_ms: int, blocked_ms: int, found: Found) -> None:
        """Say that the loop has been blocked for `blocked_ms`, and by what."""
        self._saying = now_ms - self._said_ms >= QUIET_MS
        if not self._saying:
            self._unsaid += 1
            return
        self._said_ms = now_ms
        before = f"; {quantity(self._unsaid, 'more time')} since the last warning" if self._unsaid else ""
        longest = f", up to {self._unsaid_ms_max / 1000:.1f} s" if self._unsaid_ms_max else ""
        self._unsaid = self._unsaid_ms_max = 0
        self._log.warning(
            "%s has been blocked for %.1f s%s; all its jobs wait. %s%s%s",
            self._who,
            blocked_ms / 1000,
            found.place or " by something that cannot be seen",
            f"The stack: {say_frames(found.frames)}" if found.frames else "",
            before,
            longest,
            extra=extra_of(found),
        )

    def still(self, now_ms: int, blocked_ms: int, found: Found) -> None:
        """Say it now if it was not said when it began, because of others before it."""
        if not self._saying and now_ms - self._said_ms >= QUIET_MS:
            self._unsaid -= 1
            self.begins(now_ms, blocked_ms, found)

    def over(self, lasted_ms: int, found: Found) -> None:
        """Say how long it lasted."""
        if not self._saying:
            self._unsaid_ms_max = max(self._unsaid_ms_max, lasted_ms)
            return
        self._saying = False
        self._log.warning(
            "%s turns again; it was blocked for %.1f s%s",
            self._who,
            lasted_ms / 1000,
            found.place,
            extra=extra_of(found),
        )


def extra_of(found: Found) -> dict[str, str]:
    """Answer the fields of log lines about a job, as far as it is known."""
    fields = {"job_id": found.job_id, "job_type": found.job_type}
    return {name: value for name, value in fields.items() if value}


class LoopWatcher:
    """Watches the loop of a worker in a program, from a thread that sleeps while no job runs. Make it in that loop.

    Code in C that holds the interpreter lock stops this thread too: then the warning comes when it is over. `holding`
    is asked in the thread how many jobs there are; `blocked` is called in the loop after each time it was blocked.
    """

    def __init__(self, blocked_ms: int, holding: Callable[[], int], blocked: Callable[[], None]) -> None:
        self._blocked_ms = blocked_ms
        self._holding = holding
        self._blocked = blocked
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._lines = BlockLog(log, "the event loop")
        self._awake = threading.Event()
        self._turned = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def work(self) -> None:
        """Watch as long as there are jobs. For the loop; called for each batch of jobs that is claimed."""
        if not self._awake.is_set():
            self._awake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="packhorse-watcher", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread. For the loop; takes a moment."""
        self._stopping.set()
        for event in (self._awake, self._turned):
            event.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            self._thread = None

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)  # stands still while the machine sleeps, unlike the boot clock

    def _run(self) -> None:
        while self._awake.wait() and not self._stopping.is_set():
            asked_ms = self._now_ms()
            self._turned.clear()
            if not self._call(self._turned.set):
                return
            if not self._turned.wait(self._blocked_ms / 1000) or self._now_ms() - asked_ms > self._blocked_ms:
                self._follow(asked_ms)
            paused_ms = self._now_ms()
            if self._stopping.wait(_LOOK_MS / 1000):
                return
            if self._now_ms() - paused_ms - _LOOK_MS > self._blocked_ms:
                self._follow(paused_ms + _LOOK_MS)  # this thread could not run either: the lock was held
            if not self._holding():
                self._awake.clear()

    def _follow(self, since_ms: int) -> None:
        """Say that the loop is blocked, wait until it turns, say that too."""
        if self._stopping.is_set():
            return  # it stands in `stop`, which waits for this thread
        now_ms = self._now_ms()
        found = self._find()
        self._lines.begins(now_ms, now_ms - since_ms, found)
        self._turned.clear()
        if self._call(self._turned.set):
            while not self._turned.wait(_LOOK_MS / 1000) and not self._stopping.is_set():
                pass
            if not self._stopping.is_set():
                self._lines.over(self._now_ms() - since_ms, found)
                self._call(self._blocked)

    def _call(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the program has closed its loop
            return False
        return True

    def _find(self) -> Found:
        with uncollected():
            frames = walk(sys._current_frames().get(self._loop_thread))  # noqa: SLF001  # documented for this use
            inner, start = cut(frames, place_of)
            job = job_at(start)
        spots = [(frame.f_code, frame.f_lineno or 0) for frame in inner or frames]
        return Found(frames_of(spots), job.id if job is not None else "", job.type if job is not None else "")
