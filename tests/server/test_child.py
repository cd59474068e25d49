"""Commands as children: what becomes of one that does not stop, and of one whose holder is gone."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from packhorse.server.beside import worker as beside
from packhorse.server.beside.child import Child


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACKHORSE_URL", "sqlite:///jobs.db")
    monkeypatch.setenv("PACKHORSE_PORT", "0")
    return tmp_path


async def until_serving(directory: Path) -> None:
    """Wait until the child has made its store, which is after it has begun to listen to signals."""
    async with asyncio.timeout(60):
        while not (directory / "jobs.db").exists():
            await asyncio.sleep(0.02)


def test_a_child_stops_when_told_and_answers_its_exit_code(directory: Path) -> None:
    async def main() -> None:
        child = Child(["serve"])
        await until_serving(directory)
        assert not child.ended
        assert await child.stop(60_000) == 0
        assert child.ended
        child.tell()  # nobody is there any more
        assert await child.exit_code() == 0

    asyncio.run(main())


def test_a_child_that_does_not_stop_is_ended_by_force(directory: Path) -> None:
    async def main() -> None:
        child = Child(["serve"])
        await until_serving(directory)
        os.kill(child.pid, signal.SIGSTOP)
        assert await child.stop(200) == -signal.SIGKILL

    asyncio.run(main())


def test_a_worker_that_cannot_be_started_for_a_while_is_no_reason_to_give_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At night, on a machine that has no process left: the server goes on and the worker comes back."""
    monkeypatch.setattr(beside, "_PAUSE_S", 0.01)
    tries: list[str] = []

    class Refused:
        def __init__(self, *_: object) -> None:
            tries.append("refused")
            if len(tries) == 3:
                worker._stopping.set()
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(beside, "Child", Refused)
    worker = beside.WorkerProcess(["worker", "jobs"], 100)
    assert asyncio.run(worker.run()) == 0
    assert len(tries) == 3
    assert "the worker could not be started: Resource temporarily unavailable" in caplog.text


def test_a_command_that_fails_answers_its_own_exit_code() -> None:
    async def main() -> int:
        return await Child(["serve", "--port", "none"]).exit_code()

    assert asyncio.run(main()) == 2
