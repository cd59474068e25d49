"""A disk that fills up under a server and a worker, and has room again: who is asked says so, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse import Packhorse

from .kit import process
from .serving import Command, until
from .test_worker_metrics import Worker, get, scrape

APP = """
import asyncio, os
from packhorse import Packhorse

app = Packhorse()

@app.task
async def large(file: str) -> str:
    while not os.path.exists(file):
        await asyncio.sleep(0.01)
    return "x" * 900_000
"""

#: That a runner had no room is told for half a minute, for it does not tell when it has some again.
SOONER = """
import packhorse.observe.writing

packhorse.observe.writing.TOLD_MS = 10_000
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a disk is mounted by root only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all room on a disk; answers the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4_096))
        except OSError:
            return filler


def test_a_full_disk_is_told_by_worker_and_command_and_passes(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(APP)
    (tmp_path / "sitecustomize.py").write_text(SOONER)
    store = f"sqlite:///{disk / 'jobs.db'}"
    environ = {"PACKHORSE_URL": store, "PYTHONPATH": str(tmp_path)}
    with Worker(tmp_path, environ=environ) as worker, Packhorse(store) as app:
        worker.wait_until_ready()
        assert process("health", environ=environ).returncode == 0
        job = app.enqueue("large", {"file": str(tmp_path / "go")})
        until(lambda: job.record().state == "running")
        filler = fill(disk)
        (tmp_path / "go").touch()
        until(lambda: get(f"{worker.url}/health")[0] == 503)
        problems = json.loads(get(f"{worker.url}/health")[1])["problems"]
        assert any("the store does not do" in line for line in problems), problems
        assert get(f"{worker.url}/readyz")[0] == 503
        until(lambda: scrape(worker).total("packhorse_store_up") == 0)
        asked = process("health", environ=environ)
        assert asked.returncode == 1
        assert "free disk space" in asked.stderr
        filler.unlink()
        assert len(job.result(timeout=60)) == 900_000
        assert process("health", environ=environ).returncode == 0
        until(lambda: get(f"{worker.url}/readyz")[0] == 200)
        assert worker.stop() == 0


def test_a_full_disk_is_told_by_a_server_and_over_it_and_passes(disk: Path, tmp_path: Path) -> None:
    with Command(
        tmp_path, "serve", "--port", "0", environ={"PACKHORSE_URL": f"sqlite:///{disk / 'jobs.db'}"}
    ) as server:
        over_it = {"PACKHORSE_URL": server.url}
        server.ask("/api/v1/jobs", {"type": "x"})
        assert process("health", environ=over_it).returncode == 0
        filler = fill(disk)
        large = {"type": "x", "payload": "x" * 900_000}
        status, problem = server.status_of("/api/v1/jobs", large)
        assert (status, problem["type"]) == (503, "urn:packhorse:store-full")
        until(lambda: server.status_of("/readyz")[0] == 503)
        status, found = server.status_of("/health")
        assert status == 503
        assert "free some space" in " ".join(found["problems"])
        asked = process("health", environ=over_it)
        assert asked.returncode == 1
        assert "the store does not do enqueue" in asked.stderr
        filler.unlink()
        server.ask("/api/v1/jobs", large)
        until(lambda: server.status_of("/readyz")[0] == 200)
        assert process("health", environ=over_it).returncode == 0
        assert server.stop() == 0
