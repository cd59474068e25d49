"""A store that answers and stores nothing: the server says so wherever it is asked, until it stores again."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from packhorse import Packhorse
from packhorse.observe import store_gauges
from packhorse.server import health
from packhorse.server.access import Caller, Role
from packhorse.server.app import make_application
from packhorse.server.service import Service
from tests.scraped import Scraped

from ..worker.working import until, work
from .kit import admitting, client_of

LARGE = {"type": "x", "payload": "x" * 400_000}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers late is another matter, and a busy machine may make any store late."""
    monkeypatch.setattr(health, "LOOK_MS_MAX", 60_000)
    monkeypatch.setattr(store_gauges, "WAIT_MS_MAX", 60_000)


async def limit_pages(app: Packhorse, more: int) -> None:
    """Let the file of the app's store grow by so many pages and no further."""
    db = (await app.backend()).inner._engine._db  # type: ignore[attr-defined]
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + more}")


def test_a_full_store_is_told_everywhere_and_so_is_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = Packhorse(f"sqlite:///{tmp_path / 'jobs.db'}")
        async with client_of(app) as client:
            assert (await client.post("/api/v1/jobs", json={"type": "x"})).status_code == 201
            assert (await client.get("/health")).json()["status"] == "OK"
            await limit_pages(app, 1)
            refused = await client.post("/api/v1/jobs", json=LARGE)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:packhorse:store-full")

            async def is_told() -> bool:  # a look of before is good for a second
                return (await client.get("/readyz")).status_code == 503

            await until(is_told)
            backend = await app.backend()
            for _ in range(3):  # what needs no room does not take it back
                await backend.claim(["empty"], 1, 30_000, "w1")
                await backend.counts()
            found = await client.get("/health")
            assert (found.status_code, found.json()["status"]) == (503, "UNAVAILABLE")
            (problem,) = [line for line in found.json()["problems"] if "no live worker" not in line]
            assert problem.startswith("the store does not do enqueue: no room for ")
            assert "free some space" in problem
            scraped = Scraped((await client.get("/metrics")).text)
            assert scraped.total("packhorse_store_up") == 0
            assert scraped.total("packhorse_queue_depth", queue="default", state="pending") == 1
            assert scraped.total("packhorse_backend_errors_total", operation="enqueue", error="StoreFull") == 1

            await limit_pages(app, 1_000_000)
            assert (await client.post("/api/v1/jobs", json=LARGE)).status_code == 201

            async def is_over() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await until(is_over)
            assert Scraped((await client.get("/metrics")).text).total("packhorse_store_up") == 1

    work(scenario)


def test_the_doctor_hears_of_it_over_http_and_a_tenant_only_that_it_is_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = Packhorse(f"sqlite:///{tmp_path / 'jobs.db'}")
        async with client_of(app) as client:
            await client.post("/api/v1/jobs", json={"type": "x"})
            await limit_pages(app, 1)
            assert (await client.post("/api/v1/jobs", json=LARGE)).status_code == 503
            service = Service(app)
            tenant = make_application(
                service, admitting(Caller(name="tenant", role=Role.READ, queues=frozenset({"a"})))
            )
            async with httpx.AsyncClient(transport=httpx.ASGITransport(tenant), base_url="http://127.0.0.1") as other:
                found = await other.get("/health")
            assert found.json().keys() == {"status", "service", "version", "latency_ms"}
            assert (found.status_code, found.json()["status"]) == (503, "UNAVAILABLE")
            await service.look.close()

    work(scenario)
