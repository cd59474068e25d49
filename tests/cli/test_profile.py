"""`profile` and `stacks` of live workers: in every format, of every executor, and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from packhorse.backends.base import WorkerInfo
from packhorse.backends.opening import open_backend
from tests.crash.harness import Lab, Worker


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A store, and a runtime directory of this test's own (its sockets are found before all others)."""
    runtime = tmp_path / "r"
    runtime.mkdir(mode=0o700)
    short = Path(f"/tmp/ph-{os.getpid()}-{time.monotonic_ns()}")  # paths of sockets are at most about 100 bytes
    short.symlink_to(runtime)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()
        short.unlink()


def start(lab: Lab, *options: str) -> tuple[Worker, str]:
    """Start a worker; answers it and the pid of the first runner that is listed with its pid."""
    worker = lab.worker(*options)
    # A claim makes a runner known, with pid 0 until its keeper says what it is.
    lab.until(lambda: bool(pids(lab)), 60, "the worker is ready")
    socket_path = Path(os.environ["XDG_RUNTIME_DIR"]) / "packhorse" / f"keeper-{worker.pid}.sock"
    lab.until(socket_path.exists, 60, "it can be asked")
    pid = pids(lab)[0]
    assert pid in worker.runners()
    return worker, str(pid)


def pids(lab: Lab) -> list[int]:
    """Of the runners that are listed, as far as it is known yet."""
    return [info.pid for info in lab.live_workers() if info.pid]


