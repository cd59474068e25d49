"""Tests of the tests of `bind`: what breaks one of its promises on SQLite is caught, by the case that is about it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from packhorse.backends.base import Settlement, Verdict
from packhorse.backends.sqlite import binding, moving
from packhorse.backends.sqlite.binding import Committing, SQLiteBound
from packhorse.testing.conformance import cases, check, harness_factory

_write = SQLiteBound._write


def commits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An enqueue is there before the caller's commit, and after a rollback."""

    def write(self: SQLiteBound, move, items: int):
        answer = _write(self, move, items)
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        return answer

    monkeypatch.setattr(SQLiteBound, "_write", write)


def begins_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no transaction is open, it opens one that nobody will end."""

    def begin(db: sqlite3.Connection) -> None:
        if not db.in_transaction:
            db.execute("BEGIN")

    monkeypatch.setattr(binding, "_see_transaction", begin)


def rolls_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal takes the caller's own work with it."""

    def write(self: SQLiteBound, move, items: int):
        try:
            return _write(self, move, items)
        except Exception:
            self._connection.execute("ROLLBACK")
            self._connection.execute("BEGIN IMMEDIATE")
            raise

    monkeypatch.setattr(SQLiteBound, "_write", write)


def wakes_at_the_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is woken before the commit sees nothing, and sleeps on."""
    monkeypatch.setattr(Committing, "expect", lambda self, topics: self._ring(topics))


def settles_whatever_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old run decides the outcome."""

    async def settle(self: SQLiteBound, settlements: list[Settlement]) -> list[Verdict]:
        self._write(lambda tx: moving.settle(tx, settlements), len(settlements))
        return [Verdict.APPLIED] * len(settlements)

    monkeypatch.setattr(SQLiteBound, "settle", settle)


def looks_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction does not see its own jobs."""

    async def get(self: SQLiteBound, ids: list[str]):
        return [None for _ in ids]

    monkeypatch.setattr(SQLiteBound, "get", get)


BROKEN = [
    commits_at_once,
    begins_by_itself,
    rolls_all_back,
    wakes_at_the_call_only,
    settles_whatever_runs,
    looks_from_outside,
]


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_the_cases_of_bind_catch(
    breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    breaks(monkeypatch)
    make = harness_factory("sqlite://", tmp_path)

    def make_harness():
        harness = make()
        harness.ring_ms = 200
        return harness

    report = check(make_harness, [case for case in cases() if case.topic == "bind"], stop=True)
    assert report.failed, f"no case noticed: {breaks.__doc__}"
