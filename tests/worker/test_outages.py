"""What goes wrong again and again is said once, and the end of it too: an outage must not flood the log."""

from __future__ import annotations

import logging

import pytest

from packhorse.clock import ManualClock
from packhorse.observe.outage import AGAIN_MS, TEXTS_MAX, Outage

log = logging.getLogger("packhorse.of-this-test")


class Watched:
    """An outage, a clock by hand, and the lines that were written."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = ManualClock()
        self.outage = Outage(log, self.clock, "claim")
        self._caplog = caplog

    def fail(self, text: str = "away", after_ms: int = 0) -> None:
        self.clock.advance(after_ms)
        self.outage.failed(RuntimeError(text))

    def lines(self) -> list[str]:
        """Answer what was written since the last look."""
        found = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO, "packhorse")
    return Watched(caplog)


def test_one_reason_is_said_once_and_the_end_with_how_long_it_lasted(watched: Watched) -> None:
    watched.fail()
    for _ in range(41):
        watched.fail(after_ms=1_000)
    watched.outage.over()
    watched.outage.over()
    assert watched.lines() == [
        "cannot claim, trying again: away",
        "the store answers again after 41 s: can claim again",
    ]


def test_another_reason_is_said_when_it_comes_and_the_first_is_not_repeated(watched: Watched) -> None:
    for text in ("refused", "timed out", "refused", "timed out"):
        watched.fail(text, after_ms=1_000)
    assert watched.lines() == ["cannot claim, trying again: refused", "cannot claim, trying again: timed out"]


def test_one_that_lasts_is_said_once_a_minute(watched: Watched) -> None:
    watched.fail()
    for _ in range(150):
        watched.fail(after_ms=1_000)
    assert watched.lines() == [
        "cannot claim, trying again: away",
        "cannot claim (for 60 s now), trying again: away",
        "cannot claim (for 120 s now), trying again: away",
    ]


def test_one_that_comes_and_goes_floods_no_more_than_one_that_stays(watched: Watched) -> None:
    for _ in range(59):
        watched.fail(after_ms=1_000)
        watched.outage.over()
    assert len(watched.lines()) == 2
    watched.fail(after_ms=AGAIN_MS)
    assert watched.lines() == ["cannot claim, trying again: away"]


def test_errors_that_all_read_differently_flood_nothing(watched: Watched) -> None:
    for number in range(1_000):
        watched.fail(f"port {number}", after_ms=10)
    assert len(watched.lines()) == TEXTS_MAX


def test_nothing_is_said_while_all_is_well(watched: Watched) -> None:
    watched.outage.over()
    assert watched.lines() == []
