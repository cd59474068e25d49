"""What each statement about families, keys, capacities, steps and schedules reads: none looks through a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import Query
from packhorse.backends.sqlite import (
    adding,
    arriving,
    departing,
    dropping,
    families,
    keeping,
    keys,
    looking,
    moving,
    records,
    reviving,
    rows,
    schedules,
)
from packhorse.job import State, Unique

from .helpers import new, opened, run
from .test_plans import _plan, _Recorder

STATEMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "who holds keys": (keys.HOLDERS, ("[]",)),
    "take keys": (keys.TAKE, ("[]",)),
    "forget who took keys": (keys.FORGET, ("[]",)),
    "keys of jobs": (keys._KEYS_OF, ("[]",)),
    "free keys": (keys.FREE, ("[]", "[]")),
    "rules of keys": (keys._WINDOWS, ("[]",)),
    "find parents": (families.FIND, ("[]",)),
    "join a family": (families._JOIN, ("[]",)),
    "mark parents": (families._MARK, ("[]",)),
    "edges of children": (families._EDGES_OF, ("[]",)),
    "tell": (families._TELL, ("[]",)),
    "whom to tell": (families.TO_TELL, ("[]", 3)),
    "who is left to tell": (families.UNTOLD, (3,)),
    "all told": (families._ALL_TOLD, ("[]",)),
    "bury": (families._BURY, (1, "[]")),
    "children to revive": (reviving.CANDIDATES, ("[]", 3)),
    "waiting_for": (rows._SAVE_FAMILIES, ("[]",)),
    "settled with children": (moving.WITH_CHILDREN, ("[]",)),
    "anything old": (dropping.ANY_KEPT, (5, 3)),
    "old parents": (dropping.PARENTS, (5, 3, 1, "", 3, 4)),
    "children of old parents": (dropping.CHILDREN, ("[]", 3)),
    "note the end of children": (dropping._NOTED, ("[]",)),
    "edges of what goes": (dropping.EDGES, ("[]", 3)),
    "capacities": (adding.CAPACITIES, ()),
    "pending up to": (adding.PENDING_UP_TO, ("a", 3)),
    "new families": (adding._NEW_KIN, ("[]",)),
    "steps": (records._STEPS, ("[]",)),
    "keep a step": (keeping._STEP.format("(?, ?, ?, ?)"), (1, 2, "a", b"b")),
    "schedules to plan": (schedules.PLANNED, (1, 1)),
    "next schedule": (schedules.NEXT, ()),
    "schedules by name": (schedules.NAMED, ("[]",)),
    "who leaves first": (departing.WAIT, (3,)),
    "who leaves next": (departing.NEXT, (1, 3)),
    "how large": (departing.SIZES, ("[]",)),
    "rules of keys of who leaves": (departing.RULES, ("[]",)),
    "parents of who leaves": (departing.TIES, ("[]",)),
    "leave": (departing._ABSENT, (1, "[]")),
    "mark who arrived": (arriving.MARK, ("[]",)),
    "who arrived ended": (arriving.UNTOLD, ("[]",)),
    "expect parents": (arriving._EXPECT, ("[]", "a")),
    "workflows": (looking.WORKFLOWS, (None, 1)),
}

#: What may be walked: what came in, what was made on the way, and two lists that are short.
_WALKED = re.compile(
    r"SCAN (\w+ VIRTUAL TABLE INDEX 1:|CONSTANT ROW|\(subquery-\d+\)|page|m|queues USING COVERING INDEX capacities)"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 waiting children of 100 parents in two workflows, made by a schedule, and 500 jobs with a key."""
    path = tmp_path_factory.mktemp("plans") / "a.db"

    async def fill() -> None:
        async with opened(path) as backend:
            parents = new(100)
            await backend.enqueue(parents)
            after = tuple(parent.id for parent in parents)
            for name in ("w1", "w2"):
                await backend.enqueue(new(1_000, after=after, workflow=name, schedule="s", node="n"))
            await backend.enqueue([new(unique=Unique(key=f"k{number}"))[0] for number in range(500)])

    run(fill())
    return path


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_looks_through_a_table(store: Path, name: str) -> None:
    sql, values = STATEMENTS[name]
    plan = _plan(store, sql, values)
    for step in plan.split(" | "):
        assert not step.startswith("SCAN ") or _WALKED.fullmatch(step), plan
    assert "TEMP B-TREE" not in plan or name == "workflows", plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(states=(State.WAITING,)), "COVERING INDEX listed (state=? AND seq<?)"),
        (Query(states=(State.WAITING,), queue="default"), "COVERING INDEX listed (state=? AND seq<?)"),
        (Query(workflow="w1"), "COVERING INDEX of_workflow (workflow=? AND rowid<?)"),
        (Query(workflow="w1", states=(State.WAITING,), cursor="900"), "INDEX of_workflow (workflow=? AND rowid<?)"),
        (Query(schedule="s", oldest_first=True), "COVERING INDEX of_schedule (schedule=? AND rowid>?)"),
    ],
)
def test_find_walks_in_order_and_sorts_nothing(store: Path, query: Query, index: str) -> None:
    recorder = _Recorder(store)
    page = looking.find(recorder, query)  # type: ignore[arg-type]
    recorder.db.close()
    assert page.jobs
    assert any(index in plan for plan in recorder.plans), recorder.plans
    assert not any("TEMP B-TREE" in plan for plan in recorder.plans), recorder.plans
