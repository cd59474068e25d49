"""Processes that are stopped, blocked or told to leave."""

import os
import signal
import time

import pytest

from packhorse.job import State

from .harness import Lab, result


def test_a_stopped_runner_loses_its_job_and_its_late_end_is_refused(lab: Lab) -> None:
    """SIGSTOP for three leases, then SIGCONT (B21): the new run's result stands."""
    first, second = (lab.worker("-c", "2", "--lease", "2s") for _ in range(2))
    lab.until(lambda: len(lab.live_workers()) == 2, 30, "both workers are there")
    ids = lab.enqueue("work", 1, {"ms": 1_500})
    lab.until(lambda: len(lab.lines()) == 1, 20, "the job started")
    victim = lab.lines()[0].pid
    stopped_at = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    lab.until(lambda: lab.all_ended(ids), 20, "another worker ran the job")
    lab.until(lambda: time.monotonic() - stopped_at >= 6, 10, "three leases passed")
    os.kill(victim, signal.SIGCONT)
    record = lab.records(ids)[0]
    assert result(record) == 2
    # The zombie is told that its job is lost, stops it, and goes on to work.
    more = lab.enqueue("work", 20, {"ms": 1})
    lab.until(lambda: lab.all_ended(more), 20, "later jobs ended")
    assert lab.records(ids)[0] == record
    assert [start.attempt for start in lab.lines() if start.job == ids[0]] == [1, 2]
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.of_workers
def test_a_handler_that_holds_the_interpreter_lock_for_three_leases_runs_once(lab: Lab) -> None:
    worker = lab.worker("-c", "2", "--lease", "2s", "-p", "2")
    ids = lab.enqueue("hold_lock", 1, {"ms": 6_000}, max_attempts=5, timeout="1h")
    lab.until(lambda: lab.all_ended(ids), 30, "the job ended")
    assert lab.states(ids) == {State.SUCCEEDED: 1}
    assert result(lab.records(ids)[0]) == 1
    assert len(lab.lines()) == 1
    assert worker.stop() == 0


@pytest.mark.of_workers
def test_a_loop_blocked_past_its_jobs_time_outs_is_killed(lab: Lab) -> None:
    """No lease can be kept for ever (DESIGN section 5, rule 6)."""
    worker = lab.worker("-c", "2", "--lease", "5s", "-p", "2")
    ids = lab.enqueue("wedge", 1, timeout="1s", max_attempts=2)
    lab.until(lambda: lab.all_ended(ids), 45, "the job ended")
    record = lab.records(ids)[0]
    assert record.state is State.FAILED
    assert record.attempt == 2
    assert "blocked" in record.errors[0].message
    good = lab.enqueue("work", 5, {"ms": 1})
    lab.until(lambda: lab.all_ended(good), 20, "the others go on")
    assert worker.stop() == 0


@pytest.mark.of_workers
@pytest.mark.timeout(240)
def test_ten_rolling_restarts_lose_fail_and_repeat_nothing(lab: Lab) -> None:
    """SIGTERM under load with a single attempt each (B7, B14)."""
    options = ("-c", "20", "--lease", "3s")
    ids = lab.enqueue("work", 2_000, {"ms": 60}, max_attempts=1)
    workers = [lab.worker(*options), lab.worker(*options)]
    for index in range(10):
        before = len(lab.lines())
        lab.until(lambda: len(lab.lines()) > before + 30 or lab.all_ended(ids), 30, "work goes on")  # noqa: B023
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
def test_a_job_longer_than_the_lease_is_finished_during_shutdown(lab: Lab) -> None:
    """B7: leases are renewed while the worker stops."""
    worker = lab.worker("-c", "2", "--lease", "1s")
    other = lab.worker("-c", "2", "--lease", "1s")
    ids = lab.enqueue("work", 1, {"ms": 4_000}, max_attempts=1)
    lab.until(lambda: len(lab.lines()) == 1, 20, "the job started")
    busy = lab.lines()[0].pid
    (worker if busy in worker.runners() else other).process.send_signal(signal.SIGTERM)
    lab.until(lambda: lab.all_ended(ids), 20, "the job ended")
    assert lab.states(ids) == {State.SUCCEEDED: 1}
    assert len(lab.lines()) == 1
    assert worker.stop() == 0
    assert other.stop() == 0


@pytest.mark.of_workers
def test_a_runner_above_its_memory_limit_is_replaced_and_killed(lab: Lab) -> None:
    """Memory without end costs the job that eats it, not the machine."""
    worker = lab.worker("-c", "2", "--max-memory", "150MB")
    ids = lab.enqueue("eat_memory", 1, {"megabytes": 2_000}, timeout="60s", max_attempts=1)
    lab.until(lambda: lab.all_ended(ids), 40, "the job ended")
    record = lab.records(ids)[0]
    assert record.state is State.FAILED
    assert "MiB" in record.errors[0].message
    good = lab.enqueue("work", 5, {"ms": 1})
    lab.until(lambda: lab.all_ended(good), 20, "the others go on")
    assert worker.stop() == 0


@pytest.mark.of_workers
def test_runners_are_recycled_after_so_many_jobs_without_losing_one(lab: Lab) -> None:
    worker = lab.worker("-c", "10", "--max-jobs", "100")
    ids = lab.enqueue("work", 600, {"ms": 30}, max_attempts=1)
    lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
    assert lab.states(ids) == {State.SUCCEEDED: 600}
    assert len({start.pid for start in lab.lines()}) >= 2
    assert worker.stop() == 0


def test_cancel_reaches_a_running_job_within_two_seconds(lab: Lab) -> None:
    worker = lab.worker("-c", "2", "--lease", "30s")
    ids = lab.enqueue("work", 1, {"ms": 20_000}) + lab.enqueue("block_thread", 1, {"ms": 20_000})
    lab.until(lambda: len(lab.lines()) == 2, 20, "both jobs started")
    lab.do(lambda backend: backend.cancel(ids))
    took = lab.until(lambda: lab.all_ended(ids), 10, "both jobs ended")
    assert took < 2.5
    assert lab.records(ids[:1])[0].state is State.CANCELLED
    assert worker.stop() == 0
