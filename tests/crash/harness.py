"""Real workers in real processes on a real store, to be killed. Only what was started here is ever signalled."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from packhorse.backends.base import Backend, WorkerInfo
from packhorse.backends.opening import open_backend
from packhorse.job import JobRecord, State

HERE = Path(__file__).parent


class Start(NamedTuple):
    job: str
    attempt: int
    pid: int
    at: float


class Worker:
    """A `packhorse worker` of the crash app."""

    def __init__(self, lab: "Lab", *options: str) -> None:
        environ = {**os.environ, "CRASH_URL": lab.url, "CRASH_LOG": str(lab.log), "PYTHONPATH": str(HERE)}
        self.output = lab.directory / f"worker-{time.monotonic_ns()}.log"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "packhorse", "worker", "crashapp:app", *options],
                cwd=lab.directory,
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def runners(self) -> list[int]:
        """The pids of this keeper's runner processes, from the system."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    command = (entry / "cmdline").read_bytes()
                    if int(stat[1]) == self.pid and stat[0] != "Z" and b"runner_process" in command:
                        found.append(int(entry.name))
        return sorted(found)

    def kill_all(self) -> list[int]:
        """kill -9 of the keeper and all its runners; answers the runners that this hit."""
        runners = self.runners()
        self.process.kill()
        for pid in runners:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return runners

    def stop(self, timeout: float = 60) -> int:
        """SIGTERM, and wait for the end. Not before it is ready: until then a signal just ends a starting Python."""
        started = time.monotonic()
        while b" ready: " not in self.output.read_bytes() and self.process.poll() is None:
            assert time.monotonic() - started < timeout, f"never ready: {self.output.read_text()}"
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


class Lab:
    """A store, workers on it, and what their handlers wrote down."""

    def __init__(self, directory: Path, url: str = "") -> None:
        self.directory = directory
        self.url = url or f"sqlite:///{directory / 'jobs.db'}"
        self.log = directory / "starts.log"
        self.workers: list[Worker] = []

    def worker(self, *options: str) -> Worker:
        worker = Worker(self, *options)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            for pid in worker.runners():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if worker.process.poll() is None:
                worker.kill_all()

    def do(self, action: Callable[[Backend], Any]) -> Any:
        """Run one async action on a fresh connection."""

        async def run() -> Any:
            backend = open_backend(self.url)
            await backend.open()
            try:
                return await action(backend)
            finally:
                await backend.close()

        return asyncio.run(run())

    def enqueue(
        self, job_type: str, count: int = 1, payload: dict[str, Any] | None = None, **options: Any
    ) -> list[str]:
        """Store jobs; answers the ids that were acknowledged."""
        from packhorse import Packhorse

        with Packhorse(self.url) as app:
            jobs = app.enqueue_many([{"type": job_type, "payload": payload or {}, **options} for _ in range(count)])
        return [job.id for job in jobs]

    def records(self, ids: list[str]) -> list[JobRecord]:
        async def look(backend: Backend) -> list[JobRecord]:
            found: list[JobRecord | None] = []
            for start in range(0, len(ids), 1000):
                found += await backend.get(ids[start : start + 1000])
            assert None not in found, "an acknowledged job is gone"
            return [job for job in found if job is not None]

        return self.do(look)

    def states(self, ids: list[str]) -> dict[State, int]:
        counts: dict[State, int] = defaultdict(int)
        for job in self.records(ids):
            counts[job.state] += 1
        return dict(counts)

    def live_workers(self) -> list[WorkerInfo]:
        return self.do(lambda backend: backend.workers())

    def whole_lines(self) -> list[str]:
        """What handlers wrote, without a line that is being written."""
        if not self.log.exists():
            return []
        return [line.rstrip("\n") for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def lines(self, what: str = "start") -> list[Start]:
        found = []
        for line in self.whole_lines():
            kind, job, attempt, pid, at = line.split()
            if kind == what:
                found.append(Start(job, int(attempt), int(pid), float(at)))
        return found

    def busy(self) -> set[int]:
        """The pids of runners that began a job and did not end it; of killed ones too."""
        ended = {(line.job, line.attempt) for line in self.lines("end")}
        return {start.pid for start in self.lines() if (start.job, start.attempt) not in ended}

    def until(self, condition: Callable[[], bool], limit: float, what: str) -> float:
        """Wait for a condition, looking again and again; answers how long it took, s."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < limit, f"not within {limit} s: {what}\n{self.outputs()}"
            time.sleep(0.02)
        return time.monotonic() - started

    def all_ended(self, ids: list[str]) -> bool:
        return not any(state not in {State.SUCCEEDED, State.FAILED, State.CANCELLED} for state in self.states(ids))

    def outputs(self) -> str:
        return "\n".join(f"--- {worker.pid}\n{worker.output.read_text()[-3000:]}" for worker in self.workers)


def result(job: JobRecord) -> Any:
    return None if job.result is None else msgspec.json.decode(job.result)
