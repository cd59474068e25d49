"""The command line as people run it: processes of their own, on a SQLite file."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import packhorse
from packhorse.backends.sqlite import SQLiteBackend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import JobSpec

from .kit import clean_environ, process

URL = {"PACKHORSE_URL": "sqlite:///jobs.db"}

APP = """
from packhorse import Packhorse, Fail

app = Packhorse("sqlite:///jobs.db")

@app.task
async def greet(name: str) -> str:
    return f"Hello {name}"

@app.task
async def refuse() -> None:
    raise Fail("not today\\n2026 INFO paid")
"""


def unmeasured() -> dict[str, str]:
    """Answer this environment without coverage's measuring, which imports modules of its own into every process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def fill(count: int, **fields: object) -> None:
    async def main() -> None:
        backend = SQLiteBackend("sqlite:///jobs.db", SYSTEM_CLOCK)
        await backend.open()
        ids = CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)
        await backend.enqueue([JobSpec(id=job_id, **{"type": "greet", **fields}) for job_id in ids])
        await backend.close()

    asyncio.run(main())


def test_a_day_of_an_operator(directory: Path) -> None:
    (directory / "jobs.py").write_text(APP)

    def run(*args: str, code: int = 0) -> str:
        done = process(*args, environ=URL)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        assert "\x1b" not in done.stdout + done.stderr
        # The log of a worker has tracebacks of jobs that failed for good, which look like nothing else (C22).
        assert not [line for line in done.stderr.splitlines() if line.startswith(("Traceback", "2026 INFO"))]
        assert args[0] == "worker" or "Traceback" not in done.stderr
        return done.stdout

    run("stats", code=2)
    assert not (directory / "jobs.db").exists()
    greeted = run("submit", "-t", "greet", "-p", '{"name": "you"}', "--id-only").strip()
    refused = run("enqueue", '{"type": "refuse"}', "--id-only").strip()
    run("queues", "pause", "default")
    assert json.loads(run("queues", "list", "--json"))["items"][0]["paused"] is True
    run("queues", "resume", "default")
    run("worker", "jobs", "--burst")
    assert json.loads(run("jobs", "show", greeted, "--json"))["result"] == "Hello you"
    assert "Fail: not today" in run("list-failed")
    assert "not today\\n2026 INFO paid" in run("jobs", "show", refused)
    run("retry", greeted, refused)
    run("worker", "jobs:app", "--burst")
    assert json.loads(run("stats", "--json"))["states"]["failed"] == 1
    run("retry-all")
    run("purge", "default", "--yes")
    assert json.loads(run("jobs", "list", "--json")) == {"items": [], "next": None}
    run("health")
    run("migrate")


def test_a_worker_of_an_app_that_is_not_there() -> None:
    done = process("worker", "no_such_module", environ=URL)
    assert done.returncode == 2
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """The package's own head is left out: what it imports is its own business, see `packhorse/__init__.py`."""
    code = f"""
import sys, types
package = types.ModuleType("packhorse")
package.__path__ = [{str(Path(packhorse.__file__).parent)!r}]
sys.modules["packhorse"] = package
from packhorse.cli.main import root
for args in (["--help"], ["jobs", "--help"], ["submit", "--help"], ["worker", "--help"], ["jobs", "list", "--help"]):
    assert root.main(args, standalone_mode=False) == 0
heavy = {{"asyncio", "msgspec", "rich", "sqlite3", "uvloop", "packhorse.admin", "packhorse.settings", "packhorse.app"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL, env=unmeasured())


def test_submit_imports_no_rich() -> None:
    code = """
import sys
from packhorse.cli.main import root
assert root.main(["submit", "-t", "t"], standalone_mode=False) == 0
heavy = {"rich", "pydantic", "packhorse.worker.keeper"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL, env=clean_environ() | URL
    )


