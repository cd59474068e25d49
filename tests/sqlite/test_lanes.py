"""Limits and turns: a statement reads only what it needs, and a claim costs the same whatever is held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import EACH_KEY, Limit
from packhorse.backends.sqlite import limit_rows, limiting, placing

from .helpers import new, opened, run, shell, succeeded
from .test_plans import _plan


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 pending jobs without a limit, 1,000 of a limited type, 1,000 of one limited by key; some run."""
    path = tmp_path_factory.mktemp("lanes") / "a.db"

    async def fill() -> None:
        async with opened(path) as backend:
            await backend.limits(
                [Limit(type="whole", concurrency=5), Limit(type="keyed", key=EACH_KEY, rate=5, concurrency=2)]
            )
            await backend.enqueue(new(1_000))
            await backend.enqueue(new(1_000, type="whole"))
            for key in ("a", "b", "c", "d"):
                await backend.enqueue(new(250, type="keyed", key=key))
            await backend.claim(["default"], 100, 30_000, "w")

    run(fill())
    return path


@pytest.mark.parametrize(
    ("sql", "values", "index"),
    [
        (limiting._TYPES, ("default",), "SEARCH queues"),
        (limiting._RUNNING, (), "COVERING INDEX running"),
        (limiting._NEXT_LANES, ("keyed", "default", 0, ""), "INDEX lanes_open (type=? AND queue=?"),
        (limiting._WHOLE, ("default", '["whole:"]', 10, 10), "COVERING INDEX laned (queue=? AND lane=?)"),
        (limiting._PLACES, ("default", '["whole:"]', 10, 10), "COVERING INDEX ready (queue=?)"),
        (limiting.CHOSEN, ("[]",), "INTEGER PRIMARY KEY"),
        (limiting._HAS_LANES, ("default", "whole:", "whole;"), "INDEX laned (queue=? AND lane>? AND lane<?)"),
        (limiting._SIFT, ("[]",), "INTEGER PRIMARY KEY"),
        (limiting._WAKE, (0,), "INDEX lanes_asleep (opens_at_ms"),
        (limiting._SLEEP, ("default", "[]", 0), "json_each"),
        (limiting._NEW_HEADS, ("default", "[]"), "COVERING INDEX laned (queue=? AND lane=?)"),
        (placing._FRONT, ("default",), "COVERING INDEX turns (queue=? AND key>?)"),
        (placing.LAST, ("default", "a", 5), "COVERING INDEX turns (queue=? AND key=? AND priority=?)"),
        (placing.QUEUES_WITH_LANES, (), "COVERING INDEX laned (queue>?)"),
        (placing.OPEN_QUEUES, (), "COVERING INDEX ready (queue>?)"),
        (limit_rows._LEFT, ("whole",), "COVERING INDEX laned (queue=? AND lane=?)"),
        (limit_rows._RUNNING, ("[]",), "INDEX running"),
    ],
)
def test_no_statement_looks_at_more_than_it_needs(store: Path, sql: str, values: Any, index: str) -> None:
    plan = _plan(store, sql, values)
    assert index in plan, plan
    for table in ("jobs", "lanes", "j"):
        assert f"SCAN {table} |" not in plan + " |", plan


def test_a_type_whose_limits_are_gone_leaves_the_lanes(tmp_path: Path) -> None:
    """Then claims are plain again, and cost what they cost without limits."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.limits([Limit(type="t", key=EACH_KEY, concurrency=1)])
            for key in ("a", "b"):
                await backend.enqueue(new(20, key=key))
            (first, second) = await backend.claim(["default"], 10, 30_000, "w")
            await backend.limits([Limit(type="t", key=EACH_KEY, cleared=True)])
            assert len(await backend.claim(["default"], 100, 30_000, "w")) == 38
            await backend.settle([succeeded(first), succeeded(second)])
            for _ in range(2):
                assert await backend.claim(["default"], 100, 30_000, "w") == []
            await backend.enqueue(new(1))
            assert len(await backend.claim(["default"], 100, 30_000, "w")) == 1

    run(main())
    db = shell(tmp_path / "a.db")
    for table in ("limited", "lanes"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    db.close()


@pytest.mark.parametrize("by_key", [False, True])
def test_a_claim_costs_the_same_however_much_is_held_back(tmp_path: Path, by_key: bool) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            await backend.limits([Limit(type="held", key=EACH_KEY if by_key else None, rate=1, period_ms=86_400_000)])
            db = backend._engine._db
            assert db is not None
            costs: list[int] = []
            stored = 0
            for size in (300, 15_000):
                while stored < size:
                    await backend.enqueue(new(100, type="held", key=f"key-{stored % 20}"))
                    stored += 100
                await backend.enqueue(new(50, type="free"))
                await backend.claim(["default"], 30, 30_000, "w")  # uses up what there is of tokens
                steps = 0

                def count() -> int:
                    nonlocal steps
                    steps += 1
                    return 0

                db.set_progress_handler(count, 10)
                jobs = await backend.claim(["default"], 20, 30_000, "w")
                db.set_progress_handler(None, 0)
                assert {job.type for job in jobs} == {"free"}
                costs.append(steps)
            assert costs[1] <= costs[0] * 1.5, costs

    run(main())
