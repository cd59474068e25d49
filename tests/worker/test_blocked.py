"""When a loop counts as blocked, what is said of it, and the thread that watches a worker in a program."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time

import pytest
from working import ended, new_app, until, work

from packhorse import Packhorse
from packhorse.observe import metrics
from packhorse.observe.blocked import QUIET_MS, BlockLog, BlockWatch, Found, LoopWatcher
from packhorse.observe.stacks import Frame

HERE = Found([Frame("/app/shop.py", 31, "resize"), Frame("/app/shop.py", 12, "thumbnail")], "01a2", "thumbnail")


def watch_from(now_ms: int, blocked_ms: int = 500, slack_ms: int = 200) -> BlockWatch:
    watch = BlockWatch(blocked_ms, slack_ms)
    watch.look(now_ms, now_ms, busy=True)
    return watch


def test_a_loop_is_blocked_when_it_has_surely_not_turned_for_so_long() -> None:
    watch = watch_from(10_000)
    assert watch.look(10_600, 10_000, busy=True) is None
    assert watch.look(10_700, 10_000, busy=True) is None
    assert watch.look(10_701, 10_000, busy=True) == "begins"
    assert watch.look(11_500, 10_000, busy=True) is None  # said already
    assert watch.since_ms == 10_000
    assert watch.look(12_400, 12_300, busy=True) == "over"
    assert watch.lasted_ms == 2_300
    assert watch.look(12_600, 12_500, busy=True) is None


def test_a_loop_without_jobs_or_a_watch_that_is_off_is_never_blocked() -> None:
    idle, off = watch_from(10_000), watch_from(10_000, blocked_ms=0)
    for now_ms in range(10_200, 15_000, 200):
        assert idle.look(now_ms, 10_000, busy=False) is None
        assert off.look(now_ms, 10_000, busy=True) is None


def test_time_in_which_nobody_could_look_is_not_counted() -> None:
    """A machine that slept, or had no time for the keeper either."""
    watch = watch_from(10_000)
    assert watch.look(70_000, 10_000, busy=True) is None
    assert watch.look(70_200, 70_100, busy=True) is None
    assert watch.look(70_400, 70_100, busy=True) is None
    assert watch.look(70_900, 70_100, busy=True) == "begins"


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]


def test_one_warning_in_ten_seconds_counts_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    lines = BlockLog(logging.getLogger("test-blocked"), "the event loop")
    lines.begins(20_000, 700, HERE)
    lines.over(900, HERE)
    for now_ms in (22_000, 24_000):
        lines.begins(now_ms, 700, HERE)
        lines.over(3_100, HERE)
    lines.begins(20_000 + QUIET_MS, 800, HERE)
    stack = "in shop.py:31 resize; all its jobs wait. The stack: shop.py:31 resize < shop.py:12 thumbnail"
    assert lines_of(caplog) == [
        f"the event loop has been blocked for 0.7 s {stack}",
        "the event loop turns again; it was blocked for 0.9 s in shop.py:31 resize",
        f"the event loop has been blocked for 0.8 s {stack}; 2 more times since the last warning, up to 3.1 s",
    ]
    assert caplog.records[0].job_id == "01a2"
    assert caplog.records[0].job_type == "thumbnail"


def test_one_that_goes_on_is_said_even_if_it_began_in_the_quiet_time(caplog: pytest.LogCaptureFixture) -> None:
    lines = BlockLog(logging.getLogger("test-blocked"), "the event loop")
    lines.begins(20_000, 700, HERE)
    lines.over(900, HERE)
    lines.begins(25_000, 700, HERE)
    lines.still(29_000, 4_700, HERE)
    assert len(lines_of(caplog)) == 2
    lines.still(31_000, 6_700, HERE)
    lines.still(32_000, 7_700, HERE)
    assert len(lines_of(caplog)) == 3
    assert "blocked for 6.7 s in" in lines_of(caplog)[2]
    assert "more times" not in lines_of(caplog)[2]


def test_names_cannot_forge_lines() -> None:
    """C22: functions may be named by whoever makes code."""
    found = Found([Frame("/app/a\nb.py", 1, "x\n2026 INFO paid \x1b]0;\u202e")])
    for said in (found.place, found.yours):
        assert said.isprintable()
        assert "\\n2026" in said


# ---- a worker in a program -----------------------------------------------------------------------------------


def blocking_app(**settings: object) -> Packhorse:
    app = new_app(**settings)

    @app.task
    async def sleep_badly(ms: int, secret: str = "") -> None:
        time.sleep(ms / 1000)

    @app.task
    async def hold_the_lock(ms: int) -> None:
        ctypes.PyDLL(None).usleep(ms * 1_000)

    @app.task
    async def behave() -> None:
        await asyncio.sleep(0)

    return app


def blocked_count(app: Packhorse) -> float:
    return sum(cell.read()[0] for metric, _, cell in app.meters.read() if metric is metrics.LOOP_BLOCKED)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "packhorse-watcher"]


def test_sleeping_on_the_loop_of_a_program_is_said_with_its_job(caplog: pytest.LogCaptureFixture) -> None:
    app = blocking_app(blocked="200ms")

    async def scenario() -> str:
        async with app.worker():
            job = await app.tasks["sleep_badly"].aenqueue(ms=900, secret="canary-77")
            await ended(app, job)
            await until(lambda: len(lines_of(caplog)) == 2)
            await until(lambda: blocked_count(app) == 1)
            return job.id

    job_id = work(scenario)
    begins, over = lines_of(caplog)
    assert "in test_blocked.py" in begins
    assert "sleep_badly" in begins
    assert "turns again" in over
    assert caplog.records[0].job_id == job_id
    assert "canary-77" not in caplog.text  # C20
    assert not watchers()


def test_c_code_that_holds_the_lock_in_a_program_is_said_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    app = blocking_app(blocked="200ms")

    async def scenario() -> None:
        async with app.worker():
            await ended(app, await app.tasks["hold_the_lock"].aenqueue(ms=1_200))
            await until(lambda: len(lines_of(caplog)) == 2)

    work(scenario)
    assert "has been blocked" in lines_of(caplog)[0]


def test_the_thread_starts_with_the_first_job_and_sleeps_without_any() -> None:
    app = blocking_app()

    async def scenario() -> None:
        async with app.worker() as worker:
            assert not watchers()
            await ended(app, await app.tasks["behave"].aenqueue())
            assert len(watchers()) == 1
            watcher = worker._watcher
            await until(lambda: not watcher._awake.is_set())  # it waits for work, not for time
            await ended(app, await app.tasks["behave"].aenqueue())
        assert not watchers()

    work(scenario)


def test_a_stop_right_after_a_block_does_not_block_the_loop_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that looks waits for the loop to turn, while the loop, in `stop`, waits for the thread."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        watcher = LoopWatcher(20, lambda: 1, lambda: None)
        looking = threading.Event()

        def find_slowly() -> Found:
            looking.set()
            watcher._stopping.wait(20)
            return Found()

        monkeypatch.setattr(watcher, "_find", find_slowly)
        watcher.work()
        looking.wait(20)  # this blocks the loop
        await asyncio.sleep(0)
        began_s = loop.time()
        watcher.stop()
        return loop.time() - began_s

    assert work(scenario) < 2
    assert not watchers()


def test_no_thread_watches_when_it_is_off(caplog: pytest.LogCaptureFixture) -> None:
    app = blocking_app(blocked=0)

    async def scenario() -> None:
        async with app.worker():
            await ended(app, await app.tasks["sleep_badly"].aenqueue(ms=400))
            assert not watchers()

    work(scenario)
    assert not lines_of(caplog)
