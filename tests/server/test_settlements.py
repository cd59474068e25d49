"""Ends of runs over HTTP: the product's one policy decides what becomes of a job."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.backends.base import Keep
from packhorse.clock import ManualClock
from packhorse.errors import Unavailable
from packhorse.job import State

from ..worker.working import faulty_app, new_app, work
from .kit import client_of
from .worker_calls import claim, one_claimed, post, record_of, settle


def test_a_success_keeps_its_result() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            assert await settle(client, job, "succeeded", result={"sent": True}) == "applied"
            record = await record_of(app, job)
            assert (record.state, record.result) == (State.SUCCEEDED, b'{"sent":true}')
            # The answer got lost and it is sent again: nothing happens, and the worker is done with it.
            assert await settle(client, job, "failed") == "stale"
            assert (await record_of(app, job)).state is State.SUCCEEDED

    work(scenario)


def test_a_failure_is_tried_again_until_its_attempts_are_used_up() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with one_claimed(app, max_attempts=2) as (client, job):
            error = {"kind": "SMTPError", "message": "no route", "traceback": "line 1"}
            assert await settle(client, job, "failed", error=error) == "applied"
            record = await record_of(app, job)
            assert record.state in {State.SCHEDULED, State.PENDING}
            assert 0 <= record.due_at_ms - clock.now_ms() <= 1_000  # the default backoff
            clock.advance(2_000)
            await (await app.backend()).tick(10, Keep())
            (again,) = (await claim(client))["jobs"]
            assert (again["attempt"], again["token"] != job["token"]) == (2, True)
            await settle(client, again, "failed", error=error)
            record = await record_of(app, job)
            assert record.state is State.FAILED
            assert [(e.attempt, e.kind, e.message, e.traceback) for e in record.errors] == [
                (1, "SMTPError", "no route", "line 1"),
                (2, "SMTPError", "no route", "line 1"),
            ]

    work(scenario)


def test_the_backoff_is_that_of_the_task_where_the_server_knows_it() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)

        @app.task("email", backoff="10h", backoff_max="100h")
        def email() -> None: ...

        delays = []
        async with client_of(app) as client:
            for _ in range(10):
                handle = await email.aenqueue()
                (job,) = (await claim(client))["jobs"]
                await settle(client, job, "failed")
                delays.append((await handle.arecord()).due_at_ms - clock.now_ms())
        assert max(delays) > 60_000

    work(scenario)


@pytest.mark.parametrize(
    ("outcome", "rest", "state", "attempt", "kind"),
    [
        ("failed", {"permanent": True}, State.FAILED, 1, "Error"),
        ("retry", {"delay": "5m"}, State.SCHEDULED, 1, "Retry"),
        ("snoozed", {"delay": "5m"}, State.SCHEDULED, 0, None),
        ("snoozed", {"delay": 0}, State.PENDING, 0, None),
        ("cancelled", {}, State.CANCELLED, 1, "Cancelled"),
        ("released", {}, State.PENDING, 0, None),
        ("unknown", {}, State.SCHEDULED, 0, None),
        ("unknown", {"message": "no field `to`"}, State.SCHEDULED, 0, None),
    ],
)
def test_each_outcome_leads_where_the_same_does_in_python(
    outcome: str, rest: dict[str, Any], state: State, attempt: int, kind: str | None
) -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            assert await settle(client, job, outcome, **rest) == "applied"
            record = await record_of(app, job)
            assert (record.state, record.attempt) == (state, attempt)
            assert [error.kind for error in record.errors] == ([kind] if kind else [])
            if rest.get("delay") == "5m":
                assert 299_000 <= record.due_at_ms - app.clock.now_ms() <= 300_000

    work(scenario)


def test_a_result_that_cannot_be_kept_fails_the_job_for_good_as_in_python() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            assert await settle(client, job, "succeeded", result="x" * (1 << 20)) == "applied"
            record = await record_of(app, job)
            assert record.state is State.FAILED
            assert record.errors[-1].kind == "InvalidResult"

    work(scenario)


def test_c7_errors_are_text_of_bounded_size() -> None:
    """C7, C13: whatever a worker says of an error is kept as text, cut, without NUL."""

    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            error = {"kind": "K" * 9_000, "message": "m" * 100_000, "traceback": "t" * 100_000}
            await settle(client, job, "failed", error=error, permanent=True)
            (kept,) = (await record_of(app, job)).errors
            assert len(kept.kind) == 128
            assert len(kept.message) < 4_200
            assert len(kept.traceback) < 16_500

    work(scenario)


def test_a_batch_is_judged_one_by_one_in_order() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.aenqueue_many([("email", {"n": n}) for n in range(60)])
            jobs = (await claim(client, limit=100))["jobs"]
            ends: list[dict[str, Any]] = [
                {"id": job["id"], "token": job["token"], "outcome": ("succeeded", "failed", "released")[number % 3]}
                for number, job in enumerate(jobs)
            ]
            ends[7]["token"] = "another"
            ends.append({"id": "never-there", "token": "1", "outcome": "failed"})
            ends.append(dict(ends[0]))
            verdicts = [one["verdict"] for one in (await post(client, "settlements", settlements=ends))["settlements"]]
            assert [number for number, verdict in enumerate(verdicts) if verdict == "stale"] == [7, 60, 61]
            states = [(await record_of(app, job)).state for job in jobs[:3]]
            assert states[0] is State.SUCCEEDED
            assert states[1] in {State.SCHEDULED, State.PENDING}
            assert states[2] is State.PENDING
            assert (await record_of(app, jobs[7])).state is State.RUNNING

    work(scenario)


@pytest.mark.parametrize(
    ("end", "pointer"),
    [
        ({"outcome": "won"}, "/settlements"),
        ({}, "/settlements"),
        ({"outcome": "snoozed"}, "/settlements"),
        ({"outcome": "snoozed", "delay": "11y"}, "/settlements/0/delay"),
        ({"outcome": "retry", "delay": "100000d"}, "/settlements/0/delay"),
        ({"outcome": "released", "result": 1}, "/settlements"),
        ({"outcome": "succeeded", "error": {}}, "/settlements"),
        ({"outcome": "succeeded", "result": "\0"}, "/settlements/0/result"),
        ({"outcome": "failed", "error": {"message": 3}}, "/settlements"),
    ],
)
def test_a_settlement_that_is_wrong_is_refused_and_nothing_is_settled(end: dict[str, Any], pointer: str) -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            whole = {"id": job["id"], "token": job["token"], **end}
            refused = await post(client, "settlements", 422, settlements=[whole])
            assert refused["errors"][0]["pointer"].startswith(pointer)
            assert (await record_of(app, job)).state is State.RUNNING

    work(scenario)


def test_b21_a_late_worker_cannot_settle_what_another_runs() -> None:
    """B21, B24: the lease ran out and the job is run anew; the old token changes nothing, whatever it says."""

    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with one_claimed(app) as (client, old):
            clock.advance(31_000)
            await (await app.backend()).tick(10, Keep())
            (new,) = (await claim(client, "w2"))["jobs"]
            assert new["id"] == old["id"]
            for outcome, rest in (("succeeded", {}), ("failed", {}), ("released", {}), ("snoozed", {"delay": 1})):
                assert await settle(client, old, outcome, **rest) == "stale"
            beat = await post(client, "heartbeats", worker="w1", progress=[{"id": old["id"], "token": old["token"]}])
            assert beat["held"] == {}
            assert beat["lost"] == [{"id": old["id"], "token": old["token"]}]
            assert await settle(client, new, "succeeded") == "applied"

    work(scenario)


def test_a_store_that_is_away_is_503_and_the_settlement_can_be_sent_again() -> None:
    async def scenario() -> None:
        app, backend = faulty_app()
        async with one_claimed(app) as (client, job):

            def away() -> None:
                raise Unavailable("the server is away")

            backend.fail["settle"] = away
            end = {"id": job["id"], "token": job["token"], "outcome": "failed"}
            refused = await client.post("/api/v1/settlements", json={"settlements": [end]})
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            del backend.fail["settle"]
            assert await settle(client, job, "failed") == "applied"

    work(scenario)
