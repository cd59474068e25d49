"""kill -9 around the commit of a handler that settles in its own transaction: both or neither, and never twice."""

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pytest

from packhorse import Packhorse
from packhorse.job import State

from .harness import Lab, result

pytestmark = pytest.mark.parametrize("lab", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def bank(lab: Lab) -> Lab:
    """A store with a table for effects."""
    with Packhorse(lab.url) as app:
        app.counts()
    with closing(connect(lab)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS effects (n INTEGER)")
        connection.execute("DELETE FROM effects")
        connection.commit()
    return lab


def connect(lab: Lab) -> Any:
    if lab.url.startswith("sqlite"):
        return sqlite3.connect(lab.url.removeprefix("sqlite:///"))
    return psycopg.connect(lab.url.partition("?")[0])


def effects(lab: Lab) -> list[int]:
    with closing(connect(lab)) as connection:
        return [number for (number,) in connection.execute("SELECT n FROM effects ORDER BY n").fetchall()]


@pytest.mark.parametrize(("kill", "runs"), [("before settle_in", 2), ("before the commit", 2), ("after the commit", 1)])
def test_crash_around_the_commit_leaves_both_or_neither(bank: Lab, kill: str, runs: int) -> None:
    ids = [bank.enqueue("transfer", payload={"kill": kill, "number": number})[0] for number in range(3)]
    worker = bank.worker("-c", "1", "--lease", "30s")  # its keeper makes good at once what a dead runner held
    bank.until(lambda: bank.all_ended(ids), 60, "all jobs ended")
    bank.until(lambda: len(bank.lines("end")) >= 3 + (runs == 2) * 3, 60, "follow-ups ended")
    assert worker.stop() == 0
    records = bank.records(ids)
    assert [(job.state, job.attempt, result(job)) for job in records] == [
        (State.SUCCEEDED, runs, number) for number in range(3)
    ]
    assert [[error.kind for error in job.errors] for job in records] == [["LeaseLapsed"] * (runs - 1)] * 3
    assert effects(bank) == [0, 1, 2]
    starts = [start.job for start in bank.lines("start")]
    assert [starts.count(job_id) for job_id in ids] == [runs] * 3
    assert len(set(starts) - set(ids)) == 3  # one follow-up of each


@pytest.mark.timeout(300)
def test_a_kill_storm_commits_each_effect_once(bank: Lab) -> None:
    """Each job has its effect exactly once, wherever its worker was killed."""
    count = 80
    with Packhorse(bank.url) as app:
        payloads = [{"kill": "after the commit" if n % 20 == 0 else "no", "number": n} for n in range(count)]
        jobs = app.enqueue_many([{"type": "transfer", "payload": one, "max_attempts": 100} for one in payloads])
    ids = [job.id for job in jobs]
    options = ("-c", "4", "-p", "2", "--lease", "2s")
    workers = [bank.worker(*options)]
    for _ in range(3):
        ended = len(bank.lines("end"))
        bank.until(lambda ended=ended: len(bank.lines("end")) > ended + 15 or bank.all_ended(ids), 60, "some went on")
        workers[-1].kill_all()
        workers.append(bank.worker(*options))
    bank.until(lambda: bank.all_ended(ids), 120, "all jobs ended")
    assert workers[-1].stop() == 0
    assert {job.state for job in bank.records(ids)} == {State.SUCCEEDED}
    assert effects(bank) == list(range(count))
