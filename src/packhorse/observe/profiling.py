"""Profiles of running handlers: taking samples of stacks, and what a profile is.

A profile says how much time each stack took, by job type. In mode `cpu` that is processor time: what a thread really
used, by the system's clock for it, shared out over the stacks it was seen in. In mode `wall` it is the time that jobs
passed, waiting included. Stacks are by function, outermost first, from the handler on: the worker itself is one line.

The main thread looks at itself while it uses processor time (see `interrupts`), which is exact. What waits, and other
threads, are looked at from beside them, where they give the interpreter lock up: it is asked of them often meanwhile.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Literal, NamedTuple

import msgspec

from ..clock import Clock, thread_cpu_ns
from ..wording import quantity
from .interrupts import Interrupts, NoInterruptsError
from .stacks import NAME_CHARS_MAX, Owner, clean, owner_of, short_file, uncollected

Mode = Literal["cpu", "wall"]

DURATION_MS_MAX = 300_000
RATE_MAX = 1_000
#: Different stacks a profile keeps, and functions in them; the rest becomes one stack of its job type.
STACKS_MAX = 20_000
FUNCTIONS_MAX = 20_000
#: What is no job's: the worker itself, and threads and tasks that a handler started where it cannot be told which.
THE_WORKER = "(packhorse)"
NO_JOB = "(not in a job)"
#: What threads used while they were never seen at work: many short runs, mostly.
UNSEEN = "(too short to be seen)"
_TOO_MANY = "(too many different stacks)"
#: In place of a thread, in mode `wall`: what the main thread saw of itself.
_WITHIN = -1
#: How long the sampling thread waits for the interpreter lock until it asks for it, s; Python's own 5 ms let it find
#: threads only where they write or wait. Alone, a thread loses nothing by it; from threads that compete for the lock
#: 200 µs took about 2 % and 1 µs 30 % (2026-11-22).
_ASKS_ALONE_S, _ASKS_SHARED_S = 1e-6, 2e-4
#: Threads that used more of the time than this compete for the lock.
_BUSY = 0.1
#: The beginning of a note.
_BIASED = (
    "code in the main thread, where async handlers run, is shown too much where it writes or waits and too little "
    "elsewhere, since that thread could not be interrupted"
)
#: So many times the main thread should have interrupted itself, if it never did, before it is said.
_NEVER_INTERRUPTED = 20


#: The interval of the interpreter lock that the profile which is being taken gives back at its end.
_given_back_s: float | None = None


def _give_back() -> None:
    """In a forked child: who takes the profile is not here."""
    global _given_back_s
    if _given_back_s is not None:
        sys.setswitchinterval(_given_back_s)
        _given_back_s = None


os.register_at_fork(after_in_child=_give_back)


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function in a profile; `line` is where it begins."""

    name: str
    file: str = ""
    line: int = 0
    owner: Owner = "packhorse"

    @property
    def label(self) -> str:
        """The name and where it is: `resize (shop.py:31)`."""
        return f"{self.name} ({short_file(self.file)}:{self.line})" if self.file else self.name


class Weighed(msgspec.Struct, frozen=True, array_like=True):
    """What a stack took: places in the list of functions, outermost first; µs; how often it was seen."""

    job_type: str
    functions: tuple[int, ...]
    weight_us: int
    samples: int


class Profile(msgspec.Struct, kw_only=True):
    """A profile of one process, or of several joined."""

    mode: Mode
    rate: int
    duration_ms: int
    samples: int = 0
    missed: int = 0  # samples that could not be taken in time: code in C held the interpreter lock
    processes: int = 1
    functions: list[Function] = []
    stacks: list[Weighed] = []
    notes: list[str] = []  # what whoever reads it must know

    @property
    def total_us(self) -> int:
        """All that was weighed, µs."""
        return sum(stack.weight_us for stack in self.stacks)


class Seen(NamedTuple):
    """What was seen of one thread or run. `thread` is the ident of the thread, None where none runs it."""

    thread: int | None
    job_type: str
    codes: Sequence[CodeType]  # innermost first
    is_idle: bool = False
    times: float = 1.0  # how many it stands for


#: Looks around once. Called in the sampling thread, which holds the interpreter lock.
Look = Callable[[Mode], Iterable[Seen]]
_Key = tuple[str, tuple[int, ...]]


