"""The server moves time on in its store, whoever else works there."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from packhorse import Failure
from packhorse.errors import Unavailable
from packhorse.job import State
from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.service import Service

from ..scraped import Scraped
from ..worker.working import faulty_app, new_app, until, work
from .kit import admitting
from .worker_calls import claim, settle


def test_a_server_without_workers_moves_time_on() -> None:
    """Due jobs, lapses of workers that died and schedules come to their turn, on a store that nobody else ticks."""

    async def scenario() -> None:
        app = new_app()
        service = Service(app)
        service.start()
        application = make_application(service, admitting(LOCAL))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
            due = await app.aenqueue("later", {}, delay="50ms")
            answer = await claim(client, "dies", wait="5s", lease="1s", limit=1)
            while not answer["jobs"]:
                answer = await claim(client, "dies", wait="5s", lease="1s", limit=1)
            assert answer["jobs"][0]["id"] == due.id
            again = await until_claimed(client, "w2")
            assert (again["id"], again["attempt"]) == (due.id, 2)
            assert await settle(client, again, "succeeded") == "applied"
            await app.adefine_schedule("again", {}, name="again", every="1s")
            assert (await until_claimed(client, "w2"))["type"] == "again"
            await service.close()

    work(scenario)


def test_a_server_of_an_app_declares_its_limits_and_schedules() -> None:
    """Workers of other languages do not know the code: without this its limits would silently not hold."""

    async def scenario() -> None:
        app = new_app()

        @app.schedule(every="1h", name="hourly")
        @app.task("report", rate="5/s", concurrency=2)
        def report() -> None: ...

        service = Service(app)
        service.start()
        backend = await app.backend()
        async with asyncio.timeout(60):
            while not (await backend.limits() and await backend.schedules()):
                await asyncio.sleep(0.01)
        [limit] = await backend.limits()
        [schedule] = await backend.schedules()
        assert (limit.type, limit.rate, limit.concurrency) == ("report", 5, 2)
        assert schedule.name == "hourly"
        await service.close()

    work(scenario)


async def until_claimed(client: httpx.AsyncClient, worker: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            jobs = (await claim(client, worker, wait="5s", limit=1))["jobs"]
            if jobs:
                return jobs[0]


def test_ticking_survives_a_store_that_is_away_and_stops_when_told() -> None:
    async def scenario() -> None:
        app, backend = faulty_app()
        times = 0

        def away() -> None:
            nonlocal times
            times += 1
            if times < 3:
                raise Unavailable("the server is away")

        backend.fail["tick"] = away
        service = Service(app)
        service.start()
        service.start()
        await until(lambda: times >= 4)
        job = await app.aenqueue("email", {}, delay="10ms")
        await until(lambda: _is_pending(job))
        await service.close()
        await service.close()

    async def _is_pending(job: Any) -> bool:
        return (await job.arecord()).state is State.PENDING

    work(scenario)


def test_ticking_begins_when_the_store_can_be_opened() -> None:
    async def scenario() -> None:
        app, backend = faulty_app()
        opened = 0
        real = backend.open

        async def open_later() -> None:
            nonlocal opened
            opened += 1
            if opened < 3:
                raise Unavailable("the server is away")
            await real()

        backend.open = open_later
        service = Service(app)
        service.start()
        await until(lambda: ("tick", 0) in backend.calls)
        await service.close()

    work(scenario)


def test_what_a_tick_of_the_server_takes_from_a_lost_worker_is_counted_and_told_once() -> None:
    """Whoever ticks is the only one to hear of it: the app's hooks are called by the server as by a worker."""
    app = new_app()
    told: list[Failure] = []
    app.on_failure(told.append)

    async def scenario() -> Scraped:
        backend = await app.backend()
        job = await app.aenqueue("email", {}, queue="mail", max_attempts=1)
        await backend.claim(["mail"], 1, 1, "on a dead host")
        service = Service(app)
        service.start()
        await until(lambda: told)
        found = Scraped(await app.ametrics())
        assert (await job.arecord()).state is State.FAILED
        await service.close()
        return found

    found = work(scenario)
    assert found.total("packhorse_jobs_recovered_total") == 1
    assert found.total("packhorse_jobs_failed_total", queue="mail") == found.total("packhorse_jobs_failed_total") == 1
    assert [(one.type, one.final, one.lapsed, one.worker) for one in told] == [("email", True, True, None)]
