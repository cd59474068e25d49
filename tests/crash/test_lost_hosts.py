"""A host is lost with keeper and runners: others see it, count what it held once, say it once, tell the hooks once."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any
from urllib.request import urlopen

import pytest

from packhorse.job import State
from tests.scraped import Scraped

from .harness import Lab, Worker

_WATCHED = ("--metrics", "127.0.0.1:0", "--log-format", "json")


@pytest.fixture
def hooked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Workers whose app has a failure hook."""
    monkeypatch.setenv("CRASH_HOOK", "1")
    return lab


def metrics_of(worker: Worker) -> Scraped:
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", worker.output.read_text())
    assert found is not None, worker.output.read_text()
    with urlopen(found[0], timeout=30) as answer:
        return Scraped(answer.read().decode())


def total(workers: list[Worker], name: str, **labels: str) -> float:
    return sum(metrics_of(worker).total(f"packhorse_jobs_{name}_total", **labels) for worker in workers)


def job_lines(worker: Worker) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in worker.output.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "packhorse.jobs"]


def test_what_a_lost_host_held_is_counted_said_and_told_once(hooked: Lab) -> None:
    """kill -9 of keeper and runner. Two other workers, which take from another queue, tick all the while."""
    others = [hooked.worker("-q", "elsewhere", *_WATCHED) for _ in range(2)]
    hooked.until(lambda: len(hooked.live_workers()) == 2, 60, "the others work")
    lost = hooked.worker("--lease", "8s", "-c", "4")  # whatever else this machine does meanwhile
    go = hooked.directory / "go"
    (poison,) = hooked.enqueue("hold", payload={"go": str(go)}, max_attempts=1)
    (again,) = hooked.enqueue("hold", payload={"go": str(go)}, max_attempts=2)
    hooked.until(lambda: {start.job for start in hooked.lines()} == {poison, again}, 60, "both run")
    lost.kill_all()
    hooked.until(lambda: hooked.states([poison, again]) == {State.FAILED: 1, State.PENDING: 1}, 60, "the lapse")
    hooked.until(lambda: len(hooked.lines("told-final") + hooked.lines("told")) >= 2, 60, "the hook is called")
    hooked.until(lambda: total(others, "recovered") == 2, 60, "both are counted as recovered")
    assert total(others, "failed", queue="default", job_type="hold") == 1
    assert total(others, "failed") == 1
    for worker in others:
        assert worker.stop() == 0  # what waits for a hook is told before a worker ends
    assert [(line.job, line.attempt) for line in hooked.lines("told-final")] == [(poison, 1)]
    assert [(line.job, line.attempt) for line in hooked.lines("told")] == [(again, 1)]
    said = {line["job_id"]: line for worker in others for line in job_lines(worker)}
    assert sum(len(job_lines(worker)) for worker in others) == len(said) == 2
    assert said[poison]["message"] == "job failed for good with its worker, attempt 1 of 1"
    assert said[again]["message"] == "job lost its worker, attempt 1 of 2"
    assert (said[poison]["level"], said[again]["level"]) == ("error", "warning")
    assert said[poison]["error"] == "LeaseLapsed: the lease of the worker ran out"


@pytest.mark.of_workers
def test_a_runner_that_was_stopped_until_its_lease_was_over_does_not_tell_again(hooked: Lab) -> None:
    """SIGSTOP of a runner until others made good what it held, and SIGCONT: it is told by who noticed, and once."""
    lost = hooked.worker("--lease", "2s", "-c", "4", "-p", "1")
    go = hooked.directory / "go"
    (job,) = hooked.enqueue("hold", payload={"go": str(go)}, max_attempts=1)
    hooked.until(lambda: bool(hooked.lines()), 60, "it runs")
    others = [hooked.worker("-q", "elsewhere", *_WATCHED)]
    hooked.until(lambda: len(hooked.live_workers()) == 2, 60, "the other works")
    (runner,) = lost.runners()
    os.kill(runner, signal.SIGSTOP)
    try:
        hooked.until(lambda: hooked.states([job]) == {State.FAILED: 1}, 60, "the lapse")
    finally:
        os.kill(runner, signal.SIGCONT)
    hooked.until(lambda: bool(hooked.lines("told-final")), 60, "the hook is called")
    go.touch()
    assert lost.stop() == 0
    assert others[0].stop() == 0
    assert [(line.job, line.attempt) for line in hooked.lines("told-final")] == [(job, 1)]
    assert hooked.lines("told") == []
