"""The plain routes at the root, in the exact shapes of REQUIREMENTS section B."""

from __future__ import annotations

import re
from typing import Any

import pytest

from packhorse.backends.base import Settlement
from packhorse.clock import ManualClock
from packhorse.job import JobError, JobSpec, State
from packhorse.server.access import Caller, Role
from packhorse.server.routes import plain

from ..worker.working import new_app, store_of, work
from .kit import client_of

_LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    r"(\[ENQUEUE\] Job \S+ \([^)]+\) .*|\[UPDATE\] Job \S+ status: (PROCESSING|RETRY|DONE|FAILED))"
)


async def _run_one(app: Any, job_id: str, **end: Any) -> None:
    """Claim the job that is there, and settle it."""
    backend = await app.backend()
    (job,) = await backend.claim(["default"], 1, 30_000, "w")
    assert job.id == job_id
    await backend.settle([Settlement(id=job.id, token=job.token, **end)])


def _error(attempt: int, at_ms: int, message: str = "it broke") -> JobError:
    return JobError(attempt=attempt, at_ms=at_ms, kind="ValueError", message=message)


@pytest.mark.parametrize("payload", ["send welcome email to user@example.com", {"to": "user@example.com"}])
def test_a_job_is_stored_with_text_or_an_object_and_shown(payload: Any) -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            stored = await client.post("/jobs", json={"type": "email", "payload": payload})
            assert stored.status_code == 201
            assert stored.json().keys() == {"job_id", "status", "message"}
            assert stored.json()["status"] == "PENDING"
            job_id = stored.json()["job_id"]
            shown = (await client.get(stored.headers["location"])).json()
            listed = (await client.get("/jobs")).json()
            assert listed == [shown]
            assert shown.pop("created_at") == shown.pop("updated_at")
            assert shown == {
                "id": job_id,
                "type": "email",
                "payload": payload,
                "status": "PENDING",
                "retry_count": 0,
                "max_retries": 3,
            }

    work(scenario)


def test_options_of_a_plain_job_are_taken() -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            body = {"type": "email", "payload": "x", "max_retries": 0, "priority": "high"}
            job_id = (await client.post("/jobs", json=body)).json()["job_id"]
            assert (await client.get(f"/jobs/{job_id}")).json()["max_retries"] == 0
            full = (await client.get(f"/api/v1/jobs/{job_id}")).json()
            assert (full["priority"], full["max_attempts"]) == (2, 1)

    work(scenario)


def test_the_same_idempotency_key_is_one_job_and_says_how_it_stands() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            send = {"json": {"type": "email", "payload": "x"}, "headers": {"Idempotency-Key": "k1"}}
            first = await client.post("/jobs", **send)
            await _run_one(app, first.json()["job_id"], state=State.SUCCEEDED)
            again = await client.post("/jobs", **send)
            assert (first.status_code, again.status_code) == (201, 200)
            assert again.json()["job_id"] == first.json()["job_id"]
            assert again.json()["status"] == "DONE"

    work(scenario)


def test_states_are_told_in_the_words_of_this_dialect() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with client_of(app) as client:

            async def word(job_id: str) -> tuple[str, int]:
                shown = (await client.get(f"/jobs/{job_id}")).json()
                return shown["status"], shown["retry_count"]

            job_id = (await client.post("/jobs", json={"type": "email", "payload": "x"})).json()["job_id"]
            backend = await app.backend()
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            assert await word(job_id) == ("PROCESSING", 0)
            retry = Settlement(
                id=job_id, token=job.token, state=State.SCHEDULED, delay_ms=5, error=_error(1, clock.now_ms())
            )
            await backend.settle([retry])
            assert await word(job_id) == ("RETRY", 1)
            assert [one["id"] for one in (await client.get("/jobs?status=RETRY")).json()] == [job_id]
            assert (await client.get("/jobs?status=PENDING")).json() == []
            clock.advance(1_000)
            await backend.tick(10, app_keep())
            await _run_one(app, job_id, state=State.SUCCEEDED)
            assert await word(job_id) == ("DONE", 1)
            other = (await client.post("/jobs", json={"type": "email", "payload": "x"})).json()["job_id"]
            await backend.cancel([other])
            assert await word(other) == ("FAILED", 0)

    work(scenario)


def app_keep() -> Any:
    from packhorse.backends.base import Keep

    return Keep()


def test_the_list_is_newest_first_and_bounded() -> None:
    """C6: a limit out of bounds is refused, whatever it is."""

    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.aenqueue_many([("email", {"n": n}) for n in range(150)])
            assert [job["payload"]["n"] for job in (await client.get("/jobs")).json()] == list(range(149, 49, -1))
            assert len((await client.get("/jobs?limit=1000")).json()) == 150
            for limit in ("0", "-1", "1001", "1e9", "999999999999999999999", "1.5", "٣", ""):
                refused = await client.get("/jobs", params={"limit": limit})
                assert refused.status_code == 400, limit
                assert refused.headers["content-type"] == "application/problem+json"

    work(scenario)


