"""`/api/v1/dead-letter`: what has failed for good, by what went wrong, and started over."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import Page, Query, Settlement
from packhorse.clock import ManualClock
from packhorse.errors import Unavailable
from packhorse.job import JobError, State
from packhorse.server.recent import FRESH_MS, Recent
from packhorse.server.routes import dead_letter

from .api import Api, asking, on_stores

PATH = "/api/v1/dead-letter"


async def _fail(api: Api, count: int, error: str, **job: Any) -> list[str]:
    ids = [await api.enqueue(**job) for _ in range(count)]
    for claimed in await api.claim(job.get("queue", "default"), count):
        await api.settle(claimed, State.FAILED, error)
    return ids


@on_stores
def test_failed_jobs_are_listed_and_grouped(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        refused = await _fail(api, 3, "connection refused by 10.0.0.1", type="email")
        await _fail(api, 1, "no such address", type="email", tags=["vip"])
        await api.enqueue()
        listed = await api.done("GET", f"{PATH}?limit=2")
        assert len(listed["items"]) == 2
        more = await api.done("GET", f"{PATH}?limit=2&cursor={listed['next']}")
        assert {job["id"] for job in more["items"]} <= set(refused)
        assert {job["state"] for job in more["items"]} == {"failed"}
        assert len((await api.done("GET", f"{PATH}?tag=vip"))["items"]) == 1
        groups = await api.done("GET", f"{PATH}/groups?type=email")
        assert (groups["jobs"], [group["jobs"] for group in groups["items"]]) == (4, [3, 1])
        assert groups["items"][0]["types"] == {"email": 3}

    # Payloads of email are checked at the door; what is stored here is another program's.
    async def without_tasks(api: Api) -> None:
        api.app.tasks.clear()
        await scenario(api)

    asking(store, tmp_path, without_tasks)


@on_stores
def test_a_group_or_what_matches_is_started_over(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        refused = await _fail(api, 3, "connection refused")
        others = await _fail(api, 2, "no such address", queue="other")
        (group,) = [
            item["fingerprint"] for item in (await api.done("GET", f"{PATH}/groups"))["items"] if item["jobs"] == 3
        ]
        counted = await api.done("POST", f"{PATH}/rerun", {"group": group, "dry_run": True})
        assert (counted["matched"], counted["done"]) == (3, 0)
        done = await api.done("POST", f"{PATH}/rerun", {"group": group})
        assert done["done"] == 3
        assert {await api.state_of(job_id) for job_id in refused} == {"pending"}
        assert {await api.state_of(job_id) for job_id in others} == {"failed"}
        paced = await api.done("POST", f"{PATH}/rerun", {"filter": {"queue": "other"}, "rate": "1/h", "delay": "1m"})
        assert paced["done"] == 2
        due = sorted([(await api.done("GET", f"/api/v1/jobs/{job_id}"))["due_at"] for job_id in others])
        assert due[0][:13] < due[1][:13] or due[0][:10] < due[1][:10]  # an hour apart
        again = await api.done("POST", f"{PATH}/rerun", {"ids": [*others, "nobody"]})
        assert [item["answer"] for item in again["items"]] == ["live", "live", "missing"]
        assert (await api.done("GET", PATH))["items"] == []

    asking(store, tmp_path, scenario)


@on_stores
def test_a_purge_of_dead_letters_takes_failed_jobs_only(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await _fail(api, 2, "broken")
        await _fail(api, 1, "lost", queue="other")
        pending = await api.enqueue()
        assert (await api.done("POST", f"{PATH}/purge", {"filter": {"queue": "other"}}))["done"] == 1
        assert (await api.done("POST", f"{PATH}/purge", {"filter": {}, "dry_run": True}))["matched"] == 2
        (group,) = (await api.done("GET", f"{PATH}/groups"))["items"]
        deleted = await api.done("POST", "/api/v1/jobs/delete", {"group": group["fingerprint"]})
        assert deleted["done"] == 2
        assert (await api.done("POST", f"{PATH}/purge", {"filter": {}}))["matched"] == 0
        assert await api.state_of(pending) == "pending"

    asking(store, tmp_path, scenario)


@on_stores
def test_what_names_no_dead_letters_is_refused(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for verb in ("rerun", "purge"):
            path = f"{PATH}/{verb}"
            await api.refused("POST", path, {}, status=422, at="")
            await api.refused("POST", path, {"dry_run": True}, status=422, at="")
            await api.refused("POST", path, {"group": "(a+)+$"}, status=422)
            await api.refused("POST", path, {"group": "others"}, status=422, at="/group")
            await api.refused("POST", path, {"filter": {"states": ["failed"]}}, status=422, at="/filter")
            await api.refused("POST", path, {"filter": {"queue": ""}}, status=422, at="/filter/queue")
        await api.refused("POST", f"{PATH}/rerun", {"rate": "5/s"}, status=422)
        await api.refused("POST", f"{PATH}/rerun", {"ids": ["a"], "rate": "5/s"}, status=422, at="/rate")
        await api.refused("POST", f"{PATH}/rerun", {"filter": {}, "rate": "0/s"}, status=422, at="/rate")
        await api.refused("GET", f"{PATH}?state=failed", status=400, at="state")

    asking(store, tmp_path, scenario)


def test_groups_of_many_failed_jobs_take_little_memory_and_the_newest_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8,000 jobs of 10 kB: 80 MB, were they read whole or kept. Of 20,000 it takes no more: measured."""
    count = 8_000

    async def scenario(api: Api) -> None:
        api.app.tasks.clear()
        backend = await api.backend()
        for start in range(0, count, 1_000):
            payload = b'"' + b"x" * 10_000 + b'"'
            await backend.enqueue([api.app.make_spec("big", payload, {}) for _ in range(1_000)])
            ends = [
                Settlement(
                    id=job.id,
                    token=job.token,
                    state=State.FAILED,
                    error=JobError(attempt=1, at_ms=0, kind="ValueError", message=f"no {start // 10_000} {number}"),
                )
                for number, job in enumerate(await backend.claim(["default"], 1_000, 60_000, "w"))
            ]
            await backend.settle(ends)
        monkeypatch.setattr(dead_letter, "GROUPED_MAX", 3_000)
        newest = await api.done("GET", f"{PATH}/groups")
        assert (newest["jobs"], newest["truncated"], newest["items"][0]["jobs"]) == (3_000, True, 3_000)
        monkeypatch.setattr(dead_letter, "GROUPED_MAX", count)
        tracemalloc.start()
        try:
            whole = await api.done("GET", f"{PATH}/groups?type=big")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (whole["jobs"], whole["truncated"]) == (count, False)
        assert peak < 15_000_000

    asking("sqlite", tmp_path, scenario)


