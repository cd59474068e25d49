"""What is told of a store that takes no writes: until when, and what shows that it is over."""

from __future__ import annotations

from packhorse.errors import ConfigurationError, InvalidOption, QueueFull, StoreFull, Unavailable
from packhorse.observe import metrics
from packhorse.observe.meters import Meters
from packhorse.observe.writing import TOLD_MS, Writing

FULL = StoreFull("no room")


def test_a_refusal_is_told_for_half_a_minute() -> None:
    writing = Writing()
    writing.failed("enqueue", FULL, 1_000)
    writing.failed("claim", FULL, 2_000)
    assert writing.problems(2_000) == ["the store does not do claim, enqueue: no room"]
    assert writing.problems(1_000 + TOLD_MS) == ["the store does not do claim: no room"]
    assert writing.problems(2_000 + TOLD_MS) == []


def test_only_the_same_call_that_wrote_shows_that_there_is_room() -> None:
    writing = Writing()
    for operation in ("enqueue", "claim"):
        writing.failed(operation, FULL, 0)
    for operation, answer in (("claim", []), ("tick", "something"), ("heartbeat", "a pulse"), ("find", "a page")):
        writing.done(operation, answer)
    assert writing.problems(1) == ["the store does not do claim, enqueue: no room"]
    writing.done("enqueue", ["stored"])
    assert writing.problems(1) == ["the store does not do claim: no room"]
    writing.done("claim", ["a job"])
    assert writing.problems(1) == []


def test_a_store_that_was_away_is_back_with_the_first_call_of_a_worker() -> None:
    writing = Writing()
    writing.failed("enqueue", Unavailable("away"), 0)
    writing.failed("heartbeat", ConfigurationError("read-only"), 0)
    writing.failed("settle", FULL, 0)
    writing.done("counts", {"q": 1})
    assert len(writing.problems(1)) == 3
    writing.done("claim", [])
    assert writing.problems(1) == ["the store does not do settle: no room"]


def test_what_is_wrong_with_a_call_says_nothing_of_the_store() -> None:
    writing = Writing()
    writing.failed("enqueue", InvalidOption("x"), 0)
    writing.failed("enqueue", QueueFull("q", 1), 0)
    writing.failed("find", Unavailable("away"), 0)
    writing.failed("purge", FULL, 0)
    assert writing.problems(0) == []


def test_a_keeper_hears_what_the_store_refused_to_its_runners() -> None:
    runner, keeper = Meters(), Meters()
    sheet = runner.sheet()
    sheet.number(metrics.CALL_ERRORS, "settle", "StoreFull").value += 1
    sheet.number(metrics.CALL_ERRORS, "find", "Unavailable").value += 1
    keeper.writing.hear(runner.rises(), 0)
    (problem,) = keeper.writing.problems(1)
    assert "settle of a runner" in problem
    keeper.writing.hear(runner.rises(), TOLD_MS)
    assert keeper.writing.problems(TOLD_MS) == []
