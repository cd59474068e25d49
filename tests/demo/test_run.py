"""`packhorse demo` as people run it: a process, its worker processes, a killed runner, Ctrl+C, and its exit codes."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packhorse.demo.files import DIRECTORY_VARIABLE

LIMIT_S = 60
#: Jobs of a demo that is to be met half-way: work for a quarter of a minute and more, if this test is not let run.
MANY = "20000"
#: Settings of whoever runs the tests must not reach the demo.
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PACKHORSE_", "WORKER", "TASKS", "MAX_"))
}


def wait_for(condition: Callable[[], object], what: str, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {limit_s} s"
        time.sleep(0.02)


def demo(home: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "packhorse", "demo", *arguments],
        cwd=home,
        env=CLEAN | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT_S)
        pytest.fail(f"the demo took longer than {LIMIT_S} s:\n{out}\n{err}")
    return process.returncode, out, err


def worker_processes(home: Path) -> list[int]:
    """The processes that work for the demo in `home`: its worker's environment names the directory."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("only Linux shows the environment of other processes")
    mark = f"{DIRECTORY_VARIABLE}={home / 'demo-data'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark in environ and state != "Z":
                found.append(int(entry.name))
    return found


def indexed(home: Path) -> int:
    file = home / "demo-data" / "index.db"
    if not file.exists():
        return 0
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:  # not made yet, or being written
        return 0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    left = worker_processes(tmp_path)
    for pid in left:  # only those that name this test's own directory
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_the_promise_holds_although_a_runner_is_killed(home: Path) -> None:
    code, out, err = finish(demo(home, "--seed", "5", TASKS="40", WORKERS="2", MAX_ATTEMPTS="3"))

    assert (code, err) == (0, ""), out + err
    assert "40 jobs, seed 5, at most 3 runs each" in out
    assert re.search(r"kill -9 \d+: a runner dies", out)
    assert "Jobs whose runner died, made good: " in out
    assert "Dead letter queue:" in out
    assert "FileNotFoundError: there is no file" in out
    assert "BROKEN" not in out
    assert "not meant to" not in out
    assert len(re.findall(r"^ok ", out, re.MULTILINE)) == 7
    assert re.search(r"│ all +│ +\d+ │ +\d+ │ +- │ +- │ +\d+ │ +\d+ │", out)
    assert (home / "demo-data").stat().st_mode & 0o777 == 0o700
    assert (home / "demo-data" / "reports" / "final.md").read_text().startswith("# Report: final")


def test_a_second_run_starts_afresh(home: Path) -> None:
    first = finish(demo(home, WORKERS="3", TASKS="10", MAX_ATTEMPTS="3"))
    second = finish(demo(home, "--no-kill", "--max-attempts", "1", "--tasks", "9", "--workers", "1", TASKS="20"))

    assert first[0] == 0, first
    assert second[0] == 0, second
    assert "reached a terminal state: 10 of 10" in first[1]
    assert "reached a terminal state: 9 of 9" in second[1]
    assert "at most 1 of 1 run" in second[1]
    assert "kill -9" in first[1]
    assert "kill -9" not in second[1]
    with sqlite3.connect(home / "demo-data" / "jobs.db") as store:
        (count,) = store.execute("SELECT count(*) FROM jobs").fetchone()
    store.close()
    assert count == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stopping_half_way_leaves_no_process_and_says_what_was_done(home: Path, number: signal.Signals) -> None:
    process = demo(home, WORKERS="2", TASKS=MANY)
    wait_for(lambda: indexed(home) > 0, "the first document", 180)
    assert worker_processes(home)
    process.send_signal(number)

    code, out, err = finish(process)

    assert (code, err) == (130, ""), out + err
    assert re.search(r"Stopped after [\d.]+ s: [\d,]+ of [\d,]+ jobs done", out)
    assert "No process is left." in out
    assert worker_processes(home) == []


def test_when_the_demo_itself_is_killed_its_worker_stops(home: Path) -> None:
    process = demo(home, WORKERS="1", TASKS=MANY)
    wait_for(lambda: indexed(home) > 0, "the first document", 180)
    process.kill()
    process.communicate(timeout=LIMIT_S)

    wait_for(lambda: not worker_processes(home), "the end of the worker")


def test_a_worker_that_dies_ends_the_demo_with_its_last_words(home: Path) -> None:
    process = demo(home, WORKERS="1", TASKS=MANY)
    wait_for(lambda: indexed(home) > 0, "the first document", 180)
    (keeper,) = [pid for pid in worker_processes(home) if b"leash" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(keeper, signal.SIGKILL)

    code, out, _ = finish(process)

    assert code == 1, out
    assert "The demo gives up: the worker ended with exit code -9" in out
    # A runner without its keeper finishes what runs, within the grace times, and ends by itself.
    wait_for(lambda: worker_processes(home) == [], "the orphans ended")


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        ((), {"WORKERS": "many"}, "WORKERS"),
        ((), {"WORKERS": "0"}, "WORKERS"),
        ((), {"TASKS": "-5"}, "TASKS"),
        ((), {"TASKS": "100001"}, "TASKS"),
        ((), {"MAX_ATTEMPTS": "0"}, "MAX_ATTEMPTS"),
        (("--max-attempts", "1.5"), {}, "--max-attempts"),
        (("--seed", "x"), {}, "--seed"),
        (("--dir", "full"), {}, "not made by the demo"),
        (("--dir", "full/file"), {}, "cannot use"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(
    home: Path, arguments: tuple[str, ...], environ: dict[str, str], says: str
) -> None:
    (home / "full").mkdir()
    (home / "full" / "file").write_text("mine")

    code, out, err = finish(demo(home, *arguments, **environ))

    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert [path.name for path in home.rglob("*")] == ["full", "file"]
