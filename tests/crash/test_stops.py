"""Processes that are stopped, blocked or told to leave."""

import os
import signal
import subprocess
import sys
import time

import pytest

from packhorse.job import State
from tests.witness import Witness, boot_s

from .harness import HERE, Lab, result


def test_a_stopped_runner_loses_its_job_and_its_late_end_is_refused(lab: Lab) -> None:
    """SIGSTOP for three leases, then SIGCONT (B21): the new run's result stands."""
    first, second = (lab.worker("-c", "2", "--lease", "2s") for _ in range(2))
    lab.until(lambda: len(lab.live_workers()) == 2, 60, "both workers are there")
    go = lab.directory / "go"
    ids = lab.enqueue("hold", 1, {"go": str(go)}, max_attempts=100)
    lab.until(lambda: len(lab.lines()) == 1, 60, "the job started")
    victim = lab.lines()[0].pid
    stopped_at = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    lab.until(lambda: len(lab.lines()) >= 2, 60, "another worker runs the job")
    go.touch()
    lab.until(lambda: lab.all_ended(ids), 60, "another worker ran the job")
    lab.until(lambda: time.monotonic() - stopped_at >= 6, 60, "three leases passed")
    os.kill(victim, signal.SIGCONT)
    record = lab.records(ids)[0]
    assert result(record) == record.attempt >= 2  # more than 2 where the machine stood still for another lease
    # The zombie is told that its job is lost, stops it, and goes on to work.
    more = lab.enqueue("work", 20, {"ms": 1})
    lab.until(lambda: lab.all_ended(more), 60, "later jobs ended")
    assert lab.records(ids)[0] == record
    attempts = [start.attempt for start in lab.lines() if start.job == ids[0]]
    assert attempts[0] == 1
    assert attempts[-1] == record.attempt
    assert len(set(attempts)) == len(attempts)
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.of_workers
def test_a_handler_that_holds_the_interpreter_lock_for_three_leases_runs_once(lab: Lab, witness: Witness) -> None:
    worker = lab.worker("-c", "2", "--lease", "2s", "-p", "2")
    ids = lab.enqueue("hold_lock", 1, {"ms": 6_000}, max_attempts=5, timeout="1h")
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    assert lab.states(ids) == {State.SUCCEEDED: 1}
    if witness.stood_still_s() < 0.6:  # leases are renewed while a third of 2 s is left
        assert result(lab.records(ids)[0]) == 1
        assert len(lab.lines()) == 1
    assert worker.stop() == 0


@pytest.mark.of_workers
def test_a_loop_blocked_past_its_jobs_time_outs_is_killed(lab: Lab) -> None:
    """No lease can be kept for ever (DESIGN section 5, rule 6)."""
    worker = lab.worker("-c", "2", "--lease", "5s", "-p", "2")
    ids = lab.enqueue("wedge", 1, timeout="1s", max_attempts=2)
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    record = lab.records(ids)[0]
    assert record.state is State.FAILED
    assert record.attempt == 2
    assert "blocked" in record.errors[0].message
    good = lab.enqueue("work", 5, {"ms": 1})
    lab.until(lambda: lab.all_ended(good), 60, "the others go on")
    assert worker.stop() == 0


@pytest.mark.of_workers
@pytest.mark.timeout(240)
def test_ten_rolling_restarts_lose_fail_and_repeat_nothing(lab: Lab) -> None:
    """SIGTERM under load with a single attempt each (B7, B14)."""
    options = ("-c", "20", "--lease", "15s")  # longer than a machine stands still
    ids = lab.enqueue("work", 2_000, {"ms": 60}, max_attempts=1)
    workers = [lab.worker(*options), lab.worker(*options)]
    for index in range(10):
        before = len(lab.lines())
        lab.until(lambda: len(lab.lines()) > before + 30 or lab.all_ended(ids), 60, "work goes on")  # noqa: B023
        old = workers[index % 2]
        workers[index % 2] = lab.worker(*options)
        assert old.stop() == 0
    lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
    assert lab.states(ids) == {State.SUCCEEDED: 2_000}
    starts = lab.lines()
    assert len(starts) == len({start.job for start in starts}) == 2_000
    for worker in workers:
        assert worker.stop() == 0


@pytest.mark.of_workers
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_stopped_runner_goes_on_to_end_when_its_worker_is_told_to_stop(lab: Lab, busy: bool) -> None:
    """SIGSTOP of the runner, SIGTERM to the keeper: a runner that stood still would sit its grace time out."""
    worker = lab.worker("-c", "2", "--lease", "1h", "--shutdown-timeout", "1h")
    go = lab.directory / "go"
    ids = lab.enqueue("hold", int(busy), {"go": str(go)}, max_attempts=1)
    lab.until(lambda: b" ready: " in worker.output.read_bytes(), 60, "the worker is ready")
    lab.until(lambda: len(lab.lines()) == len(ids), 60, "the job started")
    os.kill(worker.runners()[0], signal.SIGSTOP)
    lab.until(lambda: b"is stopped (SIGSTOP" in worker.output.read_bytes(), 60, "the keeper saw it")
    go.touch()
    assert worker.stop() == 0
    assert {job.state for job in lab.records(ids)} == ({State.SUCCEEDED} if busy else set())


