"""What a run logged is kept with its job, whatever becomes of its process."""

import os
import signal

import pytest

from packhorse.observe.job_log import read_logs

from .harness import Lab


def messages(lab: Lab, job_id: str) -> list[list[str]]:
    (record,) = lab.records([job_id])
    return [[line.message for line in log.lines] for log in read_logs(record.steps)]


@pytest.mark.parametrize("whom", ["runner", "worker"])
def test_lines_up_to_the_last_heartbeat_survive_kill_9(lab: Lab, whom: str) -> None:
    # It is attempt 1 that is killed, unless the machine stands still for longer than the lease.
    worker = lab.worker("-c", "2", "--lease", "2s")
    (job_id,) = lab.enqueue("talk", 1, {"ms": 200_000}, max_attempts=100)
    lab.until(lambda: bool(messages(lab, job_id)), 60, "its first line is kept while it runs")
    kept = messages(lab, job_id)
    if whom == "worker":
        worker.kill_all()
        lab.worker("-c", "2", "--lease", "2s")
    else:
        (runner,) = worker.runners()
        os.kill(runner, signal.SIGKILL)
    lab.until(lambda: len(messages(lab, job_id)) > len(kept), 60, "the lines of the next attempt are kept too")
    (record,) = lab.records([job_id])
    found = [(log.attempt, [line.message for line in log.lines]) for log in read_logs(record.steps)]
    assert [lines for _, lines in found[: len(kept)]] == kept, "the lines of the killed attempt stay"
    assert all(lines == [f"attempt {attempt} begins"] for attempt, lines in found)
    assert [attempt for attempt, _ in found] == sorted({attempt for attempt, _ in found})
    assert record.attempt >= found[-1][0] > found[0][0]
