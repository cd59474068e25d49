"""Failure hooks of a worker: what is told when, also where nobody lived to tell, and that they can hurt no job."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from working import ended, faulty_app, new_app, store_of, until, work

from packhorse import Context, Failure, Packhorse, State
from packhorse.errors import Unavailable
from packhorse.worker import telling
from packhorse.worker.local import LocalWorker
from tests.http.kit import served
from tests.witness import boot_s

HERE = Path(__file__).parent


def hearing(app: Packhorse, **choice: Any) -> list[Failure]:
    """What a hook of the app is told from now on."""
    told: list[Failure] = []

    @app.on_failure(**choice)
    async def hear(failure: Failure) -> None:
        told.append(failure)

    return told


# ---- what is told when ---------------------------------------------------------------------------------------------


def test_a_time_out_is_told_for_each_kind_of_handler():
    app = new_app()
    told = hearing(app)

    @app.task("on_loop", max_attempts=1, timeout="50ms")
    async def on_loop() -> None:
        await asyncio.sleep(30)

    @app.task("in_thread", max_attempts=1, timeout="50ms")
    def in_thread(ctx: Context) -> None:
        ctx.wait_cancelled(30)

    async def scenario() -> None:
        async with app, app.worker():
            await app.aenqueue("on_loop")
            await app.aenqueue("in_thread")
            await until(lambda: len(told) == 2)

    work(scenario)
    assert {failure.type for failure in told} == {"on_loop", "in_thread"}
    for failure in told:
        assert (failure.error_kind, failure.final, failure.error) == ("TimedOut", True, None)
        assert failure.duration_ms is not None
        assert 40 <= failure.duration_ms < 20_000  # its handler would take 30 s


def test_nothing_is_told_before_the_store_has_taken_it():
    """What a hook hears is what the job's record says."""
    app, backend = faulty_app()
    told = hearing(app)
    tried = []

    @app.task("broken", max_attempts=1)
    async def broken() -> None:
        raise ValueError("it broke")

    def away() -> None:
        tried.append(len(told))
        raise Unavailable("the store is away")

    async def scenario() -> None:
        async with app, app.worker():
            backend.fail["settle"] = away
            job = await app.aenqueue("broken")
            await until(lambda: len(tried) >= 3)
            assert tried == [0] * len(tried)
            del backend.fail["settle"]
            await until(lambda: told)
            assert (await job.arecord()).state is State.FAILED

    work(scenario)
    assert [failure.error_kind for failure in told] == ["ValueError"]


def test_an_end_whose_answer_was_lost_is_told_once():
    app, backend = faulty_app()
    told = hearing(app)
    settle = backend.settle
    lost = []

    async def loses_the_first_answer(settlements: Any) -> Any:
        verdicts = await settle(settlements)
        if not lost:
            lost.append(settlements)
            raise Unavailable("the answer was lost")
        return verdicts

    backend.settle = loses_the_first_answer  # type: ignore[method-assign]

    @app.task("broken", max_attempts=1)
    async def broken() -> None:
        raise ValueError("it broke")

    async def scenario() -> None:
        async with app, app.worker():
            await app.aenqueue("broken")
            await until(lambda: told)

    work(scenario)
    assert lost
    assert [(failure.error_kind, failure.message, failure.final) for failure in told] == [
        ("ValueError", "it broke", True)
    ]


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_run_whose_lease_was_lost_is_told_as_lapsed(attempts):
    app = new_app()
    told = hearing(app)
    starts = []

    @app.task("slow", max_attempts=attempts)
    async def slow(ctx: Context) -> None:
        starts.append(ctx.attempt)
        if ctx.attempt == 1:
            await asyncio.sleep(30)

    async def scenario() -> None:
        async with app, app.worker() as worker:
            job = await app.aenqueue("slow")
            await until(lambda: starts)
            await lose_lease(app, worker)
            await until(lambda: told)
            await ended(app, job)

    work(scenario)
    (failure,) = told
    assert failure.lapsed
    assert (failure.attempt, failure.final) == (1, attempts == 1)
    assert "the lease of the worker ran out" in failure.message
    assert (failure.error, failure.worker) == (None, None), "who ticked does not know whose it was"


