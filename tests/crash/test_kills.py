"""kill -9 at any moment: every acknowledged job ends once, and every second run is explained."""

import os
import random
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from packhorse.job import State
from tests.witness import Witness, boot_s

from .harness import Lab, Start, result

FULL = os.environ.get("PACKHORSE_FULL") == "1"
#: Longer than a machine stands still: a lease that ran out under a living process would be a reason for a second run.
LEASE = "8s"


def by_job(starts: list[Start]) -> dict[str, list[Start]]:
    found = defaultdict(list)
    for start in starts:
        found[start.job].append(start)
    return found


@pytest.mark.timeout(400)
def test_kill_storm_loses_nothing_and_runs_nothing_without_a_reason(lab: Lab) -> None:
    """Every second a random runner or a whole worker is killed (B3, B4, B11, B17)."""
    count, seconds = (5_000, 60) if FULL else (1_500, 7)
    chance = random.Random(20261122)
    options = ("-c", "20", "-p", "2", "--lease", LEASE)
    ids = lab.enqueue("work", count, {"ms": 150 if FULL else 300}, max_attempts=100)
    workers = [lab.worker(*options), lab.worker(*options)]
    killed: set[int] = set()
    for _ in range(seconds):
        time.sleep(1)  # the rhythm of the storm, not a wait for something
        before = len(lab.lines())  # on a slow machine workers take longer to start: those would be hit that run nothing
        lab.until(lambda: len(lab.lines()) > before or lab.all_ended(ids), 60, "jobs are running")  # noqa: B023
        busy = lab.busy()
        hit = [index for index, worker in enumerate(workers) if busy.intersection(worker.runners())]
        index = chance.choice(hit or [0, 1])
        runners = workers[index].runners()
        if chance.random() < 0.3:
            killed.update(workers[index].kill_all())
            workers[index] = lab.worker(*options)
        elif runners:
            pid = chance.choice(sorted(busy.intersection(runners)) or runners)
            killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    lab.until(lambda: lab.all_ended(ids), 120, "all jobs ended")
    for worker in workers:
        assert worker.stop() == 0

    records = {job.id: job for job in lab.records(ids)}
    assert {job.state for job in records.values()} == {State.SUCCEEDED}
    starts = by_job(lab.lines())
    unexplained = []
    for job_id, runs in starts.items():
        record = records[job_id]
        assert len(runs) <= record.attempt <= record.max_attempts
        assert len({run.attempt for run in runs}) == len(runs), f"one attempt started twice: {runs}"
        unexplained += [run for run in sorted(runs, key=lambda run: run.attempt)[:-1] if run.pid not in killed]
    assert not unexplained, f"runs repeated although their process was not killed: {unexplained[:5]}"
    assert len(starts) == count
    assert killed, "the storm killed nobody"
    assert sum(len(runs) for runs in starts.values()) > count, "the storm hit no running job"


def test_a_dead_runners_jobs_start_again_within_two_seconds(lab: Lab, witness: Witness) -> None:
    worker = lab.worker("-p", "2", "-c", "4", "--lease", "30s")
    go = lab.directory / "go"
    ids = lab.enqueue("hold", 2, {"go": str(go)})
    lab.until(lambda: len(lab.lines()) == 2, 60, "both jobs started")
    victim = lab.lines()[0].pid
    lost = {start.job for start in lab.lines() if start.pid == victim}
    killed_at = boot_s()
    os.kill(victim, signal.SIGKILL)
    lab.until(lambda: len(lab.lines()) == 2 + len(lost), 60, "the lost jobs started again")
    again = [start for start in lab.lines() if start.attempt == 2]
    assert {start.job for start in again} == lost
    started_at = max(start.at for start in again)
    assert started_at - killed_at <= 2.0 + witness.lost_s(killed_at, started_at)
    go.touch()
    lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
    errors = [error for job in lab.records(ids) for error in job.errors]
    assert [error.kind for error in errors] == ["LeaseLapsed"] * len(lost)
    assert "SIGKILL" in errors[0].message
    assert worker.stop() == 0