def test_many_who_look_at_the_groups_have_them_made_once(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await _fail(api, 2, "broken")
        backend = await api.backend()
        looks = 0
        find = backend.inner.find

        async def counted(query: Query) -> Page:
            nonlocal looks
            looks += 1
            return await find(query)

        backend.inner.find = counted  # type: ignore[attr-defined]  # it is a MeasuredBackend
        paths = [f"{PATH}/groups"] * 20
        found = await asyncio.gather(*(api.done("GET", path) for path in paths))
        assert [each["jobs"] for each in found] == [2] * 20
        assert looks == 1
        await api.done("GET", f"{PATH}/groups?queue=other")
        assert looks == 2

    asking("memory", tmp_path, scenario)


def test_what_fails_is_raised_to_all_who_wait_and_asked_again() -> None:
    async def main() -> None:
        clock = ManualClock()
        recent: Recent[int] = Recent(clock)
        made = 0

        async def make() -> int:
            nonlocal made
            made += 1
            await asyncio.sleep(0)
            if made == 1:
                raise Unavailable("gone")
            return made

        failed = await asyncio.gather(recent.get("a", make), recent.get("a", make), return_exceptions=True)
        assert [type(one) for one in failed] == [Unavailable, Unavailable]
        assert [await recent.get("a", make), await recent.get("a", make)] == [2, 2]
        clock.advance(FRESH_MS)
        assert await recent.get("a", make) == 3
        for number in range(100):
            await recent.get(number, make)
        assert await recent.get("a", make) == 104
        await recent.close()

    asyncio.run(main())