async def lose_lease(app: Packhorse, worker: LocalWorker) -> None:
    """Let the worker's lease be over, and its own ticker see that before its heart."""
    assert worker.engine is not None
    assert worker.engine.ticker is not None
    info, _ = store_of(app).workers[worker.engine.info.id]
    store_of(app).workers[info.id] = (info, 0)
    await worker.engine.ticker.tick()


def test_a_failure_that_came_too_late_is_told_as_the_lapse_it_was():
    """The run raised after its lease was gone: its own error is not what the job keeps."""
    app = new_app()
    told = hearing(app)
    started = asyncio.Event()

    @app.task("slow", max_attempts=1)
    async def slow() -> None:
        started.set()
        await release.wait()
        raise ValueError("too late")

    async def scenario() -> None:
        async with app, app.worker() as worker:
            await app.aenqueue("slow")
            await started.wait()
            assert worker.engine is not None
            release.set()  # both happen before the loop comes round: the run ends, and the store has it lapsed
            await lose_lease(app, worker)
            await until(lambda: told)
            await until(lambda: worker.engine.runner.busy == 0 and not worker.engine.settler.pending)

    release = asyncio.Event()
    work(scenario)
    assert [(failure.error_kind, failure.final) for failure in told] == [("LeaseLapsed", True)]


def test_a_job_that_was_cancelled_is_not_told():
    app = new_app()
    told = hearing(app)
    started = []

    @app.task("slow")
    async def slow() -> None:
        started.append(1)
        await asyncio.sleep(30)

    async def scenario() -> None:
        async with app, app.worker():
            job = await app.aenqueue("slow")
            await until(lambda: started)
            await job.acancel()
            await ended(app, job)

    work(scenario)
    assert told == []


def test_errors_of_child_processes_and_their_deaths_are_told():
    import process_jobs

    app = process_jobs.app
    told = hearing(app)

    async def scenario() -> None:
        async with app, app.worker():
            await app.aenqueue("end", {"how": "error"}, max_attempts=1)
            await app.aenqueue("end", {"how": "kill"}, max_attempts=1)
            await until(lambda: len(told) == 2)

    try:
        work(scenario)
    finally:
        app.failure_hooks.clear()
    kinds = {failure.error_kind: failure for failure in told}
    assert set(kinds) == {"ValueError", "ProcessDied"}
    assert "from the child" in kinds["ValueError"].traceback
    assert all(failure.error is None for failure in told), "it was raised in another process"


def test_what_could_not_be_stopped_at_a_shutdown_is_told_as_lapsed():
    app = new_app(shutdown_timeout="10ms")
    told = hearing(app)
    started, release = threading.Event(), threading.Event()

    @app.task("stubborn", max_attempts=1)
    def stubborn() -> None:
        started.set()
        release.wait(20)

    async def scenario() -> None:
        async with app:
            async with app.worker(stop_grace_ms=20):
                await app.aenqueue("stubborn")
                await until(started.is_set)
            release.set()

    work(scenario)
    assert [(failure.type, failure.lapsed, failure.final) for failure in told] == [("stubborn", True, True)]


def test_a_transaction_that_was_left_open_is_told_as_the_failure_it_becomes(tmp_path):
    """The handler ended well; that its `settle_in` was not committed only shows at the store."""
    app = Packhorse(f"sqlite:///{tmp_path / 'jobs.db'}")
    told = hearing(app)

    @app.task("forgetful", max_attempts=1)
    async def forgetful(ctx: Context) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            await ctx.settle_in(connection)
            connection.rollback()

    async def scenario() -> None:
        async with app, app.worker():
            await app.aenqueue("forgetful")
            await until(lambda: told)

    work(scenario)
    assert [(failure.error_kind, failure.final, failure.attempt) for failure in told] == [("NotCommitted", True, 1)]


