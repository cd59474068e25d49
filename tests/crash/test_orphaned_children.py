"""A child process of `executor="process"` whose runner is killed: it ends, whatever it does, with all it started."""

import os
import signal
from pathlib import Path

import pytest

from .harness import Lab

ROUNDS = 6
COUNT = 2


def lives(pid: int) -> bool:
    """Answer whether there is such a process; one that has ended and waits for its parent to look counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.of_workers
@pytest.mark.timeout(400)
def test_children_in_conversation_end_with_a_killed_runner(lab: Lab) -> None:
    worker = lab.worker("-c", str(COUNT))
    lab.enqueue("chat", COUNT, max_attempts=1_000, timeout="1h")
    try:
        for number in range(1, ROUNDS + 1):
            lab.until(lambda: len(lab.lines("program")) == COUNT * number, 60, "all run")  # noqa: B023
            pids = {line.pid for kind in ("start", "program") for line in lab.lines(kind)[-COUNT:]}
            os.kill(worker.runners()[0], signal.SIGKILL)
            lab.until(lambda: not any(map(lives, pids)), 60, f"{pids} are gone")  # noqa: B023
    finally:
        worker.kill_all()
        left = [line.pid for kind in ("start", "program") for line in lab.lines(kind) if lives(line.pid)]
        lab.until(lambda: not any(map(lives, left)), 60, f"{left} are gone, without a keeper too")
    assert "Traceback" not in worker.output.read_text()
