"""Health: the exact shape, the truth about the store, and one look for everybody who asks."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.errors import Unavailable
from packhorse.server import health
from packhorse.server.access import ANONYMOUS, Caller, Role
from tests.witness import Witness, boot_s

from ..worker.working import faulty_app, new_app, work
from .kit import client_of


def test_health_says_how_the_store_does() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.aenqueue("email", {})
            found = await client.get("/health")
            shown = found.json()
            assert found.status_code == 200
            assert shown.keys() == {"status", "service", "version", "latency_ms", "workers", "pending", "problems"}
            assert (shown["status"], shown["service"]) == ("OK", "packhorse")
            assert (shown["workers"], shown["pending"]) == (0, 1)
            assert "no live worker takes them" in shown["problems"][0]

    work(scenario)


def test_who_may_not_look_is_told_the_status_only() -> None:
    """C1, C19: nothing of queues and workers without a token, or of queues that are not the caller's."""

    async def scenario() -> None:
        async with client_of(new_app(), ANONYMOUS) as client:
            assert (await client.get("/health")).json() == {"status": "OK", "service": "packhorse"}
            assert (await client.get("/livez")).json() == {"status": "OK", "service": "packhorse"}
            assert (await client.get("/readyz")).json() == {"status": "OK", "service": "packhorse"}
            assert (await client.get("/")).json()["service"] == "packhorse"
        scoped = Caller(name="tenant", role=Role.READ, queues=frozenset({"a"}))
        async with client_of(new_app(), scoped) as client:
            assert (await client.get("/health")).json().keys() == {"status", "service", "version", "latency_ms"}

    work(scenario)


def test_a_store_that_is_away_is_503_and_the_process_is_alive() -> None:
    async def scenario() -> None:
        app, backend = faulty_app()

        async def away() -> list[object]:
            raise Unavailable("the server is away")

        backend.workers = away
        async with client_of(app) as client:
            found = await client.get("/health")
            assert found.status_code == 503
            assert found.headers["retry-after"] == "1"
            assert found.json()["status"] == "UNAVAILABLE"
            assert found.json()["problems"] == ["the server is away"]
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/livez")).status_code == 200

    work(scenario)


def test_a_store_that_hangs_is_told_within_a_second(witness: Witness) -> None:
    async def scenario() -> None:
        app, backend = faulty_app()

        async def hang() -> list[object]:
            await asyncio.Event().wait()
            return []

        backend.workers = hang
        async with client_of(app) as client:
            began = boot_s()
            answers = await asyncio.gather(*(client.get("/health") for _ in range(20)))
            assert witness.since_s(began) < 2  # 0.9 s, and a busy machine
            assert {answer.status_code for answer in answers} == {503}

    work(scenario)


def test_c15_ten_thousand_askers_cost_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_MS_MAX", 60_000)  # to begin with so many may take longer than a look

    async def scenario() -> None:
        app, backend = faulty_app()
        looks = 0
        real = backend.workers

        async def counted() -> list[object]:
            nonlocal looks
            looks += 1
            await asyncio.sleep(0)
            return await real()

        backend.workers = counted
        async with client_of(app) as client:
            look = client._transport.app  # asked through HTTP once, so that the way there is the real one
            assert look is not None
            assert (await client.get("/health")).status_code == 200
        assert looks == 1
        looks = 0
        from packhorse.server.service import Service

        service = Service(app)
        found = await asyncio.gather(*(service.look.health() for _ in range(10_000)))
        assert {one.status for one in found} == {"OK"}
        assert looks == 1
        await service.close()

    work(scenario)


def test_an_asker_that_hangs_up_takes_the_answer_from_nobody() -> None:
    async def scenario() -> None:
        from packhorse.server.service import Service

        app, backend = faulty_app()
        go = asyncio.Event()
        real = backend.workers

        async def slow() -> list[object]:
            await go.wait()
            return await real()

        backend.workers = slow
        service = Service(app)
        first = asyncio.ensure_future(service.look.health())
        second = asyncio.ensure_future(service.look.health())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        assert (await second).status == "OK"
        assert first.cancelled()
        await service.close()

    work(scenario)


def test_a_server_that_stops_is_not_ready() -> None:
    async def scenario() -> None:
        import httpx

        from packhorse.server.app import make_application
        from packhorse.server.service import Service

        from .kit import LOCAL, admitting

        service = Service(new_app())
        application = make_application(service, admitting(LOCAL))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
            service.stopping.set()
            found = await client.get("/readyz")
            assert (found.status_code, found.json()["status"]) == (503, "STOPPING")
            await service.close()

    work(scenario)
