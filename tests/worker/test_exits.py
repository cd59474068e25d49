"""How processes end: every signal has words, and what handlers printed is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from looking_in import lab, ready, runtime  # noqa: F401  # fixtures

from packhorse.job import State
from packhorse.worker.exits import said_exit
from packhorse.worker.page import BYTES, Page
from tests.crash.harness import Lab

PRINTS = """
import os, sys
from packhorse import Packhorse

app = Packhorse("sqlite:///" + os.environ["JOBS"])


@app.task(executor="process")
def in_process():
    print("printed in a process")


@app.task
def in_thread():
    print("printed in a thread")


@app.task
async def on_loop():
    print("printed on the loop")
"""


def test_every_signal_has_words() -> None:
    assert said_exit(3) == "ended with exit code 3"
    assert said_exit(-signal.SIGKILL) == "died by signal 9 (SIGKILL)"
    assert said_exit(-signal.SIGRTMIN) == f"died by signal {int(signal.SIGRTMIN)} (SIGRTMIN)"
    for number in range(1, signal.SIGRTMAX + 1):  # 32 and 33 belong to the C library
        assert f"died by signal {number} (" in said_exit(-number)
    assert said_exit(-(signal.SIGRTMIN + 9)).endswith("(SIGRTMIN+9)")


def test_a_runner_that_dies_by_a_signal_without_a_name_is_made_good(lab: Lab) -> None:  # noqa: F811
    worker = ready(lab, "-c", "1")
    (job,) = lab.enqueue("hold", 1, {"go": str(lab.directory / "never")}, max_attempts=1)
    lab.until(lambda: bool(lab.lines()), 60, "it runs")
    (runner,) = worker.runners()
    number = signal.SIGRTMIN + 5
    os.kill(runner, number)
    lab.until(lambda: lab.all_ended([job]), 60, "it is made good")
    (record,) = lab.records([job])
    assert record.state is State.FAILED
    assert f"died by signal {number} (SIGRTMIN+5)" in record.errors[0].message
    lab.until(lambda: worker.runners() not in ([], [runner]), 60, "another runner is there")
    assert "this is a bug" not in lab.outputs()
    assert worker.stop() == 0


def start(directory: Path, output: int) -> subprocess.Popen[bytes]:
    (directory / "printing.py").write_text(PRINTS)
    with (directory / "stderr").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "packhorse", "worker", "printing:app", "-c", "2", "--burst"],
            cwd=directory,
            env={**os.environ, "JOBS": str(directory / "jobs.db"), "PYTHONUNBUFFERED": ""},
            stdout=output,
            stderr=errors,
        )


def enqueue(directory: Path, *types: str) -> None:
    from packhorse import Packhorse

    with Packhorse(f"sqlite:///{directory / 'jobs.db'}") as app:
        app.enqueue_many([{"type": job_type, "payload": {}} for job_type in types])


def test_what_handlers_print_is_not_lost(tmp_path: Path) -> None:
    enqueue(tmp_path, "in_process", "in_thread", "on_loop")
    worker = start(tmp_path, subprocess.PIPE)
    printed, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    for place in ("in a process", "in a thread", "on the loop"):
        assert f"printed {place}" in printed.decode()


def test_output_that_nobody_reads_does_not_spoil_the_end(tmp_path: Path) -> None:
    """As below `packhorse worker | head`: the runner ends as it was told, and at once."""
    enqueue(tmp_path, "in_thread", "on_loop")
    reads, writes = os.pipe()
    os.close(reads)
    worker = start(tmp_path, writes)
    os.close(writes)
    try:
        assert worker.wait(60) == 0
    finally:
        worker.kill()
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said, said
    assert "runner" not in said.replace("ready", ""), said


def test_where_memory_has_no_name_the_disk_has_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first write to what there is no room for ends the process."""
    monkeypatch.delattr(os, "memfd_create")
    page = Page.create()
    try:
        assert os.fstat(page.fd).st_blocks * 512 >= BYTES
        page.pulse_ms = 5
        assert page.pulse_ms == 5
    finally:
        page.close()