def call(lab: Lab, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", *args],
        env={**os.environ, "PACKHORSE_URL": lab.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_a_profile_names_functions_and_types_in_every_format(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "4")
    for name in ("burn_on_loop", "burn_in_thread", "burn_in_process"):
        lab.enqueue(name, 1, {"ms": 240_000}, max_attempts=1)  # until the worker is killed below
    lab.until(lambda: len(lab.lines()) == 3, 60, "all run")

    svg = lab.directory / "p.svg"
    done = call(lab, "profile", pid, "--seconds", "4", "-o", str(svg))
    assert "burn (crashapp.py:" in done.stdout
    assert "could not be interrupted" not in done.stderr  # runner and child look at themselves
    for name in ("burn_in_thread", "burn_in_process"):
        assert name in done.stdout
    titles = [element.text or "" for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("job type burn_in_process: ") for title in titles)
    assert any(title.startswith("burn  ") and "crashapp.py:" in title for title in titles)

    scope = lab.directory / "p.speedscope.json"
    taken = json.loads(call(lab, "profile", pid, "--seconds", "4", "-o", str(scope), "--json").stdout)
    assert taken["processes"] == 2
    assert {"burn_in_thread", "burn_in_process"} <= {each["type"] for each in taken["types"]}
    document = json.loads(scope.read_text())
    assert "burn_in_process" in [each["name"] for each in document["profiles"]]
    assert "burn" in [frame["name"] for frame in document["shared"]["frames"]]

    text = call(lab, "profile", pid, "--seconds", "4", "--format", "folded", "--mode", "wall").stdout
    lines = text.splitlines()
    assert any(line.startswith("burn_in_thread;burn_in_thread (crashapp.py:") for line in lines)
    assert any(line.startswith("burn_on_loop;burn_on_loop (crashapp.py:") for line in lines)
    assert not any("runner.py" in line for line in lines)
    worker.kill_all()


def test_where_no_handler_computes_the_mode_that_shows_waiting_is_named(lab: Lab) -> None:
    worker, pid = start(lab)
    done = call(lab, "profile", pid, "--seconds", "0.5")
    assert "no handler used time in these 0.5 s; try --mode wall" in done.stderr
    assert "FUNCTION" not in done.stdout
    worker.kill_all()


def test_stacks_show_every_job_and_no_values(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "4")
    (waiting,) = lab.enqueue("wait_for_others", 1, {"ms": 123_456})
    (burning,) = lab.enqueue("burn_in_process", 1, {"ms": 123_456})
    texts: list[str] = []

    def both_are_where_they_stay() -> bool:
        """They say that they have begun a moment before."""
        texts.append(call(lab, "stacks", pid).stdout)
        return " wait_deep\n" in texts[-1] and " burn_in_process\n" in texts[-1]

    lab.until(lambda: len(lab.lines()) == 2, 60, "both run")
    lab.until(both_are_where_they_stay, 60, "both are where they stay")
    text = texts[-1]
    assert f"waiting, job {waiting} (wait_for_others)" in text
    assert f"MainThread, job {burning} (burn_in_process)" in text
    assert text.count(burning) == 1
    assert "crashapp.py:" in text
    assert "123456" not in text  # C20
    found = json.loads(call(lab, "stacks", f"{socket.gethostname()}:{pid}", "--json").stdout)
    assert found["pid"] == int(pid)
    by_job = {stack["job"]: stack for stack in found["stacks"] if stack["job"]}
    assert set(by_job) == {waiting, burning}
    assert [frame["function"] for frame in by_job[waiting]["frames"]][-2:] == ["wait_deep", "wait_for_others"]
    worker.kill_all()


def test_a_worker_is_named_by_id_prefix_pid_or_its_keeper(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "2")
    (info,) = lab.live_workers()
    for name in (info.id, info.id[:-2], pid, f"{socket.gethostname()}:{pid}", str(worker.pid)):
        assert json.loads(call(lab, "stacks", name, "--json").stdout)["worker"] == info.id
    assert worker.stop() == 0
    assert "there is no worker" in call(lab, "stacks", info.id, code=1).stderr


def test_two_runners_must_be_told_apart(lab: Lab) -> None:
    worker, _ = start(lab, "-c", "2", "-p", "2")
    lab.until(lambda: len(pids(lab)) == 2, 60, "both are ready")
    assert "name one" in call(lab, "stacks", str(worker.pid), code=1).stderr
    assert worker.stop() == 0


def test_a_worker_on_another_host_is_said_to_be_there(lab: Lab) -> None:
    async def main() -> None:
        backend = open_backend(lab.url)
        await backend.migrate()
        await backend.open()
        await backend.heartbeat(WorkerInfo(id="0199-elsewhere", host="box7", pid=41), 30_000)
        await backend.close()

    asyncio.run(main())
    for command in ("profile", "stacks"):
        done = call(lab, command, "0199-else", code=1)
        assert f"runs on box7: run it there: packhorse {command} 0199-elsewhere" in done.stderr


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_asked(lab: Lab) -> None:
    done = call(lab, "profile", "1", "-o", str(lab.directory / "none" / "p.svg"), code=2)
    assert "there is no directory" in done.stderr


def test_a_keeper_that_dies_in_the_middle_is_a_clear_error(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "2")
    command = [sys.executable, "-m", "packhorse", "profile", pid, "--seconds", "60"]
    environ = {**os.environ, "PACKHORSE_URL": lab.url}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as profiling:
        lab.until(lambda: "is profiled" in worker.output.read_text(), 60, "the profile has begun")
        worker.kill_all()
        _, said = profiling.communicate(timeout=60)
    assert profiling.returncode == 1
    assert said == "packhorse: the worker's keeper ended before it could answer; see its log\n"


def test_one_profile_at_a_time_and_one_that_nobody_waits_for_ends(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "2")
    command = [sys.executable, "-m", "packhorse", "profile", pid, "--seconds", "60"]
    environ = {**os.environ, "PACKHORSE_URL": lab.url}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as profiling:
        lab.until(lambda: "is profiled" in worker.output.read_text(), 60, "the profile has begun")
        done = call(lab, "profile", pid, "--seconds", "0.2", code=1)
        assert "a profile of it is being taken already" in done.stderr
        profiling.send_signal(signal.SIGINT)
        profiling.communicate(timeout=60)
    assert profiling.returncode == 130
    lab.until(
        lambda: subprocess.run([*command[:-1], "0.2"], env=environ, capture_output=True, check=False).returncode == 0,
        60,
        "another can be taken",
    )
    assert worker.stop() == 0


def test_a_runner_that_dies_while_it_is_profiled_is_a_clear_error(lab: Lab) -> None:
    worker, pid = start(lab, "-c", "2")
    command = [sys.executable, "-m", "packhorse", "profile", pid, "--seconds", "60"]
    environ = {**os.environ, "PACKHORSE_URL": lab.url}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as profiling:
        lab.until(lambda: "is profiled" in worker.output.read_text(), 60, "the profile has begun")
        os.kill(int(pid), signal.SIGKILL)
        _, said = profiling.communicate(timeout=60)
    assert profiling.returncode == 1
    assert "cannot be profiled: it ended" in said
    assert worker.stop() == 0