def test_a_reader_that_has_enough_ends_it_silently() -> None:
    fill(1000)
    # Unbuffered, Python itself loses what a closed pipe did not take, and says nothing.
    environ = {name: value for name, value in clean_environ().items() if name != "PYTHONUNBUFFERED"} | URL
    command = [sys.executable, "-m", "packhorse", "jobs", "list", "--limit", "1000", "--json"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.readline() == b"{\n"
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait(60) == 141


def test_ctrl_c_ends_it_with_130_and_no_traceback(directory: Path) -> None:
    os.mkfifo(directory / "payload")
    command = [sys.executable, "-m", "packhorse", "submit", "-t", "t", "-p", "@payload"]
    with subprocess.Popen(command, env=clean_environ() | URL, stderr=subprocess.PIPE, text=True) as submitting:
        # Opening the other end returns once the command has opened its own: it is reading now.
        end = os.open(directory / "payload", os.O_WRONLY)
        submitting.send_signal(signal.SIGINT)
        assert submitting.wait(60) == 130
        os.close(end)
        assert submitting.stderr is not None
        assert submitting.stderr.read().strip() == ""
    assert not (directory / "jobs.db").exists()


@pytest.mark.parametrize("args", [("logs", "--follow"), ("stats", "--watch", "1")], ids=["logs", "stats"])
def test_ctrl_c_ends_what_only_watches_with_130_too(args: tuple[str, ...]) -> None:
    fill(1)
    environ = clean_environ() | URL | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "packhorse", *args],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() != ""  # it has looked once, and goes on until somebody ends it
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert (watching.returncode, said) == (130, "")


def test_a_terminal_gets_a_table_and_no_escapes_from_the_store() -> None:
    fill(1, type="[red]evil[/red]\x1b]0;owned\x07")
    shown = _on_a_terminal("jobs", "list")
    assert "\x1b[1m" in shown  # the bold head of the table
    assert "\x1b]0;" not in shown
    assert r"[red]evil[/red]\x1b]0;owned\x07" in shown.replace("\r\n", "")


def test_stats_on_a_terminal_draw_the_newest_jobs() -> None:
    fill(3)
    shown = _on_a_terminal("stats")
    assert "newest 3 jobs, " in shown
    assert "█" in shown
    assert "newest" not in process("stats", environ=URL).stdout


def test_json_on_a_terminal_has_no_colours() -> None:
    fill(1)
    assert json.loads(_on_a_terminal("stats", "--json"))["states"]["pending"] == 1


def _on_a_terminal(*args: str) -> str:
    ours, theirs = pty.openpty()
    environ = clean_environ() | URL | {"TERM": "xterm-256color", "COLUMNS": "250"}
    environ.pop("NO_COLOR", None)
    with subprocess.Popen([sys.executable, "-m", "packhorse", *args], stdout=theirs, env=environ) as running:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            parts.append(part)
        assert running.wait(60) == 0
    os.close(ours)
    return b"".join(parts).decode()


def test_output_that_the_locale_cannot_show() -> None:
    fill(1, key="日本")
    listed = json.loads(process("jobs", "list", "--json", environ=URL).stdout)["items"]
    done = process("jobs", "show", listed[0]["id"], environ=URL | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    assert r"\u65e5\u672c" in done.stdout


def test_arguments_that_are_not_utf8() -> None:
    for args in ([b"-t", b"\xff"], [b"-t", b"t", b"-p", b'"\xff"'], [b"-t", b"t", b"--key", b"\xff"]):
        done = subprocess.run(
            [sys.executable, "-m", "packhorse", "submit", *args],
            env=clean_environ() | URL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in {1, 2}
        assert done.stderr.count(b"\n") == 1
        assert b"Traceback" not in done.stderr


def test_the_password_is_warned_of_and_not_shown() -> None:
    """C21."""
    done = process("--url", "nowhere://me:c4n4ry@host/db", "stats", environ={})
    assert done.returncode == 2
    assert "c4n4ry" not in done.stdout + done.stderr
    assert "ps shows it" in done.stderr