def test_a_worker_over_http_tells_its_hooks_too():
    async def scenario() -> list[Failure]:
        async with served() as url:
            app = Packhorse(url)
            told = hearing(app)
            started = []

            @app.task("broken", max_attempts=1)
            async def broken() -> None:
                raise ValueError("it broke")

            @app.task("slow", max_attempts=1)
            async def slow() -> None:
                started.append(1)
                await asyncio.sleep(30)

            async with app, app.worker() as worker:
                await app.aenqueue("broken")
                await app.aenqueue("slow")
                await until(lambda: started and told)
                assert worker.engine is not None
                await worker.engine._retire("its host was cut off")
                await until(lambda: len(told) == 2)
            return told

    told = work(scenario)
    assert [(failure.type, failure.error_kind, failure.final) for failure in told] == [
        ("broken", "ValueError", True),
        ("slow", "LeaseLapsed", True),
    ]


def test_the_trace_that_a_job_carries_is_told():
    app = new_app()
    told = hearing(app)

    @app.task("broken", max_attempts=1)
    async def broken() -> None:
        raise ValueError

    async def scenario() -> None:
        async with app, app.worker():
            await app.aenqueue("broken", meta={"traceparent": f"00-{'ab' * 16}-{'12' * 8}-01"})
            await until(lambda: told)

    work(scenario)
    assert told[0].trace_id == "ab" * 16


# ---- a hook can hurt no job ----------------------------------------------------------------------------------------


def failing_app(count: int = 1) -> tuple[Packhorse, Callable[[], Any]]:
    app = new_app()

    @app.task("broken", max_attempts=1)
    async def broken(n: int = 0) -> None:
        raise ValueError(f"number {n}")

    return app, lambda: app.aenqueue_many([("broken", {"n": n}) for n in range(count)])


@pytest.mark.parametrize("kind", ["async", "thread", "ignores its cancellation"])
def test_a_hook_that_hangs_holds_up_neither_jobs_nor_other_hooks_nor_the_stop(kind, monkeypatch, caplog, witness):
    monkeypatch.setattr(telling, "CALL_MS_MAX", 30)
    monkeypatch.setattr(telling, "HOOKS_MS_MAX", 200)
    monkeypatch.setattr(telling, "HOOKS_CLOSE_MS_MAX", 100)
    app, enqueue = failing_app(3)
    release = threading.Event()

    async def waits(failure: Failure) -> None:
        await asyncio.sleep(60)

    def blocks(failure: Failure) -> None:
        release.wait(20)

    async def stays(failure: Failure) -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    app.on_failure({"async": waits, "thread": blocks}.get(kind, stays))
    told = hearing(app)

    async def scenario() -> None:
        async with app:
            async with app.worker():
                jobs = await enqueue()
                for job in jobs:
                    assert (await ended(app, job)).state is State.FAILED
                await until(lambda: len(told) == 3)
            release.set()
            await asyncio.sleep(0.06 if kind.startswith("ignores") else 0)  # its turn to notice, so that none is left

    started = boot_s()
    with caplog.at_level(logging.ERROR, "packhorse.failures"):
        work(scenario)
    release.set()
    assert witness.since_s(started) < 5
    assert "took longer than 0.03 s" in caplog.text


def test_when_too_many_calls_hang_the_rest_is_dropped_counted_and_said(monkeypatch, caplog):
    monkeypatch.setattr(telling, "CALL_MS_MAX", 10)
    monkeypatch.setattr(telling, "HUNG_MAX", 4)
    monkeypatch.setattr(telling, "HOOKS_MS_MAX", 500)
    app, enqueue = failing_app(40)
    release = threading.Event()
    app.on_failure(lambda failure: release.wait(20))
    teller = []

    async def scenario() -> None:
        async with app, app.worker() as worker:
            teller.append(worker.engine.failures)
            await enqueue()
            await until(lambda: teller[0].told + teller[0].dropped == 40)

    work(scenario)
    release.set()
    assert teller[0].dropped >= 40 - 4 - telling.AT_ONCE_MAX
    assert "calls of hooks hang" in caplog.text


