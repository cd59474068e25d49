"""The demo's checks notice when the promise is broken: each is shown a world in which it was."""

from __future__ import annotations

import mailbox
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from packhorse.demo.checking import Check, check_all
from packhorse.demo.ledger import LAPSED, Entry, Ledger
from packhorse.demo.mail import Mail, deliver, render
from packhorse.demo.planning import Planned
from packhorse.demo.textindex import Document, TextIndex
from packhorse.job import JobError, JobRecord, State


class World:
    """A ledger and the files that belong to it, in which at first everything is as promised."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger(None)  # type: ignore[arg-type]  # nothing is looked up here
        self.job("d1", "index_document", path="a.py")
        self.job("d2", "index_document", path="b.py")
        self.job("d3", "index_document", path="c.py")
        self.job("x3", "delete_document", path="c.py")
        self.job("d4", "index_document", State.FAILED, path="d.py")
        self.job("m1", "email")
        self.job("n1", "notification")
        self.index(lambda index: index.put([Document("a.py", "the horse"), Document("b.py", "the mule")]))
        self.mail("m1")
        self.notice("n1")

    def job(self, job_id: str, job_type: str, state: State = State.SUCCEEDED, **payload: Any) -> JobRecord:
        record = JobRecord(
            id=job_id,
            type=job_type,
            queue="default",
            state=state,
            payload=b"{}",
            priority=5,
            attempt=1,
            max_attempts=3,
            timeout_ms=0,
            created_at_ms=0,
            due_at_ms=0,
        )
        self.ledger.entries[job_id] = Entry(job_id, Planned(type=job_type, payload=payload), record)
        return record

    def record(self, job_id: str) -> JobRecord:
        record = self.ledger.entries[job_id].record
        assert record is not None
        return record

    def index(self, change: Callable[[TextIndex], object]) -> None:
        with closing(TextIndex(self.directory / "index.db")) as index:
            change(index)

    def mail(self, job_id: str) -> None:
        deliver(render(Mail(to="a@example.com"), job_id, 0), self.directory / "mail", job_id)

    def notice(self, job_id: str) -> None:
        with (self.directory / "outbox.jsonl").open("a") as outbox:
            outbox.write(f'{{"id":"{job_id}"}}\n')

    def broken(self) -> list[str]:
        return [check.promise for check in self.checks() if not check.held]

    def checks(self) -> list[Check]:
        return check_all(self.ledger, self.directory, max_attempts=3).checks


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_nothing_is_broken_at_first(world: World) -> None:
    assert len(world.checks()) == 7
    assert world.broken() == []


def test_a_job_that_has_not_ended(world: World) -> None:
    world.record("d4").state = State.RUNNING

    assert world.broken() == ["every acknowledged job reached a terminal state"]


def test_a_job_that_is_gone(world: World) -> None:
    world.ledger.entries["n1"].record = None

    assert "every acknowledged job reached a terminal state" in world.broken()


def test_a_job_that_ran_too_often(world: World) -> None:
    world.record("d1").attempt = 4

    assert world.broken() == ["no job ran more often than allowed"]


def test_a_document_that_is_missing(world: World) -> None:
    world.index(lambda index: index.remove("b.py"))

    assert world.broken() == ["the index holds exactly the documents whose jobs succeeded"]


@pytest.mark.parametrize("path", ["c.py", "d.py", "stranger.py"], ids=["deleted", "failed", "unknown"])
def test_a_document_too_many(world: World, path: str) -> None:
    world.index(lambda index: index.put([Document(path, "the ghost")]))

    assert world.broken() == ["the index holds exactly the documents whose jobs succeeded"]


def test_a_failed_job_whose_worker_was_lost_may_have_done_its_work(world: World) -> None:
    world.index(lambda index: index.put([Document("d.py", "done and then lost")]))
    world.record("d4").errors = (JobError(attempt=1, at_ms=0, kind=LAPSED, message=""),)

    assert world.broken() == []


def test_a_document_that_is_there_twice(world: World) -> None:
    world.index(lambda index: index._connection.execute("INSERT INTO texts (path, body) VALUES ('a.py', 'again')"))

    assert world.broken() == ["no document is there twice"]


def test_a_mail_that_was_not_delivered(world: World) -> None:
    (world.directory / "mail" / "new" / "m1").unlink()

    assert world.broken() == ["each mail delivered once"]


def test_a_mail_that_was_delivered_twice(world: World) -> None:
    with closing(mailbox.Maildir(world.directory / "mail")) as box:
        box.add(next(iter(box)))

    assert world.broken() == ["each mail delivered once"]


def test_a_mail_of_no_job(world: World) -> None:
    world.mail("m2")

    assert world.broken() == ["each mail delivered once"]


def test_a_notification_that_is_there_twice(world: World) -> None:
    world.notice("n1")

    assert world.broken() == ["each notification in the outbox once"]


def test_an_outbox_that_is_gone(world: World) -> None:
    (world.directory / "outbox.jsonl").unlink()

    assert world.broken() == ["each notification in the outbox once"]


def test_in_a_small_index_the_commonest_word_is_searched_for(world: World) -> None:
    findings = check_all(world.ledger, world.directory, max_attempts=3)

    assert (findings.query, [hit.path for hit in findings.hits]) == ("py", ["a.py", "b.py"])  # paths count too


def test_a_search_without_an_answer(world: World) -> None:
    world.index(lambda index: [index.remove(path) for path in index.paths()])

    assert world.broken() == [
        "the index holds exactly the documents whose jobs succeeded",
        "the index answers a search",
    ]
