"""`packhorse serve` and `dev` as people start them: processes of their own, asked over HTTP, stopped by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from packhorse.demo.processes import children, identity

from .kit import clean_environ

APP = """
import asyncio, sys
from packhorse import Packhorse

app = Packhorse()

@app.task
async def greet(name: str) -> str:
    return f"Hello {name}"

@app.task(timeout=120)
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"
"""


class Command:
    """A command of packhorse that serves until it is told to stop."""

    def __init__(self, directory: Path, *args: str, environ: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.log = directory / "output.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "packhorse", *args],
                env=clean_environ() | (environ or {}),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            tree = self.tree()
            self.process.kill()
            self.process.wait()
            until(lambda: not any(alive(one) for one in tree), 60)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def url(self) -> str:
        """Wait until it says where it is."""
        until(lambda: "packhorse serves http" in self.output or self.process.poll() is not None, 60)
        assert "packhorse serves http" in self.output, self.output
        return self.output.partition("packhorse serves ")[2].split()[0]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30) -> Any:
        """Answer the JSON of a URL; `body` makes it a POST."""
        status, answer = self.status_of(path, body, headers, timeout)
        assert status < 300, (status, answer)
        return answer

    def status_of(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, Any]:
        """Answer status and JSON of a URL."""
        data = None if body is None else json.dumps(body).encode()
        asked = Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urlopen(asked, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def submit(self, job_type: str, **payload: Any) -> str:
        return self.ask("/api/v1/jobs", {"type": job_type, "payload": payload})["id"]

    def job(self, job_id: str) -> Any:
        return self.ask(f"/api/v1/jobs/{job_id}")

    def wait_for(self, job_id: str, state: str, seconds: float = 60) -> Any:
        until(lambda: self.job(job_id)["state"] == state, seconds)
        return self.job(job_id)

    def tree(self) -> list[tuple[int, str]]:
        """Answer all processes that it started, each with the moment of its start."""
        found, waiting = [], [self.process.pid]
        while waiting:
            for pid in children(waiting.pop()):
                known = identity(pid)
                if known is not None:
                    found.append((pid, known[1]))
                    waiting.append(pid)
        return found

    def interrupt(self) -> None:
        """Press Ctrl+C in its terminal: all of its process group hear it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and wait for the end; answers the exit code, with nothing left behind."""
        tree = self.tree()
        self.process.send_signal(signal.SIGTERM)
        return self.end(tree, seconds)

    def end(self, tree: list[tuple[int, str]], seconds: float = 60) -> int:
        """Wait for the end of it and of all it started."""
        code = self.process.wait(seconds)
        until(lambda: not any(alive(one) for one in tree), 60)
        assert "Traceback" not in self.output, self.output
        return code


def alive(process: tuple[int, str]) -> bool:
    """Answer whether a process that was seen still runs."""
    known = identity(process[0])
    return known is not None and known[1] == process[1]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for a condition, no longer than `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.02)


def stored(directory: Path, job_id: str) -> Any:
    """Look a job up in the SQLite file, without a server."""
    import asyncio

    from packhorse.backends.sqlite import SQLiteBackend
    from packhorse.clock import SYSTEM_CLOCK

    async def look() -> Any:
        backend = SQLiteBackend(f"sqlite:///{directory / 'packhorse.db'}", SYSTEM_CLOCK)
        await backend.open()
        try:
            return (await backend.get([job_id]))[0]
        finally:
            await backend.close()

    return asyncio.run(look())