def test_what_waits_is_bounded_and_what_is_dropped_is_said(monkeypatch, caplog):
    monkeypatch.setattr(telling, "WAITING_MAX", 10)
    app, enqueue = failing_app(100)
    release = asyncio.Event()
    heard = []

    @app.on_failure
    async def slow(failure: Failure) -> None:
        await release.wait()
        heard.append(failure.id)

    async def scenario() -> None:
        async with app, app.worker() as worker:
            jobs = await enqueue()
            for job in jobs:
                await ended(app, job)
            teller = worker.engine.failures
            await until(lambda: teller.dropped)
            release.set()
            await until(lambda: len(heard) + teller.dropped == 100)
            assert len(heard) >= 10
            assert at_once[0] <= telling.AT_ONCE_MAX

    at_once = [0]
    work(scenario)
    assert "failures are not told to the hooks" in caplog.text


@pytest.mark.parametrize("waiting_for", ["the hook", "the store"])
def test_b6_failures_that_wait_do_not_keep_all_that_their_runs_held(waiting_for, monkeypatch):
    """An exception has a traceback, that has frames, and those have the handler's local variables."""
    monkeypatch.setattr(telling, "ERRORS_MAX", 20)
    app, backend = faulty_app()
    release = asyncio.Event()
    held: weakref.WeakSet[Any] = weakref.WeakSet()
    heard: list[Failure] = []

    class Large: ...

    @app.task(max_attempts=1)
    async def broken() -> None:
        large = Large()
        held.add(large)
        raise ValueError("it broke")

    @app.on_failure
    async def slow(failure: Failure) -> None:
        await release.wait()
        heard.append(failure)

    def away() -> None:
        raise Unavailable("the store is away")

    async def scenario() -> None:
        async with app, app.worker() as worker:
            if waiting_for == "the store":
                backend.fail["settle"] = away
            await app.aenqueue_many([("broken", {})] * 300)
            await until(lambda: worker.engine.runner.ended == 300)
            if waiting_for == "the hook":
                await worker.engine.settler.drained()
            gc.collect()
            assert 0 < len(held) <= 2 * telling.ERRORS_MAX + telling.AT_ONCE_MAX + 1
            backend.fail.clear()
            release.set()
            await until(lambda: len(heard) == 300)

    work(scenario)
    assert {(failure.error_kind, failure.message) for failure in heard} == {("ValueError", "it broke")}
    assert sum(failure.error is not None for failure in heard) >= telling.ERRORS_MAX


def test_a_hook_that_always_fails_is_said_once_a_minute(caplog):
    app, enqueue = failing_app(50)
    calls = []

    @app.on_failure
    async def breaks(failure: Failure) -> None:
        calls.append(failure.id)
        raise RuntimeError("canary of the hook")

    async def scenario() -> None:
        async with app, app.worker():
            await enqueue()
            await until(lambda: len(calls) == 50)

    with caplog.at_level(logging.ERROR, "packhorse.failures"):
        work(scenario)
    lines = [record for record in caplog.records if record.name == "packhorse.failures"]
    assert len(lines) == 1
    assert "canary of the hook" in caplog.text


def test_the_stop_of_a_worker_waits_for_what_is_told(monkeypatch):
    app, enqueue = failing_app(20)
    told = []

    @app.on_failure
    async def slow(failure: Failure) -> None:
        await asyncio.sleep(0.01)
        told.append(failure.id)

    async def scenario() -> None:
        async with app:
            await enqueue()
            await app.worker(burst=True).run()

    work(scenario)
    assert len(told) == 20


def test_a_hook_with_a_close_is_closed_with_the_worker_and_for_no_longer_than_it_may(monkeypatch, caplog):
    monkeypatch.setattr(telling, "HOOKS_CLOSE_MS_MAX", 50)
    app, enqueue = failing_app(1)
    seen: list[str] = []

    class Sends:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        async def __call__(self, failure: Failure) -> None:
            seen.append(f"{self.name} told")

        async def close(self) -> None:
            await asyncio.sleep(self.seconds)
            seen.append(f"{self.name} closed")

    app.on_failure(Sends("quick", 0))
    app.on_failure(Sends("slow", 30))

    async def scenario() -> None:
        async with app:
            await enqueue()
            await app.worker(burst=True).run()

    with caplog.at_level(logging.ERROR, "packhorse.failures"):
        work(scenario, limit_s=25)  # less than its close would take
    assert seen == ["quick told", "slow told", "quick closed"]
    assert "its close: TimeoutError" in caplog.text


