"""What workers of other languages do is counted by the server: they count nothing."""

from __future__ import annotations

import pytest

from packhorse import Packhorse
from packhorse.observe.meters import Histogram, Number
from packhorse.observe.runs import Runs
from packhorse.server import handed
from packhorse.server.handed import Handed

from ..worker.working import new_app, work
from .worker_calls import claim, one_claimed, settle


def counted(app: Packhorse) -> dict[tuple[str, ...], float]:
    """All numbers that are not 0, by name and labels."""
    return {
        (metric.name, *labels): cell.value
        for metric, labels, cell in app.meters.read()
        if isinstance(cell, Number) and cell.value
    }


def runs_timed(app: Packhorse) -> int:
    return sum(
        sum(cell.counts)
        for metric, _, cell in app.meters.read()
        if metric.name == "packhorse_job_duration_seconds" and isinstance(cell, Histogram)
    )


@pytest.mark.parametrize(
    ("outcome", "rest", "metric", "status"),
    [
        ("succeeded", {}, "completed", "success"),
        ("failed", {"permanent": True}, "failed", "failure"),
        ("failed", {}, "retried", "failure"),
        ("cancelled", {}, "cancelled", None),
        ("released", {}, "released", None),
        ("snoozed", {"delay": "5m"}, "released", None),
        ("unknown", {}, "parked", None),
    ],
)
def test_an_end_counts_as_what_it_is(outcome: str, rest: dict[str, object], metric: str, status: str | None) -> None:
    async def scenario() -> None:
        app = new_app()
        app.task("email")(lambda: None)
        async with one_claimed(app) as (client, job):
            await settle(client, job, outcome, **rest)
            found = counted(app)
            assert found[f"packhorse_jobs_{metric}_total", "default", "email"] == 1
            runs = {key[2]: value for key, value in found.items() if key[0] == "worker_jobs_processed_total"}
            assert runs == ({} if status is None else {status: 1})
            assert runs_timed(app) == (status is not None)

    work(scenario)


def test_an_end_that_came_too_late_counts_as_refused_only() -> None:
    async def scenario() -> None:
        app = new_app()
        app.task("email")(lambda: None)
        async with one_claimed(app) as (client, job):
            await settle(client, job, "succeeded")
            assert await settle(client, job, "failed") == "stale"
            found = counted(app)
            assert found["packhorse_jobs_completed_total", "default", "email"] == 1
            assert found["packhorse_settlements_refused_total",] == 1
            assert not [key for key in found if key[0] == "packhorse_jobs_failed_total"]

    work(scenario)


def test_an_end_that_came_too_late_does_not_take_the_name_off_the_run_that_goes_on() -> None:
    """The job is in other hands by then, of the same server: its end is still of its queue and type, and timed."""

    async def scenario() -> None:
        app = new_app()
        app.task("email")(lambda: None)
        async with one_claimed(app) as (client, late):
            await (await app.backend()).retire("w1", "the line was cut")
            (again,) = (await claim(client, "w2"))["jobs"]
            assert again["id"] == late["id"]
            assert await settle(client, late, "succeeded") == "stale"
            assert await settle(client, again, "succeeded") == "applied"
            found = counted(app)
            assert found["packhorse_jobs_completed_total", "default", "email"] == 1
            assert found["worker_jobs_processed_total", "email", "success"] == 1
            assert runs_timed(app) == 1

    work(scenario)


def test_a_type_that_only_a_stranger_names_is_one_label() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            await settle(client, job, "succeeded")
            assert counted(app)["packhorse_jobs_completed_total", "default", "unknown"] == 1

    work(scenario)


def test_the_memory_of_what_was_handed_out_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "HANDED_MAX", 10)

    async def scenario() -> None:
        app = new_app()
        await app.aenqueue_many([("email", {}) for _ in range(30)])
        jobs = await (await app.backend()).claim(["default"], 30, 30_000, "w")
        keep = Handed(Runs(app.meters.sheet()), app.clock)
        for job in jobs:
            keep.note([job])
            assert len(keep._hands) <= 10

    work(scenario)
