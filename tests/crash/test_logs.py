"""What a run logged is kept with its job, whatever becomes of its process."""

import os
import signal

import pytest

from packhorse.job import State
from packhorse.observe.job_log import read_logs

from .harness import Lab


def messages(lab: Lab, job_id: str) -> list[list[str]]:
    (record,) = lab.records([job_id])
    return [[line.message for line in log.lines] for log in read_logs(record.steps)]


@pytest.mark.parametrize("whom", ["runner", "worker"])
def test_lines_up_to_the_last_heartbeat_survive_kill_9(lab: Lab, whom: str) -> None:
    worker = lab.worker("-c", "2", "--lease", "2s")
    (job_id,) = lab.enqueue("talk", 1, {"ms": 60_000}, max_attempts=2)
    lab.until(lambda: messages(lab, job_id) == [["attempt 1 begins"]], 60, "its first line is kept while it runs")
    if whom == "worker":
        worker.kill_all()
        lab.worker("-c", "2", "--lease", "2s")
    else:
        (runner,) = worker.runners()
        os.kill(runner, signal.SIGKILL)
    lab.until(
        lambda: messages(lab, job_id) == [["attempt 1 begins"], ["attempt 2 begins"]],
        60,
        "the lines of the killed attempt stay, those of the next are beside them",
    )
    (record,) = lab.records([job_id])
    assert record.state is State.RUNNING
    assert record.attempt == 2