def test_a_list_of_large_payloads_ends_early() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.aenqueue_many([("email", "x" * 1_000_000) for _ in range(12)])
            assert len((await client.get("/jobs")).json()) == 9

    work(scenario)


def test_what_is_wrong_is_a_problem_with_the_place() -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            for body, pointer in (
                ({"type": "email", "payload": 7}, "/payload"),
                ({"type": "e mail", "payload": "x"}, ""),
                ({"type": "email", "priority": "urgent"}, "/priority"),
            ):
                refused = await client.post("/jobs", json=body)
                assert refused.status_code == 422
                assert refused.headers["content-type"] == "application/problem+json"
                assert refused.json()["errors"][0]["pointer"].startswith(pointer)
            assert (await client.post("/jobs", json={"payload": "x"})).status_code == 422
            assert (await client.get("/jobs/none")).status_code == 404
            assert (await client.get("/jobs/%00%1b")).status_code == 404

    work(scenario)


def test_roles_are_asked_for() -> None:
    async def scenario() -> None:
        async with client_of(new_app(), Caller(name="reader", role=Role.READ)) as client:
            assert (await client.post("/jobs", json={"type": "email"})).status_code == 403
            assert (await client.get("/jobs")).status_code == 200
            assert (await client.get("/logs")).status_code == 200

    work(scenario)


def test_the_log_tells_what_happened_in_order_of_time() -> None:
    """C20: neither payloads nor texts of errors are in it."""

    async def scenario() -> None:
        clock = ManualClock(now_ms=1_704_542_400_000)
        app = new_app(clock=clock)
        async with client_of(app) as client:
            job_id = (await client.post("/jobs", json={"type": "email", "payload": "canary-1"})).json()["job_id"]
            clock.advance(1_000)
            backend = await app.backend()
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            clock.advance(1_000)
            error = _error(1, clock.now_ms(), "canary-2")
            await backend.settle(
                [Settlement(id=job_id, token=job.token, state=State.SCHEDULED, delay_ms=1, error=error)]
            )
            clock.advance(1_000)
            await backend.tick(10, app_keep())
            (job,) = await backend.claim(["default"], 1, 30_000, "w")
            clock.advance(1_000)
            error = _error(2, clock.now_ms(), "canary-3")
            await backend.settle([Settlement(id=job_id, token=job.token, state=State.FAILED, error=error)])
            answer = await client.get("/logs")
            assert "canary" not in answer.text
            assert answer.json() == [
                f"[2024-01-06 12:00:00] [ENQUEUE] Job {job_id} (email) queue: default priority: 5",
                f"[2024-01-06 12:00:02] [UPDATE] Job {job_id} status: RETRY",
                f"[2024-01-06 12:00:03] [UPDATE] Job {job_id} status: PROCESSING",
                f"[2024-01-06 12:00:04] [UPDATE] Job {job_id} status: FAILED",
            ]
            assert (await client.get("/logs?limit=1")).json() == answer.json()[-1:]

    work(scenario)


def test_c22_no_name_can_forge_a_line() -> None:
    """C22: what somebody put into the store past the names' check is escaped."""

    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.backend()
            evil = "a\n[2026-01-01 00:00:00] [UPDATE] Job x status: DONE\x1b]0;owned\u202e"
            store = store_of(app)
            store.add([JobSpec(id="job-1", type=evil, queue="default")], store.clock.now_ms())
            (line,) = (await client.get("/logs")).json()
            assert line.isprintable()
            assert "\\n" in line

    work(scenario)


def test_every_line_has_the_documented_shape() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            jobs = await app.aenqueue_many([("email", {"n": n}) for n in range(20)])
            for number, job in enumerate(jobs):
                await _run_one(app, job.id, state=State.FAILED if number % 2 else State.SUCCEEDED)
            lines = (await client.get("/logs")).json()
            assert len(lines) == 60
            assert all(_LINE.fullmatch(line) for line in lines)
            assert lines == sorted(lines, key=lambda line: line[:21])

    work(scenario)


def test_a_list_looks_at_few_large_jobs_at_a_time_and_not_at_all_of_them(monkeypatch) -> None:
    """C16: jobs of a MiB that are not of the status asked for must not be read by the thousand, or 50 at once."""
    monkeypatch.setattr(plain, "_LOOKED_AT_BYTES_MAX", 1_000_000)
    looks: list[int] = []

    async def scenario() -> None:
        app = new_app()
        await app.aenqueue_many({"type": "x", "payload": "a" * 100_000, "delay": "1h"} for _ in range(60))
        backend = await app.backend()
        find = backend.find

        async def counted(query: Any) -> Any:
            page = await find(query)
            looks.append(sum(len(job.payload) for job in page.jobs))
            return page

        backend.find = counted
        async with client_of(app) as client:
            assert (await client.get("/jobs?status=RETRY&limit=1000")).json() == []
        assert max(looks) < 3_500_000
        assert sum(looks) < 5_000_000

    work(scenario)
