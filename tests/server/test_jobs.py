"""`/api/v1/jobs`: in, one or many, and found again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from packhorse.job import State
from packhorse.server.access import Caller, Role
from packhorse.server.routes import jobs as jobs_routes

from .api import Api, asking, on_stores

NAMED = "Idempotency-Key"


# ---- in --------------------------------------------------------------------------------------------------


@on_stores
def test_a_job_is_stored_with_all_its_options_and_shown(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        given = {
            "type": "work",
            "payload": {"n": [1, 2.5, None, "ü"]},
            "queue": "mail",
            "priority": "high",
            "max_retries": 2,
            "timeout": None,
            "unique": "u1",
            "unique_for": "1h",
            "on_conflict": "existing",
            "key": "tenant 7",
            "tags": ["a", "b"],
            "meta": {"by": "test"},
            "execute_at": "2036-01-31T09:00:00+01:00",
        }
        response = await api.post("/api/v1/jobs", given)
        assert response.status_code == 201
        stored = response.json()
        assert stored["created"] is True
        assert (stored["state"], stored["status"]) == ("scheduled", "scheduled")
        shown = await api.done("GET", response.headers["location"])
        assert shown["id"] == stored["id"] == stored["job_id"]
        assert shown["payload"] == given["payload"]
        assert shown["due_at"].startswith("2036-01-31T08:00:0")
        assert [shown[name] for name in ("queue", "priority", "max_attempts", "timeout_ms", "key", "unique")] == [
            "mail",
            2,
            3,
            0,
            "tenant 7",
            "u1",
        ]
        assert (shown["tags"], shown["meta"]) == (["a", "b"], {"by": "test"})
        again = await api.post("/api/v1/jobs", {"type": "work", "queue": "mail", "unique": "u1"})
        assert (again.status_code, again.json()["id"]) == (200, stored["id"])

    asking(store, tmp_path, scenario)


@on_stores
def test_a_wrong_job_is_refused_with_the_place(store: str, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"type": "email", "payload": {"to": 3}}, "/payload/to"),
        ({"type": "email", "payload": {"to": "a", "cc": "b"}}, "/payload"),
        ({"type": "email"}, "/payload"),
        ({"type": "letter", "payload": {"address": {"street": "s", "lines": ["a", 7]}}}, "/payload/address/lines/1"),
        ({"type": "a b"}, "/type"),
        ({"type": "x", "queue": "../x"}, "/queue"),
        ({"type": "x", "priority": 10}, "/priority"),
        ({"type": "x", "priority": "urgent"}, "/priority"),
        ({"type": "x", "max_attempts": 0}, "/max_attempts"),
        ({"type": "x", "delay": "soon"}, "/delay"),
        ({"type": "x", "at": "2030-01-31T09:00:00"}, "/at"),
        ({"type": "x", "at": "9999-01-31T09:00:00Z"}, "/at"),
        ({"type": "x", "execute_at": "9999-01-31T09:00:00Z"}, "/execute_at"),
        ({"type": "x", "execute_at": "soon"}, "/execute_at"),
        ({"type": "x", "delay": 10**12}, "/delay"),
        ({"type": "x", "delay": -0.5}, "/delay"),
        ({"type": "x", "delay": "99999d"}, "/delay"),
        ({"type": "x", "unique": ["nobody"]}, "/unique"),
        ({"type": "x", "max_attempts": 3, "max_retries": 7}, "/max_retries"),
        ({"type": "x", "payload": 2**64 - 1}, "/payload"),
        ({"type": "x", "tags": ["a", "b c"]}, "/tags"),
        ({"type": "x", "meta": {"a": 1}}, "/meta/-"),
        ({"type": "x", "unique_states": ["gone"]}, "/unique_states/0"),
        ({"type": "x", "at": "2030-01-31T09:00:00Z", "execute_at": "2031-01-31T09:00:00Z"}, "/execute_at"),
        ({"type": "x", "idempotency_key": ""}, "/idempotency_key"),
        ({"type": "x", "retries": 3}, ""),
        ({}, ""),
    ]

    async def scenario(api: Api) -> None:
        for job, place in wrong:
            await api.refused("POST", "/api/v1/jobs", job, status=422, at=place)
        assert (await api.done("GET", "/api/v1/jobs"))["items"] == []
        await api.refused("POST", "/api/v1/jobs", {"type": "x", "after": ["nobody"]}, status=422, at="/after")
        problem = await api.refused("POST", "/api/v1/jobs", {"type": "x", "payload": 2**64 - 1}, status=422)
        assert "must fit in signed 64 bits" in problem["detail"]
        for query, name in (("queue=", "queue"), ("created_from=x", "created_from"), ("state=", "state")):
            await api.refused("GET", f"/api/v1/jobs?{query}", status=400, at=name)

    asking(store, tmp_path, scenario)


@on_stores
def test_an_idempotency_key_makes_one_job_of_many_requests(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ask = {"type": "work", "payload": {"n": 1}}
        first = await api.post("/api/v1/jobs", ask, headers={NAMED: "order-7"})
        again = await api.post("/api/v1/jobs", ask, headers={NAMED: "order-7"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        problem = await api.refused(
            "POST", "/api/v1/jobs", {"type": "work", "payload": {"n": 2}}, status=409, headers={NAMED: "order-7"}
        )
        assert problem["type"] == "urn:packhorse:idempotency-conflict"
        assert problem["job_id"] == first.json()["id"]
        twice = {**ask, "idempotency_key": "another"}
        await api.refused("POST", "/api/v1/jobs", twice, status=422, at="/idempotency_key", headers={NAMED: "order-7"})

    asking(store, tmp_path, scenario)


@on_stores
def test_a_held_unique_key_is_a_conflict_that_names_its_holder(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        holder = await api.enqueue(unique="u")
        ask = {"type": "work", "unique": "u", "on_conflict": "refuse"}
        problem = await api.refused("POST", "/api/v1/jobs", ask, status=409)
        assert problem["type"] == "urn:packhorse:unique-conflict"
        assert (problem["holder"], problem["unique"]) == (holder, "u")

    asking(store, tmp_path, scenario)


@on_stores
def test_a_full_queue_answers_429_and_when_to_come_again(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.done("PUT", "/api/v1/queues/small/capacity", {"capacity": 1})
        await api.enqueue(queue="small")
        response = await api.post("/api/v1/jobs", {"type": "work", "queue": "small"})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["capacity"] == 1
        both = {"jobs": [{"type": "work"}, {"type": "work", "queue": "small"}]}
        assert (await api.post("/api/v1/jobs/batch", both)).status_code == 429
        assert len((await api.done("GET", "/api/v1/jobs"))["items"]) == 1  # all or nothing

    asking(store, tmp_path, scenario)


@on_stores
def test_recurring_defines_a_schedule_named_as_the_type(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ask = {"type": "report", "priority": "low", "recurring": {"cron_expression": "0 0 * * *"}}
        first = await api.post("/api/v1/jobs", ask)
        assert (first.status_code, first.json()["answer"]) == (201, "added")
        assert first.headers["location"] == "/api/v1/schedules/report"
        again = await api.post("/api/v1/jobs", ask, headers={NAMED: "whatever"})
        assert (again.status_code, again.json()["answer"]) == (200, "unchanged")
        named = {"cron": "0 9 * * *", "timezone": "Europe/Paris", "name": "daily", "overlap": "skip"}
        changed = await api.done("POST", "/api/v1/jobs", {"type": "report", "recurring": named})
        assert [changed[name] for name in ("name", "tz", "overlap", "type")] == [
            "daily",
            "Europe/Paris",
            "skip",
            "report",
        ]
        assert (await api.done("GET", "/api/v1/jobs"))["items"] == []
        for wrong, place in (
            ({"recurring": {"cron": "0 0 31 2 *"}}, "/recurring/cron"),
            ({"recurring": {"cron_expression": "0 0 * * *", "every": "5m"}}, "/recurring"),
            ({"recurring": {"when": "now"}}, "/recurring"),
            ({"recurring": {"every": "5m"}, "payload": {"x": 1}}, "/payload"),
            ({"recurring": {"every": "5m"}, "at": "2030-01-31T09:00:00Z"}, "/at"),
        ):
            await api.refused("POST", "/api/v1/jobs", {"type": "report", **wrong}, status=422, at=place)

    asking(store, tmp_path, scenario)


def test_who_may_submit_jobs_may_not_define_schedules(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ask = {"type": "report", "recurring": {"cron_expression": "0 0 * * *"}}
        await api.refused("POST", "/api/v1/jobs", ask, status=403)
        await api.enqueue()
        await api.refused("POST", "/api/v1/jobs/x/cancel", status=403)
        await api.refused("DELETE", "/api/v1/jobs/x", status=403)

    asking("memory", tmp_path, scenario, caller=Caller(name="shop", role=Role.SUBMIT))


# ---- many ------------------------------------------------------------------------------------------------


@on_stores
def test_a_batch_is_stored_whole_or_not_at_all(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        many = {"jobs": [{"type": "note", "payload": {"text": str(n)}} for n in range(1_000)]}
        stored = await api.done("POST", "/api/v1/jobs/batch", many)
        assert len({item["id"] for item in stored["items"]}) == 1_000
        for index in (0, 3, 9):
            jobs = [{"type": "note", "payload": {"text": "x"}} for _ in range(10)]
            jobs[index]["payload"] = {"text": index}
            place = f"/jobs/{index}/payload/text"
            await api.refused("POST", "/api/v1/jobs/batch", {"jobs": jobs}, status=422, at=place)
        too_many = {"jobs": [{"type": "note", "payload": "x"}] * 1_001}
        await api.refused("POST", "/api/v1/jobs/batch", too_many, status=422, at="/jobs")
        await api.refused("POST", "/api/v1/jobs/batch", {"jobs": []}, status=422, at="/jobs")
        recurring = {"jobs": [{"type": "work", "recurring": {"every": "5m"}}]}
        await api.refused("POST", "/api/v1/jobs/batch", recurring, status=422, at="/jobs/0/recurring")
        assert (await api.done("GET", "/api/v1/stats"))["states"]["pending"] == 1_000

    asking(store, tmp_path, scenario)


@on_stores
def test_a_batch_that_is_sent_again_with_its_key_adds_nothing(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        many = {"jobs": [{"type": "work", "payload": n} for n in range(5)] + [{"type": "own", "idempotency_key": "o"}]}
        first = await api.post("/api/v1/jobs/batch", many, headers={NAMED: "k" * 256})
        again = await api.post("/api/v1/jobs/batch", many, headers={NAMED: "k" * 256})
        other = await api.post("/api/v1/jobs/batch", many, headers={NAMED: "another"})
        assert [one.status_code for one in (first, again, other)] == [201, 200, 201]
        ids = [[item["id"] for item in one.json()["items"]] for one in (first, again, other)]
        assert ids[0] == ids[1]
        assert ids[0][5] == ids[2][5]  # its own key goes before
        assert not set(ids[0][:5]) & set(ids[2][:5])
        many["jobs"][0]["payload"] = "changed"
        await api.refused("POST", "/api/v1/jobs/batch", many, status=409, headers={NAMED: "another"})
        await api.refused(
            "POST", "/api/v1/jobs/batch", many, status=400, at="Idempotency-Key", headers={NAMED: "k" * 257}
        )

    asking(store, tmp_path, scenario)


# ---- found -----------------------------------------------------------------------------------------------


@on_stores
def test_a_list_is_filtered_and_goes_on_page_by_page(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        jobs = [
            {"type": f"t{n % 2}", "queue": f"q{n % 3}", "tags": [f"tag{n % 2}"], "key": f"k{n % 2}", "payload": n}
            for n in range(30)
        ]
        stored = (await api.done("POST", "/api/v1/jobs/batch", {"jobs": jobs}))["items"]
        ids = [item["id"] for item in stored]
        await api.done("POST", f"/api/v1/jobs/{ids[0]}/cancel")
        for query, wanted in (
            ("type=t1", ids[1::2]),
            ("queue=q2", ids[2::3]),
            ("tag=tag0", ids[0::2]),
            ("key=k1", ids[1::2]),
            ("state=cancelled", ids[:1]),
            ("state=cancelled&state=pending", ids),
            ("state=cancelled,pending", ids),
            ("state=running", []),
            ("type=t0&queue=q0", ids[0::6]),
            ("created_before=2020-01-01T00:00:00Z", []),
            ("created_from=2020-01-01T00:00:00Z", ids),
        ):
            found: list[str] = []
            cursor = ""
            while True:
                page = await api.done("GET", f"/api/v1/jobs?{query}&limit=7&oldest_first=true{cursor}")
                assert len(page["items"]) <= 7
                found += [job["id"] for job in page["items"]]
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
            assert found == wanted, query
        newest = await api.done("GET", "/api/v1/jobs?limit=2&brief=true")
        assert [job["id"] for job in newest["items"]] == ids[:-3:-1]
        assert {job["payload"] for job in newest["items"]} == {None}

    asking(store, tmp_path, scenario)


@on_stores
def test_a_page_of_large_jobs_ends_before_it_fills_the_memory(store: str, tmp_path: Path, monkeypatch) -> None:
    """C16: 1,000 jobs of 1 MiB are 1 GiB."""
    monkeypatch.setattr(jobs_routes, "PAGE_BYTES_MAX", 100_000)
    monkeypatch.setattr(jobs_routes, "_LOOK_BYTES", 20_000)

    async def scenario(api: Api) -> None:
        jobs = {"jobs": [{"type": "work", "payload": "x" * 10_000} for _ in range(40)]}
        ids = [item["id"] for item in (await api.done("POST", "/api/v1/jobs/batch", jobs))["items"]]
        found: list[str] = []
        pages = 0
        cursor = ""
        while True:
            page = await api.done("GET", f"/api/v1/jobs?limit=1000&oldest_first=true{cursor}")
            assert sum(len(job["payload"]) for job in page["items"]) < 200_000
            found += [job["id"] for job in page["items"]]
            pages += 1
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert found == ids
        assert pages > 2

    asking(store, tmp_path, scenario)


@on_stores
def test_a_page_without_payloads_ends_too_where_errors_are_large(store: str, tmp_path: Path, monkeypatch) -> None:
    """C16: a job keeps 50 errors of 20 kB, whoever wrote them."""
    monkeypatch.setattr(jobs_routes, "PAGE_BYTES_MAX", 100_000)
    monkeypatch.setattr(jobs_routes, "_BRIEF_JOBS_MIN", 4)

    async def scenario(api: Api) -> None:
        for _ in range(20):
            await api.enqueue(max_attempts=1)
            await api.run(State.FAILED, error="x" * 4_000 + "…")
        monkeypatch.setattr(jobs_routes, "_LOOK_BYTES", 10_000)
        page = await api.done("GET", "/api/v1/jobs?brief=true")
        assert len(page["items"]) == 20
        monkeypatch.setattr(jobs_routes, "PAGE_BYTES_MAX", 20_000)
        page = await api.done("GET", "/api/v1/jobs?brief=true")
        assert len(page["items"]) == 8
        assert page["next"] is not None

    asking(store, tmp_path, scenario)


@on_stores
def test_a_list_that_did_not_change_costs_no_bytes(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.enqueue(queue="mail", delay="1h")  # a pending one grows older, and its queue's answer with it
        for path in ("/api/v1/jobs", "/api/v1/queues", "/api/v1/workers", "/api/v1/schedules", "/api/v1/job-types"):
            first = await api.get(path)
            tag = first.headers["etag"]
            for known in (tag, f'"other", W/{tag.removeprefix("W/")}', "*"):
                assert (await api.get(path, headers={"If-None-Match": known})).status_code == 304
            assert (await api.get(path, headers={"If-None-Match": '"other"'})).status_code == 200
        tag = (await api.get("/api/v1/jobs")).headers["etag"]
        await api.enqueue(queue="mail")
        assert (await api.get("/api/v1/jobs", headers={"If-None-Match": tag})).status_code == 200

    asking(store, tmp_path, scenario)


@on_stores
def test_what_is_not_there_is_not_found(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for job_id in ("0190b3a0-0000-7000-8000-000000000000", "nobody", "a%20b", "%00", "%F0%9F%90%B4", "x" * 300):
            for method, tail in (
                ("GET", ""),
                ("GET", "/why"),
                ("GET", "/result"),
                ("GET", "/result?wait=60s"),
                ("POST", "/cancel"),
                ("POST", "/rerun"),
                ("DELETE", ""),
            ):
                await api.refused(method, f"/api/v1/jobs/{job_id}{tail}", status=404)

    asking(store, tmp_path, scenario)


@on_stores
def test_why_says_what_holds_a_job(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue(queue="mail")
        await api.done("POST", "/api/v1/queues/mail/pause")
        causes = (await api.done("GET", f"/api/v1/jobs/{job_id}/why"))["causes"]
        assert causes[0]["code"] == "queue_paused"
        assert causes[0]["remedy"]

    asking(store, tmp_path, scenario)


# ---- results ---------------------------------------------------------------------------------------------


@on_stores
def test_a_result_is_answered_once_the_job_has_ended(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue()
        early = await api.get(f"/api/v1/jobs/{job_id}/result")
        assert (early.status_code, early.json()) == (202, {"id": job_id, "state": "pending"})
        waiting = asyncio.create_task(api.get(f"/api/v1/jobs/{job_id}/result?wait=30s"))
        await asyncio.sleep(0)
        await api.run()
        response = await asyncio.wait_for(waiting, 60)
        assert (response.status_code, response.json()) == (
            200,
            {"id": job_id, "state": "succeeded", "result": {"ok": True}, "error": None},
        )
        failed = await api.enqueue()
        await api.run(State.FAILED)
        found = await api.done("GET", f"/api/v1/jobs/{failed}/result?wait=1")
        assert (found["state"], found["result"], found["error"]) == ("failed", None, "ValueError: it broke")

    asking(store, tmp_path, scenario)


@pytest.mark.parametrize("wait", ["61s", "-1", "1e1", "9999999999d", "abc", "%EF%BC%91s", ""])
def test_a_wait_has_bounds(wait: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue()
        await api.refused("GET", f"/api/v1/jobs/{job_id}/result?wait={wait}", status=400)

    asking("memory", tmp_path, scenario)


@on_stores
def test_a_wait_that_is_over_answers_the_state(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue(delay="1h")
        response = await api.get(f"/api/v1/jobs/{job_id}/result?wait=50ms")
        assert (response.status_code, response.json()["state"]) == (202, "scheduled")

    asking(store, tmp_path, scenario)
