"""Workers that reach their store through a server: the same promise, also when the server is killed under them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packhorse import Context, Packhorse
from packhorse.backends.base import Query
from packhorse.backends.opening import open_backend
from packhorse.errors import JobCancelled
from packhorse.job import State

from .kit import served, until
from .process import ServerProcess

APP = """
import asyncio
from packhorse import Packhorse

app = Packhorse()

@app.task("nap")
async def nap(number: int) -> int:
    await asyncio.sleep(0.01)
    with open("ran.log", "a") as log:
        log.write(f"{number}\\n")
    return number
"""


def test_an_app_works_through_a_server() -> None:
    async def main() -> None:
        async with served() as url:
            app = Packhorse(url)
            started = asyncio.Event()

            @app.task
            async def double(number: int) -> int:
                return 2 * number

            @app.task
            async def forever() -> None:
                started.set()
                await asyncio.sleep(3_600)

            @app.task
            async def stepping(ctx: Context) -> list[int]:
                async def made_of(number: int) -> int:
                    return 2 * number

                made = [await ctx.step(f"step-{number}", made_of, number) for number in range(3)]
                ctx.progress(0.5, "half")
                return made

            async with app.worker(concurrency=20):
                jobs = [await double.aenqueue(number) for number in range(30)]
                assert [await job.aresult(timeout=60) for job in jobs] == [2 * number for number in range(30)]
                hanging = await forever.aenqueue()
                await asyncio.wait_for(started.wait(), 60)
                await hanging.acancel()
                with pytest.raises(JobCancelled):
                    await hanging.aresult(timeout=60)
                assert await (await stepping.aenqueue()).aresult(timeout=60) == [0, 2, 4]
            await app.aclose()

    asyncio.run(main())


def test_schedules_and_limits_of_an_app_hold_through_a_server() -> None:
    async def main() -> None:
        async with served() as url:
            app = Packhorse(url)
            ran = []

            @app.schedule(every="1s")
            @app.task
            async def often() -> None:
                ran.append("often")

            @app.task(concurrency=1)
            async def alone() -> None:
                ran.append("begin")
                await asyncio.sleep(0.01)
                ran.append("end")

            async with app.worker():
                await app.aenqueue_many([(alone, {}) for _ in range(5)])
                await until(lambda: ran.count("end") == 5 and "often" in ran, "all ran, and a slot came")
            of_alone = [word for word in ran if word != "often"]
            assert of_alone == ["begin", "end"] * 5
            await app.aclose()

    asyncio.run(main())


class WorkerProcess:
    """A `packhorse worker` with keeper and runner. Only what was started here is ever signalled."""

    def __init__(self, directory: Path, url: str) -> None:
        (directory / "naps.py").write_text(APP)
        self.output = directory / "worker.log"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "packhorse", "worker", "naps", "-c", "8", "--lease", "10s", "--url", url],
                cwd=directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("PACKHORSE_")},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@pytest.mark.timeout(300)
def test_a_server_killed_under_a_worker_costs_no_job_and_no_outcome(tmp_path: Path) -> None:
    jobs = 400
    store_url = f"sqlite:///{tmp_path / 'jobs.db'}"

    async def succeeded(wanted: int) -> None:
        store = open_backend(store_url)
        await store.open()
        try:

            async def so_many() -> bool:
                counts = await store.counts()
                return counts["default"].states.get(State.SUCCEEDED, 0) >= wanted

            await until(so_many, f"{wanted} jobs succeeded", 100)
        finally:
            await store.close()

    async def outcomes() -> list[tuple[State, int]]:
        store = open_backend(store_url)
        await store.open()
        try:
            return [(job.state, job.attempt) for job in (await store.find(Query(limit=1_000))).jobs]
        finally:
            await store.close()

    with ServerProcess(tmp_path, store_url) as server:
        app = Packhorse(server.url)
        app.enqueue_many([("nap", {"number": number}) for number in range(jobs)])
        app.close()
        worker = WorkerProcess(tmp_path, server.url)
        try:
            for wanted in (40, 160):
                asyncio.run(succeeded(wanted))
                server.kill()
                time.sleep(0.2)  # the worker is to meet the absence
                server.start()
            asyncio.run(succeeded(jobs))
        finally:
            code = worker.stop()
        assert code == 0, worker.output.read_text()[-2_000:]
    ends = asyncio.run(outcomes())
    assert len(ends) == jobs
    assert {state for state, _ in ends} == {State.SUCCEEDED}
    assert max(attempt for _, attempt in ends) <= 3
    ran = [int(line) for line in (tmp_path / "ran.log").read_text().split()]
    assert set(ran) == set(range(jobs))
    text = worker.output.read_text()
    assert "Traceback" not in text, text[-3_000:]
    assert "this is a bug" not in text
