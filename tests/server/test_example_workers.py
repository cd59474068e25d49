"""The workers of examples/workers do real work against a real server: every job ends once, whatever happens to them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from packhorse import Packhorse
from packhorse.job import TERMINAL, JobRecord, State
from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.net.running import serving
from packhorse.server.service import Service

from ..servers import missing
from ..worker.working import new_app, store_of, until, work
from .kit import admitting

EXAMPLES = Path(__file__).parents[2] / "examples" / "workers"

_NEW_IN_NODE = re.compile(r"ExperimentalWarning|--trace-warnings")

JAVASCRIPT = """
import { existsSync, writeFileSync } from "node:fs";
const stopped = (signal) => new Promise((_, stop) => signal.addEventListener("abort", () => stop(signal.reason)));
export default {
  ok: async ({ n }) => n * 2,
  echo: async (payload) => JSON.stringify(payload),
  flaky: async (_, { job }) => { if (job.attempt === 1) throw new TypeError("the first time"); return job.attempt; },
  bad: async () => { throw Object.assign(new Error("never"), { permanent: true }); },
  held: async (_, { job, signal }) => { if (job.attempt === 1) await stopped(signal); return job.attempt; },
  slow: async (_, { signal, progress }) => {
    writeFileSync(process.env.MARKS + "/slow", "");
    progress(0.5);
    await stopped(signal);
  },
  gated: async () => {
    writeFileSync(process.env.MARKS + "/begun", "");
    while (!existsSync(process.env.MARKS + "/gate")) await new Promise((done) => setTimeout(done, 20));
  },
  short: async () => {
    writeFileSync(process.env.MARKS + "/begun", "");
    return new Promise((done) => setTimeout(done, 500, "whole"));
  },
};
"""

SHELL = {
    "ok": "read -r payload; n=${payload#*:}; n=${n%\\}}; echo $((n * 2))",
    "echo": "cat",
    "flaky": """mark=$(tr -dc 0-9)
if [ ! -e "$MARKS/$mark" ]; then : >"$MARKS/$mark"; echo the first time >&2; exit 1; fi
echo 2""",
    "bad": "echo never >&2; exit 65",
    "held": """mark=held$(tr -dc 0-9)
