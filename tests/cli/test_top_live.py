"""`packhorse top` on a real terminal: keys, sizes, signals, a worker that works, a store that goes away."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import Settlement, WorkerInfo
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import JobError, JobSpec, State
from tests.http.process import ServerProcess
from tests.proxy import FaultProxy

from .kit import clean_environ, process
from .screen import SCREEN_OFF, SCREEN_ON, Screen
from .serving import until

URL = {"PACKHORSE_URL": "sqlite:///jobs.db"}

APP = """
import asyncio, os, time
from packhorse import Packhorse, Fail

app = Packhorse("sqlite:///jobs.db")

@app.task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)

@app.task
async def refuse() -> None:
    raise Fail("no such address")

@app.task
async def block() -> None:
    while not os.access("go", os.F_OK):
        time.sleep(0.05)
"""


def store(do: Callable[[SQLiteBackend], Awaitable[Any]], path: str = "jobs.db") -> Any:
    async def main() -> Any:
        backend = SQLiteBackend(f"sqlite:///{path}", SYSTEM_CLOCK)
        await backend.migrate()
        await backend.open()
        try:
            return await do(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


def add(count: int = 1, path: str = "jobs.db", **fields: Any) -> None:
    ids = CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)
    specs = [JobSpec(id=job_id, **{"type": "nap", **fields}) for job_id in ids]
    store(lambda backend: backend.enqueue(specs), path)


@contextmanager
def top(*args: str, environ: dict[str, str] | None = None, **size: int) -> Iterator[Screen]:
    with Screen(Path.cwd(), "top", *args, environ=URL | (environ or {}), **size) as screen:
        yield screen


def test_keys_turn_the_pages_and_q_ends_it_clean() -> None:
    for at in range(40):
        add(1, queue=f"q{at:02}")
    with top() as screen:
        frame = screen.shows("q00")
        assert len(frame.splitlines()) == 24
        assert "QUEUE 1-" in frame
        screen.press("j")
        screen.until(lambda frame: "q01" in frame and "q00" not in frame)
        screen.press("\x1b[B")
        screen.until(lambda frame: "q02" in frame and "q01" not in frame)
        screen.press("G")
        screen.shows("q39")
        screen.press("f")
        screen.shows("SAME ERROR")
        screen.press("w")
        screen.until(lambda frame: "none alive" in frame and "SAME ERROR" not in frame)
        screen.press("?")
        screen.shows("this page")
        screen.press("\x1b")
        screen.shows("q00")
        screen.press("+")
        screen.shows("every 2s")
        screen.press("p")
        screen.shows("paused, as of")
        screen.press("p")
        screen.shows("answers in")
        screen.press("\x07\x1b[200~\xff")  # keys that mean nothing
        screen.press("q")
        screen.ends(0)


def test_it_follows_the_size_of_the_window() -> None:
    add(3)
    with top(environ={"COLUMNS": "70", "LINES": "20"}) as screen:  # as some shells hand on what was true once
        screen.until(lambda frame: len(frame.splitlines()) == 24)
        screen.resize(120, 40)
        frame = screen.until(lambda frame: len(frame.splitlines()) == 40)
        assert "WAITING" in frame
        screen.resize(20, 5)
        screen.shows("too small")
        screen.resize(60, 15)
        frame = screen.until(lambda frame: len(frame.splitlines()) == 15)
        assert max(map(len, frame.splitlines())) <= 60
        screen.press("q")
        screen.ends(0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_terminal_given_back(number: signal.Signals, code: int) -> None:
    add()
    with top() as screen:
        screen.shows("QUEUE")
        if number is signal.SIGINT:
            screen.press("\x03")  # as the terminal itself makes it
        else:
            screen.process.send_signal(number)
        screen.ends(code)


def test_it_can_be_stopped_and_goes_on() -> None:
    """Ctrl+Z. Whoever starts it here is no shell, so the signal that stops it is sent by hand."""
    add()
    with top() as screen:
        screen.shows("QUEUE")
        screen.process.send_signal(signal.SIGTSTP)
        until(lambda: Path(f"/proc/{screen.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        until(lambda: screen.read() or screen.output.count(SCREEN_OFF) == 1)
        screen.output = ""
        screen.process.send_signal(signal.SIGCONT)
        screen.shows("QUEUE")
        assert screen.output.count(SCREEN_ON) == 1
        screen.press("q")
        screen.output = SCREEN_ON  # the first, which was cut off above
        screen.ends(0)


@contextmanager
def worker(directory: Path) -> Iterator[None]:
    """A real worker of the app above."""
    (directory / "shop.py").write_text(APP)
    command = [sys.executable, "-m", "packhorse", "worker", "shop:app", "-c", "4"]
    with (
        (directory / "worker.log").open("wb") as log,
        subprocess.Popen(command, env=clean_environ() | URL, stdout=log, stderr=log, cwd=directory) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()  # stop now, whatever still runs
            process.wait(30)


def test_a_worker_at_work_is_seen(directory: Path) -> None:
    add(3, type="refuse")
    add(2, payload=b'{"seconds": 60}')
    with worker(directory), top(columns=120, lines=40) as screen:
        screen.until(lambda frame: "2/4" in frame and "failed 3" in frame, 60)
        frame = screen.shows("Fail: no such address")
        assert "no worker" not in frame
        assert "nap" in frame.partition("RUNS")[2]
        before = len(screen.frames)
        add(20, type="refuse")
        screen.until(lambda frame: re.search(r"failed 23 \+[0-9]+ in ", frame) and "dead" in frame)
        # Any of the frames since then: five seconds later `in 0/s` is true again.
        assert any(re.search(r"\bin [0-9.,]+/s", frame) and "in 0/s" not in frame for frame in screen.frames[before:])
        screen.press("q")
        screen.ends(0)


def test_a_handler_that_blocks_its_loop_is_seen(directory: Path) -> None:
    add(1, type="block")
    with worker(directory), top() as screen:
        screen.until(lambda frame: "! event loop blocked for" in frame and "shop.py" in frame)
        (directory / "go").touch()
        screen.press("q")
        screen.ends(0)


def test_trouble_of_a_worker_and_a_poison_job_are_seen() -> None:
    add(1, type="evil\x1b[31m")
    trouble = "event loop blocked for 3 s in shop.py:31\x1b[2J"

    async def spoil(backend: SQLiteBackend) -> None:
        info = WorkerInfo(id="w1", host="box", pid=7, queues=("default",), concurrency=4, trouble=trouble)
        await backend.heartbeat(info, 30_000)
        (job,) = await backend.claim(["default"], 1, 30_000, "w1")
        error = JobError(attempt=1, at_ms=SYSTEM_CLOCK.now_ms(), kind="ValueError", message="poison\nforged line")
        settlement = Settlement(id=job.id, token=job.token, state=State.SCHEDULED, delay_ms=60_000, error=error)
        await backend.settle([settlement])

    store(spoil)
    with top() as screen:
        frame = screen.shows(r"! event loop blocked for 3 s in shop.py:31\x1b[2J")
        assert "box 7" in frame
        assert "retries ValueError: poison" in frame
        assert "forged" not in frame
        assert "\x1b[2J" not in screen.output
        screen.press("q")
        screen.ends(0)


def silent_for(frame: str) -> int:
    """Answer the seconds that a frame says the store has been silent; 0 if it says nothing of the kind."""
    return int((re.findall(r"does not answer for ([0-9]+)s", frame) or [0])[0])


def test_a_server_that_goes_away_is_shown_and_survived(directory: Path) -> None:
    add(5)
    with (
        ServerProcess(directory, f"sqlite:///{directory / 'jobs.db'}") as server,
        top(environ={"PACKHORSE_URL": server.url}) as screen,
    ):
        screen.shows("answers in")
        server.kill()
        frame = screen.shows("does not answer for")
        assert "pending 5" in frame  # what was known stays
        seconds = silent_for(frame)
        screen.until(lambda frame: silent_for(frame) - seconds > 0)  # they are counted
        server.start()
        frame = screen.shows("answers in", 60)
        assert "does not answer" not in frame
        add(2)
        screen.shows("pending 7")
        screen.press("q")
        screen.ends(0)


def test_a_server_that_hangs_is_shown_before_it_is_given_up(directory: Path) -> None:
    add(5)
    with (
        ServerProcess(directory, f"sqlite:///{directory / 'jobs.db'}") as server,
        FaultProxy(server.port) as proxy,
        top(environ={"PACKHORSE_URL": proxy.url(server.url)}) as screen,
    ):
        screen.shows("answers in")
        proxy.stall()
        screen.shows("does not answer for")
        screen.press("w")
        screen.until(lambda frame: "nothing failed" not in frame)  # keys work meanwhile
        proxy.resume()
        screen.until(lambda frame: "does not answer" not in frame, 60)
        screen.press("q")
        screen.ends(0)


def test_a_file_that_is_replaced_is_read_anew() -> None:
    add(5)
    add(2, path="backup.db")
    with top() as screen:
        screen.shows("pending 5")
        for suffix in ("", "-wal", "-shm"):
            Path(f"jobs.db{suffix}").unlink(missing_ok=True)
        screen.shows("does not answer for")
        Path("backup.db").rename("jobs.db")
        screen.shows("pending 2")
        screen.press("q")
        screen.ends(0)


READS_MAIL, UNKNOWN = "r" + "0123456789" * 3, "u" + "0123456789" * 3


def test_tokens_see_their_queues_or_one_line(directory: Path) -> None:
    add(3, queue="mail")
    add(4, queue="secret")
    url = f"sqlite:///{directory / 'jobs.db'}"
    with ServerProcess(directory, url, PACKHORSE_TOKENS=f"read@mail:{READS_MAIL}") as server:
        asked = {"PACKHORSE_URL": server.url}
        with top(environ=asked | {"PACKHORSE_TOKEN": READS_MAIL}) as screen:
            frame = screen.shows("pending 3")
            assert "secret" not in frame
            screen.press("q")
            screen.ends(0)
        with top(environ=asked | {"PACKHORSE_TOKEN": UNKNOWN}) as screen:
            screen.ends(2)
            assert SCREEN_ON not in screen.output
            assert screen.output.count("\n") == 1
            assert UNKNOWN not in screen.output


def test_without_colours() -> None:
    add()
    with top(environ={"NO_COLOR": "1"}) as screen:
        screen.shows("no worker")
        screen.press("q")
        screen.ends(0)
        assert "\x1b[31m" not in screen.output
        assert "\x1b[1;31m" not in screen.output


def test_on_a_terminal_that_knows_no_blocks() -> None:
    add()
    with top(environ={"PYTHONIOENCODING": "ascii"}) as screen:
        frame = screen.shows("no worker")
        assert frame.isascii()
        assert "\\u" not in frame
        screen.press("q")
        screen.ends(0)


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_one_frame(term: str) -> None:
    add()
    with top(environ={"TERM": term}) as screen:
        screen.ends(0)
        assert SCREEN_ON not in screen.output
        assert "pending 1" in screen.output


def test_elsewhere_than_on_a_terminal_it_prints_one_frame_and_ends() -> None:
    add(3)
    done = process("top", environ=URL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "pending 3" in done.stdout
    assert "in 0/s" in done.stdout
    assert "q quit" not in done.stdout
    assert process("top", "--once", environ=URL | {"COLUMNS": "60", "LINES": "12"}).stdout.count("\n") <= 12


def test_json_is_one_document() -> None:
    add(3)
    done = process("top", "--json", environ=URL)
    shown = json.loads(done.stdout)
    assert done.stdout.isascii()
    assert shown["states"]["pending"] == 3
    assert shown["rates"] == {"in": 0, "out": 0, "failed": 0, "at_least": False}
    assert shown["queues"]["default"]["has_worker"] is False
    assert 900 <= shown["span_ms"] <= 60_000


def test_what_cannot_be_is_one_line() -> None:
    add()
    for args, said in (
        (("--interval", "10ms"), "write 1s"),
        (("--interval", "soon"), "is not a duration"),
        (("--interval", "2d"), "out of bounds"),
        (("-q", "a b"), "cannot name a queue"),
        (("--url", "sqlite:///nothing.db"), "there is no file"),
        (("--url", "memory://"), "one process"),
    ):
        done = process("top", *args, environ=URL)
        assert done.returncode == 2, args
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert done.stdout == ""