def test_a_dead_workers_jobs_start_again_within_lease_and_five_seconds(lab: Lab, witness: Witness) -> None:
    """Keeper and runners die at once (B13, B18: the job's time-out of an hour does not matter)."""
    first = lab.worker("-c", "4", "--lease", "3s")
    go = lab.directory / "go"
    ids = lab.enqueue("hold", 1, {"go": str(go)}, timeout="1h")
    lab.until(lambda: len(lab.lines()) == 1, 60, "the job started")
    second = lab.worker("-c", "4", "--lease", "3s")
    lab.until(lambda: b" ready: " in second.output.read_bytes(), 60, "the other worker is ready")
    # The first, unless the machine has stood still for longer than its lease: then the job may be with either of them.
    before = lab.lines()
    holder, other = (second, first) if before[-1].pid in second.runners() else (first, second)
    killed_at = boot_s()
    holder.kill_all()
    lab.until(lambda: len(lab.lines()) > len(before), 60, "the job started again")
    again = lab.lines()[len(before)]
    assert again.at - killed_at <= 3 + 5 + witness.lost_s(killed_at, again.at)
    assert again.attempt == before[-1].attempt + 1
    go.touch()
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    assert result(lab.records(ids)[0]) == lab.lines()[-1].attempt
    assert other.stop() == 0


@pytest.mark.of_workers
def test_a_runner_without_keeper_finishes_and_ends(lab: Lab) -> None:
    worker = lab.worker("-c", "4", "--lease", "2s")
    go = lab.directory / "go"
    # One attempt is enough, unless the machine stands still for longer than the lease while the keeper lives.
    ids = lab.enqueue("hold", 1, {"go": str(go)}, max_attempts=100)
    lab.until(lambda: len(lab.lines()) >= 1, 60, "the job started")
    runners = worker.runners()
    worker.process.kill()
    worker.process.wait()
    killed_at = boot_s()
    lab.until(lambda: boot_s() - killed_at > 3, 60, "longer than the lease")
    started = [start.attempt for start in lab.lines()]
    go.touch()
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended although its keeper was gone")
    assert lab.states(ids) == {State.SUCCEEDED: 1}
    assert result(lab.records(ids)[0]) == started[-1], "it was run again"
    lab.until(lambda: not any(alive(pid) for pid in runners), 60, "the orphan ended by itself")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.of_workers
@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
def test_a_handler_that_kills_its_process_ends_after_its_attempts(lab: Lab, how: str) -> None:
    """B3: poison is counted; its neighbours end well."""
    worker = lab.worker("-c", "2")
    poison = lab.enqueue("die", 1, {"how": how}, max_attempts=3)
    good = lab.enqueue("work", 30, {"ms": 1}, max_attempts=20)
    lab.until(lambda: lab.all_ended(poison + good), 60, "all jobs ended")
    record = lab.records(poison)[0]
    assert record.state is State.FAILED
    assert record.attempt == 3
    assert len([start for start in lab.lines() if start.job == poison[0]]) == 3
    assert [error.kind for error in record.errors] == ["LeaseLapsed"] * 3
    assert lab.states(good) == {State.SUCCEEDED: 30}
    assert worker.stop() == 0


def test_what_had_not_begun_when_its_runner_died_loses_no_attempt(lab: Lab) -> None:
    """All have one attempt. What was only claimed beside a job that kills its process begins once, in the next one."""
    ids = lab.enqueue("take_turn", 100, max_attempts=1)
    (poison,) = lab.enqueue("die", payload={"how": "kill"}, max_attempts=3)
    ids += lab.enqueue("take_turn", 400, max_attempts=1)
    worker = lab.worker("-c", "4")
    lab.until(lambda: lab.all_ended([poison, *ids]), 60, "all ended")
    starts = by_job(lab.lines())
    assert [start.attempt for start in starts.pop(poison)] == [1, 2, 3]
    assert {job: len(found) for job, found in starts.items()} == dict.fromkeys(ids, 1)
    assert "given back: not begun" in worker.output.read_text()
    assert worker.stop() == 0


@pytest.mark.of_workers
def test_what_waits_for_a_process_when_its_runner_dies_loses_no_attempt(lab: Lab) -> None:
    processes = 2 * (os.cpu_count() or 1)
    count = 15 * processes
    ids = lab.enqueue("in_child", count, max_attempts=1)
    (poison,) = lab.enqueue("die", payload={"how": "exit"}, max_attempts=3, priority=9)
    worker = lab.worker("-c", str(count))
    lab.until(lambda: lab.all_ended([poison, *ids]), 60, "all ended")
    states = lab.states(ids)
    # It died three times, each time with as many that ran, and at most as many that had just ended.
    assert states.get(State.FAILED, 0) <= 3 * 2 * processes < len(ids)
    starts = by_job(lab.lines())
    assert len(starts.pop(poison)) == 3
    assert max(map(len, starts.values())) == 1
    assert worker.stop() == 0