[ -e "$MARKS/$mark" ] || { : >"$MARKS/$mark"; sleep 60; }
echo 2""",
    "slow": ': >"$MARKS/slow"; sleep 60',
    "gated": ': >"$MARKS/begun"; while [ ! -e "$MARKS/gate" ]; do sleep 0.1; done',
    "short": ': >"$MARKS/begun"; sleep 0.5; echo whole',
}


class Site:
    """A server with its store, and workers that are started for it."""

    def __init__(self, app: Packhorse, url: str, directory: Path, kind: str) -> None:
        self.app = app
        self.url = url
        self.ends: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._directory = directory
        self._kind = kind
        self._workers: list[asyncio.subprocess.Process] = []

    async def start(self, **environ: str) -> asyncio.subprocess.Process:
        """Start a worker."""
        if self._kind == "node":
            command = ["node", str(EXAMPLES / "worker.mjs"), str(self._directory / "handlers.mjs")]
        else:
            command = ["sh", str(EXAMPLES / "worker.sh"), str(self._directory / "handlers")]
        worker = await asyncio.create_subprocess_exec(
            *command,
            env={
                "PATH": os.environ["PATH"],
                "MARKS": str(self._directory),
                "TMPDIR": str(self._directory),
                "PACKHORSE_SERVER": self.url,
                "LEASE": "60",  # on a busy machine a short one would lapse
                **environ,
            },
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._workers.append(worker)
        return worker

    async def stop(self, worker: asyncio.subprocess.Process) -> str:
        """Stop a worker in order; answers what it complained of."""
        worker.send_signal(signal.SIGTERM)
        _, complaints = await asyncio.wait_for(worker.communicate(), 60)
        assert worker.returncode == 0, complaints
        # Node 18 says on stderr that `fetch` is new.
        return "".join(line for line in complaints.decode().splitlines() if not _NEW_IN_NODE.search(line))

    async def close(self) -> None:
        """Kill what is left."""
        for worker in self._workers:
            if worker.returncode is None:
                os.killpg(worker.pid, signal.SIGKILL)
                _, complaints = await worker.communicate()
                self.complaints.append(complaints.decode())

    async def records(self, jobs: list[Any]) -> list[JobRecord]:
        return [record for record in await (await self.app.backend()).get([job.id for job in jobs]) if record]

    async def ended(self, jobs: list[Any], limit_s: float = 60) -> list[JobRecord]:
        """Wait until all of these ended; each did so once."""

        async def all_ended() -> bool:
            return all(record.state in TERMINAL for record in await self.records(jobs))

        try:
            await until(all_ended, limit_s)
        except AssertionError:
            left = [record for record in await self.records(jobs) if record.state not in TERMINAL]
            await self.close()
            pytest.fail(f"did not end within {limit_s} s: {left}; {self.complaints}")
        assert {self.ends[job.id] for job in jobs} == {1}
        return await self.records(jobs)

    async def running(self, count: int) -> None:
        """Wait until so many jobs run."""

        async def are_running() -> bool:
            counts = await self.app.acounts()
            return counts["default"].states.get(State.RUNNING, 0) == count

        await until(are_running)


def site_of(tmp_path: Path, kind: str):
    """Make a server in this loop, with handlers in `kind` that its tests use."""
    for program in ("node",) if kind == "node" else ("curl",):
        if shutil.which(program) is None:
            missing(f"{program} is needed for this test; make setup installs it on Debian")
    (tmp_path / "handlers.mjs").write_text(JAVASCRIPT)
    (tmp_path / "handlers").mkdir()
    for name, script in SHELL.items():
        (tmp_path / "handlers" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "handlers" / name).chmod(0o755)

    @asynccontextmanager
    async def open_site() -> AsyncIterator[Site]:
        app = new_app()

        @app.task("flaky", backoff="20ms")
        def flaky(n: int) -> None: ...

        service = Service(app)
        service.start()
        async with serving(make_application(service, admitting(LOCAL)), stopping=service.stopping) as url:
            await app.backend()
            site = Site(app, url, tmp_path, kind)
            store = store_of(app)
            end = store.end

            def counted(job: Any, *rest: Any) -> None:
                site.ends[job.id] += 1
                end(job, *rest)

            store.end = counted
            try:
                yield site
            finally:
                await site.close()
                await service.close()

    return open_site


@pytest.fixture(params=["node", "sh"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_fifty_jobs_end_once_each_with_failures_and_retries(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            types = ["ok", "ok", "ok", "flaky", "bad"]
            jobs = await site.app.aenqueue_many([(types[n % 5], {"n": n}) for n in range(50)])
            workers = [await site.start() for _ in range(2)]
            records = await site.ended(jobs, 80)
            for n, record in enumerate(records):
                if record.type == "ok":
                    assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
                    assert record.result in {b"%d" % (n * 2), b'"%d"' % (n * 2)}
                elif record.type == "flaky":
                    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
                    assert "the first time" in record.errors[0].message
                else:
                    assert (record.state, record.attempt) == (State.FAILED, 1)
                    assert "never" in record.errors[0].message
            for worker in workers:
                assert await site.stop(worker) == ""
            assert await (await site.app.backend()).workers() == []

    work(scenario, limit_s=100)


HOSTILE = [
    'a "quoted" \\ back\\slash',
    'fields: ,"payload":{"meta":{},"token":"x"} ,"meta":{',
    {"timeout_ms": 5, "priority": 1, "payload": {"meta": {"id": "x"}}, "token": "other", "type": "bad"},
    "lines\nand\ttabs $(touch owned) `touch owned` '; touch owned",
    "é 漢字 🐎",
    "x" * 200_000,
]


def test_c22_hostile_payloads_arrive_whole_and_run_nothing(tmp_path: Path, kind: str) -> None:
    """C22, C7: a payload is data, whatever it says; the shell's worker cuts it out of the answer unharmed."""
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        import msgspec

        async with site_open() as site:
            meta = {"payload": ',"meta":{', "meta": '"payload":'}
            jobs = [await site.app.aenqueue("echo", payload, meta=meta, tags=["payload"]) for payload in HOSTILE]
            worker = await site.start()
            for payload, record in zip(HOSTILE, await site.ended(jobs), strict=True):
                assert record.state is State.SUCCEEDED
                shown = msgspec.json.decode(record.result or b"null")
                if len(payload) < 4_000 or kind == "node":  # the shell keeps the end of a long output
                    assert msgspec.json.decode(shown) == payload
            assert await site.stop(worker) == ""
            assert not list(tmp_path.rglob("owned"))

    work(scenario, limit_s=100)


