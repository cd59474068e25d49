"""A profile is true: what it shows is what handlers measured themselves, wherever they give the interpreter lock up."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from working import new_app, until

import packhorse
from packhorse import Packhorse
from packhorse.clock import SYSTEM_CLOCK, thread_cpu_ns
from packhorse.event_loop import new_event_loop
from packhorse.observe import interrupts
from packhorse.observe.profiling import Mode, Profile, Sampler, Seen, by_function, by_job_type
from packhorse.observe.stacks import Stack, cut, place_of, walk
from packhorse.worker.executors import HandlerChild
from packhorse.worker.inspection import Sample, pack
from packhorse.worker.inspector import Inspector, RunnerView, is_own

#: What handlers used in each part, ns: measured by themselves.
SPENT = {"crunch": 0, "scribble": 0}
DONE = threading.Event()
TURNS = itertools.count()
#: A profile is taken until there were so many looks as it would have in this time, and half of it was used.
MS = 1_500
#: Samples a second.
RATE = 200


@pytest.fixture
def accepted() -> Iterator[None]:
    """This process takes the signal, as a runner does."""
    before = signal.getsignal(interrupts.SIGNAL)
    interrupts.accept()
    yield
    signal.signal(interrupts.SIGNAL, before)


def used_ns() -> int:
    return thread_cpu_ns(threading.get_native_id()) or 0


def crunch(us: int) -> None:
    start_ns = now_ns = used_ns()
    while now_ns < start_ns + us * 1_000:
        sum(range(100))
        now_ns = used_ns()
    SPENT["crunch"] += now_ns - start_ns


def scribble(us: int, null: int) -> None:
    """Write, which gives the interpreter lock up each time."""
    start_ns = now_ns = used_ns()
    while now_ns < start_ns + us * 1_000:
        os.write(null, b"a line of a log\n")
        now_ns = used_ns()
    SPENT["scribble"] += now_ns - start_ns


def some(crunch_us: int, null: int) -> None:
    """One after the other, 4 to 1; of changing length, so that it does not beat with the ticks of the system."""
    length_us = int(crunch_us * (0.5 + next(TURNS) * 0.618034 % 1))
    crunch(length_us)
    scribble(length_us // 4, null)


def app_that_writes(crunch_us: int) -> Packhorse:
    app = new_app(blocked=0)
    null = os.open(os.devnull, os.O_WRONLY)

    @app.task(timeout="10m")
    async def on_loop() -> None:
        while not DONE.is_set():
            some(crunch_us, null)
            await asyncio.sleep(0)

    @app.task(timeout="10m")
    def in_thread() -> None:
        while not DONE.is_set():
            some(crunch_us, null)

    return app


def profiled(
    app: Packhorse,
    name: str,
    loop: Callable[[], asyncio.AbstractEventLoop],
    jobs: int = 1,
    also: str = "",
    mode: Mode = "cpu",
) -> Profile:
    """Profile jobs while they run; `SPENT` is what they used meanwhile.

    It is taken until there is enough to see: a share needs looks and processor time, however long that takes.
    """

    async def main() -> Profile:
        async with asyncio.timeout(100), app.worker(shutdown_timeout=0 if also else 5) as worker:
            assert worker.engine is not None
            view = RunnerView(worker.engine, asyncio.get_running_loop(), threading.get_ident())
            names = [also] * bool(also) + [name] * jobs
            for each in names:
                await app.tasks[each].aenqueue()
            await until(lambda: len(view._runs()) == len(names))
            looks = itertools.count(1)

            def look(mode: Mode) -> Iterator[Seen]:  # not in the loop, whose processor time is what is looked at
                if next(looks) > MS * RATE // 1_000 and sum(SPENT.values()) > MS * 500_000:
                    sampler.stopped.set()
                return view.seen(mode)

            sampler = Sampler(look, SYSTEM_CLOCK, mode, RATE, view.interrupted)
            SPENT.update(crunch=0, scribble=0)
            profile = await asyncio.get_running_loop().run_in_executor(None, sampler.run, 80_000)
            DONE.set()
            return profile

    DONE.clear()
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


def shares(profile: Profile) -> tuple[float, float]:
    """What `crunch` took of both, %: in the profile, and in truth."""
    total = {row.name.partition(" ")[0]: row.total_us for row in by_function(profile)}
    seen = total.get("crunch", 0), total.get("scribble", 0)
    return 100 * seen[0] / (sum(seen) or 1), 100 * SPENT["crunch"] / (sum(SPENT.values()) or 1)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("crunch_us", [80, 2_000])
def test_what_runs_on_the_loop_is_shown_as_it_is(
    accepted: None, crunch_us: int, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    profile = profiled(app_that_writes(crunch_us), "on_loop", loop)
    seen, true = shares(profile)
    assert seen == pytest.approx(true, abs=15)
    assert not any("main thread" in note for note in profile.notes)
    assert profile.total_us == pytest.approx(sum(SPENT.values()) / 1_000, rel=0.2)


def test_what_runs_in_a_thread_is_shown_as_it_is(accepted: None) -> None:
    profile = profiled(app_that_writes(1_000), "in_thread", new_event_loop)
    seen, true = shares(profile)
    assert seen == pytest.approx(true, abs=15)


def test_it_is_said_where_threads_that_compete_cannot_be_shown_as_they_are(accepted: None) -> None:
    profile = profiled(app_that_writes(200), "in_thread", new_event_loop, jobs=2)
    assert any("competed for the interpreter lock" in note for note in profile.notes)


def test_in_mode_wall_what_computes_is_shown_as_it_is_and_what_waits_too(accepted: None) -> None:
    app = app_that_writes(80)

    @app.task(timeout="10m")
    async def waits() -> None:
        await asyncio.sleep(600)

    profile = profiled(app, "on_loop", new_event_loop, also="waits", mode="wall")
    total = {row.name.partition(" ")[0]: row.total_us for row in by_function(profile)}
    # At least the processor time it took; what the thread waited for a processor goes where it gave up the lock.
    assert total["crunch"] > 0.85 * SPENT["crunch"] / 1_000
    by_type = {row.name: row.total_us for row in by_job_type(profile)}
    assert by_type["waits"] == pytest.approx(profile.duration_ms * 1_000, rel=0.2)


def test_calls_that_wait_are_not_disturbed_and_what_is_started_does_not_inherit(accepted: None) -> None:
    app = new_app(blocked=0)
    found: list[object] = []

    @app.task(timeout="10m")
    async def waits_in_every_way() -> None:
        one, other = socket.socketpair()
        with one, other, sqlite3.connect(":memory:") as db:
            while not DONE.is_set():
                crunch(5_000)
                start_ms = SYSTEM_CLOCK.boot_ms()
                ctypes.CDLL(None).usleep(20_000)  # ends early with EINTR if a signal comes
                found.append(SYSTEM_CLOCK.boot_ms() - start_ms >= 19)
                found.append(not select.select([one], [], [], 0.005)[0])
                other.sendall(b"x" * 100_000)
                found.append(sum(len(one.recv(50_000, socket.MSG_WAITALL)) for _ in range(2)) == 100_000)
                found.append(db.execute("SELECT length(zeroblob(1000))").fetchone() == (1_000,))
                await asyncio.sleep(0)
        asks = "import signal as s; print(s.getsignal(s.SIGURG) == s.SIG_DFL, s.pthread_sigmask(0, []))"
        done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
        found.append(done.stdout == "True set()\n")
        pid = os.fork()
        if pid == 0:
            crunch(100_000)
            os._exit(0)
        found.append(os.waitpid(pid, 0)[1] == 0)

    profiled(app, "waits_in_every_way", new_event_loop)
    assert len(found) > 20
    assert all(found)


def test_a_signal_that_the_user_took_is_left_alone_and_the_profile_says_so() -> None:
    taken = []
    before = signal.signal(interrupts.SIGNAL, lambda number, frame: taken.append(number))
    try:
        profile = profiled(app_that_writes(2_000), "on_loop", new_event_loop)
    finally:
        signal.signal(interrupts.SIGNAL, before)
    assert any("too much where it writes" in note and "SIGURG is taken" in note for note in profile.notes)
    assert "crunch" in {row.name.partition(" ")[0] for row in by_function(profile)}
    assert not taken


def test_no_interrupt_comes_after_the_end(accepted: None) -> None:
    came: list[object] = []
    asked = interrupts.Interrupts(came.append, 200)
    asked.start()
    try:
        end_ns = used_ns() + 10_000_000_000
        while len(came) <= 5:
            crunch(20_000)
            assert used_ns() < end_ns
    finally:
        asked.stop()
    count = len(came)
    crunch(100_000)
    assert len(came) == count


def test_an_error_of_an_interrupt_is_not_raised_in_a_handler(accepted: None) -> None:
    nothing: dict[object, None] = {}
    asked = interrupts.Interrupts(nothing.__getitem__, 200)
    asked.start()
    try:
        crunch(100_000)
    finally:
        asked.stop()


def test_a_time_limit_of_the_user_by_a_signal_is_raised_within_an_interrupt_too(accepted: None) -> None:
    def expired(number: int, frame: object) -> None:
        raise TimeoutError("the user's")

    before = signal.signal(signal.SIGUSR1, expired)
    asked = interrupts.Interrupts(lambda frame: signal.raise_signal(signal.SIGUSR1), 200)
    asked.start()
    try:
        with pytest.raises(TimeoutError, match="the user's"):
            crunch(1_000_000)
    finally:
        asked.stop()
        signal.signal(signal.SIGUSR1, before)


def test_a_profile_whose_asker_is_gone_leaves_nothing_on(accepted: None) -> None:
    class View:
        def children(self) -> list[HandlerChild]:
            return []

        def stacks(self) -> list[Stack]:
            return []

        def seen(self, mode: Mode) -> Iterator[Seen]:
            yield from ()

        def interrupted(self, frame: object) -> Seen:
            return Seen(threading.get_ident(), "t", [])

    switches_s = sys.getswitchinterval()
    asker, end = socket.socketpair()
    Inspector(end, View()).start()
    asker.sendall(pack(Sample(1, 60_000, 100, "cpu")))
    wait_for(lambda: interrupts._take is not None)
    asker.close()
    wait_for(lambda: interrupts._take is None and sys.getswitchinterval() == switches_s)
    end.close()


def frames_through(*files: str) -> list[FrameType]:
    """Answer frames of functions in these files, innermost first."""
    call = sys._getframe
    for file in files:
        names: dict[str, Any] = {"call": call}
        exec(compile("def frame():\n    return call()", file, "exec"), names)
        call = names["frame"]
    return walk(call())[: len(files)]


def test_what_the_worker_does_itself_is_not_put_down_to_the_only_job() -> None:
    """Before Python 3.12 the job of a task cannot be told; where one job runs, tasks are taken for its own."""
    ours = str(Path(packhorse.__file__).parent / "worker" / "settler.py")
    for inner_file, own in ((ours, True), (asyncio.events.__file__, False)):
        for called in (json.__file__, "/app/shop.py"):
            frames = frames_through(called, inner_file, asyncio.runners.__file__, "<frozen runpy>")
            inner, start = cut(frames, place_of)
            assert [place_of(frame)[0] for frame in inner] == [called]
            assert is_own(frames, inner, start) is own


def wait_for(condition: Callable[[], bool], limit_ms: int = 60_000) -> None:
    end_ms = SYSTEM_CLOCK.boot_ms() + limit_ms
    while not condition():
        assert SYSTEM_CLOCK.boot_ms() < end_ms
        DONE.wait(0.01)
