"""What the tests of the command line share: one store in this process that the commands believe to be shared."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from packhorse.backends.base import Settlement
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.cli.main import root
from packhorse.job import JobError, JobSpec, State

CHANCE = Chance(7)


class SharedMemory(MemoryBackend):
    """A memory backend that passes for one that other processes reach."""

    capabilities = msgspec.structs.replace(MemoryBackend.capabilities, shared=True)


class Cli:
    """Calls the command line in this process against `store`."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.opened = 0

    def backend(self) -> SharedMemory:
        self.opened += 1
        return SharedMemory(self.store)

    def __call__(self, *args: str, code: int = 0, input: str | bytes | None = None) -> Result:
        """Run `packhorse *args`, check the exit code, and that an error is one line without a traceback."""
        result = CliRunner().invoke(root, list(args), input=input)
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        if code in {1, 2} and result.stderr:
            errors = [line for line in result.stderr.splitlines() if not line.startswith("packhorse: warning: ")]
            assert len(errors) == 1, result.stderr
            assert errors[0].startswith("packhorse: ")
        return result

    def json(self, *args: str, code: int = 0) -> Any:
        """Run a command with --json and read the one document it prints."""
        return json.loads(self(*args, "--json", code=code).stdout)

    # ---- jobs to look at -------------------------------------------------------------------------------

    def add(self, count: int = 1, **fields: Any) -> list[str]:
        """Enqueue jobs past the command line, so that anything can be in the store."""
        specs = [
            JobSpec(id=job_id, **{"type": "email", **fields}) for job_id in CHANCE.ids(self.store.clock.now_ms(), count)
        ]
        for start in range(0, count, 1000):
            asyncio.run(self.backend().enqueue(specs[start : start + 1000]))
        return [spec.id for spec in specs]

    def start(self, count: int = 1, queue: str = "default") -> list[tuple[str, str]]:
        """Claim jobs; answers ids and tokens."""
        claimed = asyncio.run(self.backend().claim([queue], count, 30_000, "worker-1"))
        return [(job.id, job.token) for job in claimed]

    def settle(self, state: State, count: int = 1, queue: str = "default", **fields: Any) -> list[str]:
        """Claim jobs and end them in `state`."""
        started = self.start(count, queue)
        settlements = [Settlement(id=job_id, token=token, state=state, **fields) for job_id, token in started]
        asyncio.run(self.backend().settle(settlements))
        return [job_id for job_id, _ in started]

    def fail(self, count: int = 1, message: str = "no such address", **fields: Any) -> list[str]:
        """Enqueue jobs and let them fail for good."""
        self.add(count, **fields)
        error = JobError(attempt=1, at_ms=1_700_000_000_000, kind="ValueError", message=message, traceback="a\n  b")
        return self.settle(State.FAILED, count, fields.get("queue", "default"), error=error)

    def states(self, ids: list[str]) -> list[str]:
        """Answer the states of jobs; `gone` where there is none."""
        records = asyncio.run(self.backend().get(ids))
        return [str(record.state) if record is not None else "gone" for record in records]


def process(*args: str, environ: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "packhorse", *args],
        env=clean_environ() | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def clean_environ() -> dict[str, str]:
    """Answer this environment without anything that packhorse would read as a setting."""
    from packhorse.settings import ALIASES

    return {
        name: value for name, value in os.environ.items() if not name.startswith("PACKHORSE_") and name not in ALIASES
    }


CliFactory = Callable[[], Cli]