def test_a_cancelled_job_stops_and_the_worker_goes_on(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            slow = await site.app.aenqueue("slow", {})
            worker = await site.start(SLOTS="1")
            await until((tmp_path / "slow").exists)  # before that it would not be started at all
            after = await site.app.aenqueue("ok", {"n": 1})
            await slow.acancel()
            cancelled, done = await site.ended([slow, after])
            assert (cancelled.state, done.state) == (State.CANCELLED, State.SUCCEEDED)
            assert await site.stop(worker) == ""

    work(scenario, limit_s=100)


def test_a_run_is_stopped_at_its_time_out(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            slow = await site.app.aenqueue("slow", {}, timeout="1s", max_attempts=1)
            worker = await site.start(SLOTS="1")
            after = await site.app.aenqueue("ok", {"n": 1})
            failed, done = await site.ended([slow, after])
            assert (failed.state, done.state) == (State.FAILED, State.SUCCEEDED)
            assert failed.errors[0].kind != "LeaseLapsed"
            assert await site.stop(worker) == ""

    work(scenario, limit_s=100)


def test_a_worker_without_its_handlers_says_how_it_is_called(kind: str) -> None:
    command = ["node", EXAMPLES / "worker.mjs"] if kind == "node" else ["sh", EXAMPLES / "worker.sh"]
    if shutil.which(str(command[0])) is None:
        missing(f"{command[0]} is needed for this test; make setup installs it on Debian")
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("usage: ")


def test_b4_jobs_of_a_killed_worker_are_run_by_another(tmp_path: Path, kind: str) -> None:
    """B4, B17: kill -9 in the middle of jobs; their lease lapses, they run again, and each ends once."""
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            slots = 5 if kind == "node" else 1
            jobs = await site.app.aenqueue_many([("held", {"n": n}) for n in range(slots)])
            first = await site.start(LEASE="2")
            await site.running(slots)
            if kind == "sh":  # the handler has begun once it left its mark
                await until(lambda: list(tmp_path.glob("held*")))
            os.killpg(first.pid, signal.SIGKILL)
            await first.communicate()
            await site.start()
            for record in await site.ended(jobs):
                assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
                assert record.errors[0].kind == "LeaseLapsed"

    work(scenario, limit_s=100)


def test_a_worker_that_is_stopped_finishes_what_runs_and_retires(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            job = await site.app.aenqueue("short", {})
            worker = await site.start(SLOTS="1")
            await until((tmp_path / "begun").exists)
            waits = await site.app.aenqueue("ok", {"n": 1})
            assert await site.stop(worker) == ""
            (record,) = await site.ended([job])
            assert (record.state, record.result) == (State.SUCCEEDED, b'"whole"')
            (left,) = await site.records([waits])
            assert (left.state, left.attempt) == (State.PENDING, 0)
            assert await (await site.app.backend()).workers() == []

    work(scenario, limit_s=100)


def test_a_heartbeat_on_its_way_does_not_list_a_worker_that_has_retired(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            memory: Any = (await site.app.backend()).inner
            heartbeat, retire = memory.heartbeat, memory.retire
            is_held, retired = asyncio.Event(), asyncio.Event()

            async def slow_heartbeat(*args: Any) -> Any:
                if not is_held.is_set() and (tmp_path / "begun").exists():  # the first one while the job runs
                    is_held.set()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1.5):  # a worker that is right waits for it before it retires
                            await retired.wait()
                return await heartbeat(*args)

            async def seen_retire(*args: Any) -> Any:
                found = await retire(*args)
                retired.set()
                return found

            memory.heartbeat, memory.retire = slow_heartbeat, seen_retire
            job = await site.app.aenqueue("gated", {})
            worker = await site.start(SLOTS="1")
            await is_held.wait()
            worker.send_signal(signal.SIGTERM)
            (tmp_path / "gate").touch()
            await asyncio.wait_for(worker.communicate(), 60)
            await site.ended([job])
            assert await (await site.app.backend()).workers() == []

    work(scenario, limit_s=100)


def test_a_worker_that_waits_stops_at_once(tmp_path: Path, kind: str) -> None:
    site_open = site_of(tmp_path, kind)

    async def scenario() -> None:
        async with site_open() as site:
            worker = await site.start()

            async def is_there() -> bool:
                return len(await (await site.app.backend()).workers()) == 1

            await until(is_there)
            worker.send_signal(signal.SIGTERM)
            await asyncio.wait_for(worker.communicate(), 60)
            assert worker.returncode == 0
            assert await (await site.app.backend()).workers() == []

    work(scenario, limit_s=100)


def has_heard(pid: int) -> bool:
    """Answer whether no SIGTERM waits for a process any more, as the system says."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", status, re.MULTILINE)
    return not any(int(each, 16) >> (signal.SIGTERM - 1) & 1 for each in pending)


def test_two_signals_give_back_what_runs_without_an_attempt(tmp_path: Path) -> None:
    site_open = site_of(tmp_path, "node")

    async def scenario() -> None:
        async with site_open() as site:
            job = await site.app.aenqueue("slow", {})
            worker = await site.start()

            async def has_progress() -> bool:
                (record,) = await site.records([job])
                return record.progress == 0.5

            await until(has_progress)
            worker.send_signal(signal.SIGTERM)
            await until(lambda: has_heard(worker.pid))  # two signals at once would be one
            await site.stop(worker)
            (record,) = await site.records([job])
            assert (record.state, record.attempt) == (State.PENDING, 0)

    work(scenario, limit_s=100)