class Sampler:
    """Takes samples for a while. One use."""

    def __init__(
        self,
        look: Look,
        clock: Clock,
        mode: Mode,
        rate: int,
        interrupted: Callable[[FrameType], Seen] | None = None,
    ) -> None:
        """`interrupted` says what the main thread does, called in it; without, it is looked at as all others are."""
        self._look = look
        self._clock = clock
        self._mode: Mode = mode
        self._rate = max(1, min(rate, RATE_MAX))
        self._codes: dict[int, CodeType] = {}  # kept, so that no other takes the number of one
        self._weights_ns: dict[int | None, dict[_Key, list[float]]] = {}
        self._cpu_ns: dict[int, tuple[int, int]] = {}  # by thread: at first, by now
        self._keys = 0
        self._switches_s = sys.getswitchinterval()
        self._asks_s = _ASKS_SHARED_S
        self._main = threading.main_thread().ident or 0
        self._main_number = threading.main_thread().native_id or 0
        self._interrupted = interrupted
        self._interrupts: deque[tuple[int, Seen]] | None = None  # of the main thread: its processor time, and what
        self._interrupted_ns = 0
        self._ever_interrupted = False
        self._is_shared = False  # whether threads compete for the interpreter lock
        self._shared_ns = 0.0  # what handlers in threads used meanwhile
        self._notes: list[str] = []
        self.stopped = threading.Event()
        #: Called at the start and about each second of it.
        self.each_second: Callable[[], None] = lambda: None

    def run(self, duration_ms: int) -> Profile:
        """Sample for `duration_ms`, or until `stopped` is set. Blocks its thread."""
        with self._within(), self._asking():
            start_ns = last_ns = self._clock.boot_ns()
            gap_ns = 1_000_000_000 // self._rate
            end_ns = start_ns + min(duration_ms, DURATION_MS_MAX) * 1_000_000
            samples = missed = 0
            due_ns = start_ns + gap_ns
            self._read_cpu(threading.get_ident())
            while due_ns <= end_ns and not self._wait(due_ns):
                now_ns = self._clock.boot_ns()
                if samples % self._rate == 0:
                    self.each_second()
                self._take(now_ns - last_ns)
                sys.setswitchinterval(self._switches_s)
                last_ns = now_ns
                samples += 1
                late = max(0, now_ns - due_ns) // gap_ns
                missed += late
                due_ns += (late + 1) * gap_ns
            now_ns = self._clock.boot_ns()
            self._take(now_ns - last_ns)  # what is left
        self._take_interrupts()
        return self._finish(samples + 1, missed, (now_ns - start_ns) // 1_000_000)

    def _wait(self, due_ns: int) -> bool:
        """Wait for the time of the next sample, to find other threads near to where they are then.

        Answers whether it is to stop instead. From here until the sample is taken the lock is asked for early: a thread
        that gave it up for us asks for it back as early, and then it would be found where it gives it up by itself.
        """
        sys.setswitchinterval(min(self._switches_s, self._asks_s))
        return self.stopped.wait(max(0, due_ns - self._clock.boot_ns()) / 1e9)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Give the interpreter lock back its interval at the end."""
        global _given_back_s
        _given_back_s = self._switches_s
        try:
            yield
        finally:
            sys.setswitchinterval(self._switches_s)
            _given_back_s = None

    @contextmanager
    def _within(self) -> Iterator[None]:
        """Let the main thread look at itself, if that is wanted and possible."""
        if self._interrupted is None:
            yield
            return
        interrupts = Interrupts(self._keep_interrupt, self._rate)
        self._interrupted_ns = thread_cpu_ns(self._main_number) or 0
        try:
            interrupts.start()
            self._interrupts = deque()
        except NoInterruptsError as error:
            self._notes.append(f"{_BIASED}: {error}")
        try:
            yield
        finally:
            interrupts.stop()

    def _keep_interrupt(self, frame: FrameType) -> None:
        """In the main thread, between any two of its steps: so without a lock."""
        if self._interrupts is not None and self._interrupted is not None:
            self._interrupts.append((thread_cpu_ns(self._main_number) or 0, self._interrupted(frame)))

    def _take_interrupts(self) -> None:
        while self._interrupts:
            now_ns, seen = self._interrupts.popleft()
            if self._mode == "cpu":
                self._add(seen, now_ns - self._interrupted_ns, seen.thread)
            elif seen.job_type not in {THE_WORKER, NO_JOB}:
                self._add(seen, now_ns - self._interrupted_ns, _WITHIN)
            self._interrupted_ns = now_ns
            self._ever_interrupted = True

    def _take(self, since_ns: int) -> None:
        with uncollected():
            looked = list(self._look(self._mode))  # before all else: soon another thread has the lock again
        me = threading.get_ident()
        used_ns = self._read_cpu(me)
        if self._mode == "cpu":
            busy = sum(each_ns > since_ns * _BUSY for each_ns in used_ns.values()) if self._cpu_ns else 2
            self._is_shared = busy > 1
            self._asks_s = _ASKS_SHARED_S if self._is_shared else _ASKS_ALONE_S
        self._take_interrupts()
        for seen in looked:
            weight_ns = since_ns * seen.times
            group = seen.thread if self._mode == "cpu" or self._interrupts is not None else None
            if self._mode == "cpu":
                if seen.thread in {None, me} or seen.is_idle:
                    continue
                if seen.thread == self._main and self._interrupts is not None:
                    continue
                # Where the system does not tell: as if it ran. A thread that began just now has used nothing yet.
                weight_ns = since_ns if not self._cpu_ns else used_ns.get(seen.thread or 0, 0)
                if self._is_shared and seen.thread != self._main and seen.codes:
                    self._shared_ns += weight_ns
            self._add(seen, weight_ns, group)

    def _read_cpu(self, me: int) -> dict[int, int]:
        """Answer what each thread but this one used since the last time, ns."""
        used: dict[int, int] = {}
        if self._mode == "cpu":
            for thread in threading.enumerate():
                ident, number = thread.ident, thread.native_id
                if ident is None or number is None or ident == me or (now_ns := thread_cpu_ns(number)) is None:
                    continue
                first_ns, before_ns = self._cpu_ns.get(ident, (now_ns, now_ns))
                if now_ns < before_ns:  # another thread of the same number
                    first_ns = before_ns = now_ns
                used[ident] = now_ns - before_ns
                self._cpu_ns[ident] = (first_ns, now_ns)
        return used

    def _add(self, seen: Seen, weight_ns: float, group: int | None) -> None:
        for code in seen.codes:
            self._codes.setdefault(id(code), code)
        key = (seen.job_type, tuple(id(code) for code in reversed(seen.codes)))
        weights = self._weights_ns.setdefault(group, {})
        known = weights.get(key)
        if known is None:
            self._keys += 1
            if self._keys > STACKS_MAX:
                key = (seen.job_type, (-1,))
            known = weights.setdefault(key, [0, 0])
        known[0] += weight_ns
        known[1] += 1

    def _finish(self, samples: int, missed: int, duration_ms: int) -> Profile:
        profile = Profile(mode=self._mode, rate=self._rate, duration_ms=duration_ms, samples=samples, missed=missed)
        joined: dict[_Key, list[float]] = {}
        for thread, weights in self._weights_ns.items():
            factor = self._factor(thread, weights)
            for key, (weight_ns, count) in weights.items():
                known = joined.setdefault(key, [0, 0])
                known[0] += weight_ns * factor
                known[1] += count
        used_ns = sum(now_ns - first_ns for first_ns, now_ns in self._cpu_ns.values())
        if (unseen_ns := used_ns - sum(weight_ns for weight_ns, _ in joined.values())) > 0 and self._mode == "cpu":
            joined[UNSEEN, ()] = [unseen_ns, 0]
        places: dict[int, int] = {}
        for (job_type, codes), (weight_ns, count) in joined.items():
            functions = tuple(self._place(code, places, profile.functions) for code in codes)
            if weight_ns >= 1_000:
                profile.stacks.append(Weighed(job_type, functions, round(weight_ns / 1_000), int(count)))
        profile.notes += self._say(profile)
        return profile

    def _say(self, profile: Profile) -> list[str]:
        """Answer what whoever reads it must know."""
        notes = self._notes[:]
        first_ns, now_ns = self._cpu_ns.get(self._main, (0, 0))
        gaps = (now_ns - first_ns) * self._rate // 1_000_000_000
        if self._interrupts is not None and not self._ever_interrupted and gaps >= _NEVER_INTERRUPTED:
            notes.append("the main thread is not in this profile: something else took its signal, SIGURG")
        if self._shared_ns / 1_000 > profile.total_us / 10:
            notes.append(
                "handlers in threads competed for the interpreter lock: where they often write or wait for a moment, "
                'that is shown too much; with one job at a time, or executor="process", it is not'
            )
        if profile.missed > (profile.samples + profile.missed) // 5:
            notes.append(
                f"{profile.missed:,} of {quantity(profile.samples + profile.missed, 'sample')} came late: "
                "the machine is busy, or "
                "code in C held the interpreter lock; what threads used meanwhile is put on the stack seen next"
            )
        return notes

    def _factor(self, thread: int | None, weights: dict[_Key, list[float]]) -> float:
        """Share out what a thread used while it looked idle: by what it was seen at, if it was seen often enough.

        In mode `wall`: of what the main thread was seen at, what was not processor time is what it waited there.
        """
        if self._mode == "wall" and thread == self._main:
            looked_ns = sum(weight_ns for weight_ns, _ in weights.values())
            within_ns = sum(weight_ns for weight_ns, _ in self._weights_ns.get(_WITHIN, {}).values())
            return max(0.0, 1 - within_ns / looked_ns) if looked_ns else 1.0
        if thread not in self._cpu_ns:
            return 1.0
        first_ns, now_ns = self._cpu_ns[thread]
        seen_ns = sum(weight_ns for weight_ns, _ in weights.values())
        return max(1.0, min((now_ns - first_ns) / seen_ns, 10.0)) if seen_ns > 0 else 1.0

    def _place(self, number: int, places: dict[int, int], functions: list[Function]) -> int:
        place = places.get(number)
        if place is None:
            if number < 0 or len(functions) >= FUNCTIONS_MAX:
                function = Function(_TOO_MANY)
            else:
                function = function_of(self._codes[number])
            place = places[number] = len(functions)
            functions.append(function)
        return place


def function_of(code: CodeType) -> Function:
    """Answer what a profile says of a function."""
    name = code.co_qualname[:NAME_CHARS_MAX]
    file = code.co_filename[-NAME_CHARS_MAX:]
    return Function(name, file, code.co_firstlineno, owner_of(code.co_filename))


def join(profiles: Sequence[Profile]) -> Profile:
    """Make one profile of those of several processes; the first says mode, rate and duration."""
    whole = msgspec.structs.replace(profiles[0], functions=[], stacks=[], notes=[], samples=0, missed=0, processes=0)
    places: dict[Function, int] = {}
    stacks: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for profile in profiles:
        moved = [places.setdefault(function, len(places)) for function in profile.functions]
        for stack in profile.stacks:
            key = (stack.job_type, tuple(moved[place] for place in stack.functions))
            known = stacks.setdefault(key, [0, 0])
            known[0] += stack.weight_us
            known[1] += stack.samples
        whole.samples += profile.samples
        whole.missed += profile.missed
        whole.processes += profile.processes
        whole.notes += [note for note in profile.notes if note not in whole.notes]
    whole.functions = list(places)
    whole.stacks = [Weighed(*key, weight_us, samples) for key, (weight_us, samples) in stacks.items()]
    return whole


class Row(NamedTuple):
    """A line of a summary."""

    name: str
    self_us: int
    total_us: int


def by_function(profile: Profile) -> list[Row]:
    """Answer what functions took, themselves and with all they called; the most expensive first."""
    own = [0] * len(profile.functions)
    total = [0] * len(profile.functions)
    for stack in profile.stacks:
        if stack.functions:
            own[stack.functions[-1]] += stack.weight_us
        for place in set(stack.functions):  # one that calls itself counts once
            total[place] += stack.weight_us
    rows = [Row(function.label, own[at], total[at]) for at, function in enumerate(profile.functions)]
    return sorted((row for row in rows if row.total_us), key=lambda row: (-row.self_us, -row.total_us, row.name))


def by_job_type(profile: Profile) -> list[Row]:
    """Answer what job types took; the most expensive first."""
    totals: dict[str, int] = {}
    for stack in profile.stacks:
        totals[stack.job_type] = totals.get(stack.job_type, 0) + stack.weight_us
    return sorted((Row(name, 0, total) for name, total in totals.items()), key=lambda row: (-row.total_us, row.name))


# ---- files -----------------------------------------------------------------------------------------------


def folded(profile: Profile) -> str:
    """Answer the profile as folded stacks: `type;outer;inner µs`, a line each, as flame graph tools read them."""
    lines: dict[str, int] = {}
    for stack in profile.stacks:
        names = [stack.job_type, *(profile.functions[place].label for place in stack.functions)]
        line = ";".join(map(_fold, names))
        lines[line] = lines.get(line, 0) + stack.weight_us
    return "".join(f"{line} {weight_us}\n" for line, weight_us in sorted(lines.items()))


def _fold(name: str) -> str:
    return clean(name).replace(";", ":") or "(no name)"


def speedscope(profile: Profile, name: str) -> bytes:
    """Answer the profile as a file for https://www.speedscope.app: a profile per job type, the heaviest first."""
    frames: list[dict[str, object]] = [
        {"name": clean(function.name), "file": clean(function.file), "line": function.line}
        for function in profile.functions
    ]
    profiles = []
    for row in by_job_type(profile) or [Row("(nothing was seen)", 0, 0)]:
        stacks = sorted((s.functions, s.weight_us) for s in profile.stacks if s.job_type == row.name)
        root = len(frames)
        frames.append({"name": clean(row.name)})
        profiles.append(
            {
                "type": "sampled",
                "name": clean(row.name),
                "unit": "microseconds",
                "startValue": 0,
                "endValue": row.total_us,
                "samples": [[root, *functions] for functions, _ in stacks],
                "weights": [weight_us for _, weight_us in stacks],
            }
        )
    return msgspec.json.encode(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": clean(name),
            "exporter": "packhorse",
            "activeProfileIndex": 0,
            "shared": {"frames": frames},
            "profiles": profiles,
        }
    )


def percent(part: int, whole: int) -> str:
    """Answer a share as people read it."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    return f"{share:.1f} %" if share < 99.95 else f"{math.floor(share)} %"