@pytest.mark.of_workers
def test_a_runner_that_stays_stopped_is_killed_when_the_grace_time_is_over(lab: Lab) -> None:
    """As under a debugger: SIGCONT does not help. It stops itself: we would come too late for it now and then."""
    worker = lab.worker("-c", "2", "--lease", "1h", "--shutdown-timeout", "1s")
    ids = lab.enqueue("hold_still", max_attempts=2)
    lab.until(lambda: b"is stopped (SIGSTOP" in worker.output.read_bytes(), 60, "the keeper saw it")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert "was stopped (SIGSTOP, or a debugger)" in lab.records(ids)[0].errors[0].message


#: A keeper that is told to stop while it starts the runner that comes after one that died.
STOPPED_WHILE_STARTING = """
import os, signal, sys
from packhorse.worker import keeper

launch, launched = keeper.launch, []

def launch_and_stop():
    launched.append(launch())
    if len(launched) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return launched[-1]

keeper.launch = launch_and_stop
sys.exit(keeper.run_keeper(keeper.KeeperOptions(app="crashapp:app", url=sys.argv[1])))
"""


#: A keeper whose store stands still when it is told to stop, which is when it makes good what a dead runner held.
STOPPED_WITHOUT_STORE = """
import asyncio, os, signal, sys
from packhorse.worker import keeper

open_backend, keeper.SETTLE_MS_MAX = keeper.open_backend, 500

def open_one_that_will_hang(url):
    backend = open_backend(url)

    async def retire(worker, reason):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(600)

    backend.retire = retire
    return backend

keeper.open_backend = open_one_that_will_hang
sys.exit(keeper.run_keeper(keeper.KeeperOptions(app="crashapp:app", url=sys.argv[1])))
"""


@pytest.mark.of_workers
@pytest.mark.parametrize(
    ("program", "said"),
    [
        # In nobody's list yet: nobody else would ever end it, nor the keeper that waits for it.
        pytest.param(STOPPED_WHILE_STARTING, "stopping", id="while-a-runner-is-being-started"),
        pytest.param(STOPPED_WITHOUT_STORE, "the store does not answer", id="while-the-store-stands-still"),
    ],
)
def test_a_keeper_stops_when_it_is_told_to(lab: Lab, program: str, said: str) -> None:
    lab.enqueue("die", 1, {"how": "exit"}, max_attempts=1)
    environ = {**os.environ, "CRASH_URL": lab.url, "CRASH_LOG": str(lab.log), "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", program, lab.url],
        cwd=lab.directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr


@pytest.mark.of_workers
def test_a_job_longer_than_the_lease_is_finished_during_shutdown(lab: Lab) -> None:
    """B7: leases are renewed while the worker stops."""
    worker = lab.worker("-c", "2", "--lease", "5s")  # longer than a machine stands still
    other = lab.worker("-c", "2", "--lease", "5s")
    go = lab.directory / "go"
    ids = lab.enqueue("hold", 1, {"go": str(go)}, max_attempts=1)
    lab.until(lambda: len(lab.lines()) == 1, 60, "the job started")
    busy = lab.lines()[0].pid
    (worker if busy in worker.runners() else other).process.send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    lab.until(lambda: time.monotonic() - told_at > 6, 60, "longer than the lease")
    go.touch()
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    assert lab.states(ids) == {State.SUCCEEDED: 1}
    assert len(lab.lines()) == 1
    assert worker.stop() == 0
    assert other.stop() == 0


@pytest.mark.of_workers
def test_a_runner_above_its_memory_limit_is_replaced_and_killed(lab: Lab) -> None:
    """Memory without end costs the job that eats it, not the machine."""
    worker = lab.worker("-c", "2", "--max-memory", "150MB")
    ids = lab.enqueue("eat_memory", 1, {"megabytes": 2_000}, timeout="60s", max_attempts=1)
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    record = lab.records(ids)[0]
    assert record.state is State.FAILED
    assert "MiB" in record.errors[0].message
    good = lab.enqueue("work", 5, {"ms": 1})
    lab.until(lambda: lab.all_ended(good), 60, "the others go on")
    assert worker.stop() == 0


@pytest.mark.of_workers
def test_runners_are_recycled_after_so_many_jobs_without_losing_one(lab: Lab) -> None:
    worker = lab.worker("-c", "10", "--max-jobs", "100")
    ids = lab.enqueue("work", 600, {"ms": 30}, max_attempts=1)
    lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
    assert lab.states(ids) == {State.SUCCEEDED: 600}
    assert len({start.pid for start in lab.lines()}) >= 2
    assert worker.stop() == 0


def test_cancel_reaches_a_running_job_within_two_seconds(lab: Lab, witness: Witness) -> None:
    worker = lab.worker("-c", "2", "--lease", "30s")
    ids = lab.enqueue("work", 1, {"ms": 60_000}) + lab.enqueue("block_thread", 1, {"ms": 60_000})
    lab.until(lambda: len(lab.lines()) == 2, 60, "both jobs started")
    asked_at = boot_s()
    lab.do(lambda backend: backend.cancel(ids))
    lab.until(lambda: lab.all_ended(ids), 60, "both jobs ended")
    took = boot_s() - asked_at
    assert took < 2.5 + witness.lost_s(asked_at, asked_at + took)
    assert lab.records(ids[:1])[0].state is State.CANCELLED
    assert worker.stop() == 0