# ---- where nobody lived to tell: real workers ----------------------------------------------------------------------


class Told:
    """A real `packhorse worker` of `failure_jobs`, and what its hook wrote down."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.url = f"sqlite:///{directory / 'jobs.db'}"
        self._log = directory / "failures.log"
        self._output = directory / "worker.log"
        environ = {**os.environ, "FAILURES_URL": self.url, "FAILURES_LOG": str(self._log), "PYTHONPATH": str(HERE)}
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "packhorse", "worker", "failure_jobs:app", *options],
                cwd=directory,
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def until(self, condition: Callable[[], Any], what: str, limit_s: float = 60) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {limit_s} s; {self.lines()}\n{self._output.read_text()}"
            assert self.process.poll() is None, f"the worker ended\n{self._output.read_text()}"
            time.sleep(0.02)

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not stop\n{self._output.read_text()}") from None
        assert code == 0, self._output.read_text()
        return self._output.read_text()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path, "-p", "2", "-c", "4")
    try:
        yield told
    finally:
        if told.process.poll() is None:
            told.process.terminate()
            told.process.wait(60)


def test_a_runner_that_was_killed_or_exits_is_told_of_by_another(worker: Told) -> None:
    """The keeper runs no user code: it hands over what the dead one held. First the retry, then the end for good."""
    with Packhorse(worker.url) as app:
        killed = app.enqueue("die", {"how": "kill"}, max_attempts=2)
        worker.until(lambda: {line["attempt"] for line in worker.lines()} == {1, 2}, "both attempts told")
        exits = app.enqueue("die", {"how": "exit"}, max_attempts=1)
        worker.until(lambda: worker.lines()[-1]["id"] == exits.id, "the exit told")
        assert app.job(killed.id).state == app.job(exits.id).state == "failed"
    *told, last = worker.lines()  # one that died with its hook called, but before it could say so, is told of twice
    assert {(line["id"], line["attempt"], line["final"], line["kind"]) for line in told} == {
        (killed.id, 1, False, "LeaseLapsed"),
        (killed.id, 2, True, "LeaseLapsed"),
    }
    assert "SIGKILL" in told[0]["message"]
    assert "exit code 3" in last["message"]
    assert last["lapsed"]
    worker.stop()


def test_an_attempt_that_killed_its_runner_is_told_though_the_next_one_ended_well(worker: Told) -> None:
    with Packhorse(worker.url) as app:
        job = app.enqueue("die", {"how": "kill once"})
        assert job.result(timeout=60) == "survived"
        worker.until(worker.lines, "the first attempt told")
    (line,) = worker.lines()
    assert (line["attempt"], line["final"], line["lapsed"]) == (1, False, True)
    worker.stop()


def test_the_only_runner_of_a_worker_is_replaced_and_its_successor_tells(tmp_path: Path) -> None:
    worker = Told(tmp_path, "-p", "1")
    try:
        with Packhorse(worker.url) as app:
            app.enqueue("die", {"how": "kill"}, max_attempts=1)
            worker.until(worker.lines, "told")
            app.enqueue("fail_in_child", {}, max_attempts=1)
            worker.until(lambda: len(worker.lines()) == 2, "the child's error told")
        assert [line["kind"] for line in worker.lines()] == ["LeaseLapsed", "ValueError"]
        worker.stop()
    finally:
        if worker.process.poll() is None:
            worker.process.terminate()
            worker.process.wait(60)


def test_what_a_stop_leaves_running_is_told_before_the_worker_ends(tmp_path: Path) -> None:
    worker = Told(tmp_path, "-p", "1", "--shutdown-timeout", "100ms")
    try:
        with Packhorse(worker.url) as app:
            job = app.enqueue("never_stops", {}, max_attempts=1)
            worker.until(lambda: app.job(job.id).state == "running", "it runs")
        worker.stop()
        assert [(line["kind"], line["final"]) for line in worker.lines()] == [("LeaseLapsed", True)]
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(60)
