"""`/api/v1/queues`, `/stats`, `/workers` and `/job-types`: how the whole stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.backends.base import WorkerInfo
from packhorse.clock import ManualClock
from packhorse.job import State

from ..worker.working import new_app, work
from .api import Api, asking, on_stores
from .kit import client_of


@on_stores
def test_a_queue_is_paused_resumed_bounded_and_shown(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.enqueue(queue="mail")
        assert await api.done("POST", "/api/v1/queues/mail/pause") == {"queue": "mail", "paused": True}
        assert await api.claim("mail") == []
        assert await api.done("PUT", "/api/v1/queues/mail/capacity", {"capacity": 5}) == {
            "queue": "mail",
            "capacity": 5,
        }
        shown = await api.done("GET", "/api/v1/queues/mail")
        assert (shown["paused"], shown["capacity"], shown["states"]["pending"]) == (True, 5, 1)
        assert len(shown["states"]) == len(State)
        assert (await api.done("GET", "/api/v1/queues"))["items"][0]["queue"] == "mail"
        await api.done("POST", "/api/v1/queues/mail/resume")
        await api.done("PUT", "/api/v1/queues/mail/capacity", {"capacity": 0})
        shown = await api.done("GET", "/api/v1/queues/mail")
        assert (shown["paused"], shown["capacity"]) == (False, None)
        assert len(await api.claim("mail")) == 1
        await api.refused("GET", "/api/v1/queues/other", status=404)

    asking(store, tmp_path, scenario)


@on_stores
def test_a_purge_leaves_what_runs(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for _ in range(4):
            await api.enqueue(queue="mail")
        other = await api.enqueue()
        await api.claim("mail")
        await api.run(State.FAILED, queue="mail")
        purged = await api.done("POST", "/api/v1/queues/mail/purge", {"states": ["failed"]})
        assert purged == {"queue": "mail", "deleted": 1, "running": 1, "added": 0}
        purged = await api.done("POST", "/api/v1/queues/mail/purge")
        assert purged == {"queue": "mail", "deleted": 2, "running": 1, "added": 0}
        await api.refused("POST", "/api/v1/queues/mail/purge", {"states": ["running"]}, status=422, at="/states")
        await api.refused("POST", "/api/v1/queues/mail/purge", {"states": []}, status=422, at="/states")
        await api.refused("POST", "/api/v1/queues/a%20b/purge", {}, status=422, at="queue")
        assert await api.state_of(other) == "pending"

    asking(store, tmp_path, scenario)


@on_stores
def test_stats_count_in_our_words_and_in_those_of_another_engine(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for _ in range(5):
            await api.enqueue(queue="mail")
        await api.enqueue(queue="later", delay="1h")
        await api.run(queue="mail")
        await api.run(State.FAILED, queue="mail")
        await api.claim("mail")
        stats = await api.done("GET", "/api/v1/stats")
        assert {state: count for state, count in stats["states"].items() if count} == {
            "pending": 2,
            "running": 1,
            "succeeded": 1,
            "failed": 1,
            "scheduled": 1,
        }
        assert stats["queues"]["mail"]["oldest_pending_ms"] >= 0
        words = await api.done("GET", "/api/v1/queue/stats")
        mail = {"enqueued": 2, "scheduled": 0, "processing": 1, "completed": 1, "failed": 1, "total": 5}
        assert words["queues"]["mail"] == mail
        assert {name: words[name] for name in mail} == mail | {"scheduled": 1, "total": 6}

    asking(store, tmp_path, scenario)


@on_stores
def test_live_workers_and_the_types_they_know_are_listed(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        worker = WorkerInfo(id="w1", host="a", pid=7, queues=("mail",), types=("email", "far.away"), concurrency=5)
        await (await api.backend()).heartbeat(worker, 30_000)
        (shown,) = (await api.done("GET", "/api/v1/workers"))["items"]
        assert (shown["id"], shown["queues"], shown["concurrency"]) == ("w1", ["mail"], 5)
        types = {item["type"]: item for item in (await api.done("GET", "/api/v1/job-types"))["items"]}
        assert (await api.done("GET", "/api/v1/jobs/types"))["items"] == list(types.values())
        assert types["far.away"] == {
            "type": "far.away",
            "registered": False,
            "description": None,
            "schema": None,
            "defaults": {},
            "workers": 1,
        }
        email = types["email"]
        assert (email["registered"], email["workers"], email["description"]) == (True, 1, "Send an email.")
        assert email["defaults"] == {"max_attempts": 5, "queue": "mail", "tags": ["mail"]}

    asking(store, tmp_path, scenario)


@pytest.mark.parametrize("path", ["/api/v1/queues", "/api/v1/queues/default", "/api/v1/stats"])
def test_an_answer_is_the_same_until_an_age_in_it_has_doubled(path: str) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with client_of(app) as client:
            await app.aenqueue("x", {})
            clock.advance(17_000)
            first = await client.get(path)
            known = {"If-None-Match": first.headers["etag"]}
            assert first.headers["etag"].startswith("W/")
            clock.advance(14_000)
            assert (await client.get(path, headers=known)).status_code == 304
            clock.advance(4_000)
            grown = await client.get(path, headers=known)
            assert grown.status_code == 200
            assert '"oldest_pending_ms":35000' in grown.text
            known = {"If-None-Match": grown.headers["etag"]}
            await app.aenqueue("x", {})
            assert (await client.get(path, headers=known)).status_code == 200

    work(scenario)


def test_workers_are_the_same_while_only_their_leases_run_down() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with client_of(app) as client:
            worker = WorkerInfo(id="w1", queues=("default",), started_at_ms=clock.now_ms())
            await (await app.backend()).heartbeat(worker, 30_000)
            known = {"If-None-Match": (await client.get("/api/v1/workers")).headers["etag"]}
            clock.advance(10_000)
            assert (await client.get("/api/v1/workers", headers=known)).status_code == 304
            clock.advance(30_000)
            assert (await client.get("/api/v1/workers", headers=known)).status_code == 200

    work(scenario)
