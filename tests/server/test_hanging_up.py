"""Claims of clients that go: nothing is taken for them, and what was taken is given back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from packhorse import Packhorse
from packhorse.job import State
from packhorse.server import health
from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.net.running import serving
from packhorse.server.service import Service

from ..worker.working import faulty_app, new_app, store_of, until, work
from .kit import admitting, client_of
from .worker_calls import claim, post, record_of, settle


def test_a_client_that_hung_up_while_waiting_claims_nothing() -> None:
    async def scenario() -> None:
        app = new_app(poll_interval="1h")
        async with client_of(app) as client:
            gone = asyncio.Event()
            sent: list[Any] = []
            asked = asyncio.create_task(asked_raw(client, {"worker": "w1", "wait": "60s", "lease": "1d"}, gone, sent))
            await until(lambda: app._backends and store_of(app).bells.are_hung)
            gone.set()
            await asyncio.wait_for(asked, 60)
            job = await app.aenqueue("email", {})
            assert (await job.arecord()).attempt == 0
            assert sent == []

    work(scenario)


def test_what_was_claimed_for_a_client_that_is_gone_is_given_back_without_an_attempt() -> None:
    """The client goes while the claim is under way in the store, and while the answer is being sent."""

    async def scenario() -> None:
        for when in ("claim", "send"):
            app, backend = faulty_app()
            async with client_of(app) as client:
                job = await app.aenqueue("email", {})
                gone = asyncio.Event()
                sent: list[Any] = []
                if when == "claim":
                    backend.fail["claim"] = gone.set
                await asked_raw(client, {"worker": "w1"}, gone, sent, gone_at_body=when == "send")
                record = await job.arecord()
                assert (record.state, record.attempt) == (State.PENDING, 0)
                assert b"" not in [message.get("body", b"x")[-2:] for message in sent]
                assert not any(message.get("body", b"").endswith(b"}") for message in sent)

    work(scenario)


@pytest.mark.parametrize("verb", ["claim", "settle"])
def test_a_claim_that_the_server_cuts_off_gives_back_what_it_got(verb: str) -> None:
    """The store has done the claim when the request is cancelled: its jobs must not wait for a lease to run out."""

    async def scenario() -> None:
        app, backend = faulty_app()
        async with client_of(app) as client:
            job = await app.aenqueue("email", {})
            await app.aenqueue("strange", {})
            real, reached, go = getattr(backend, verb), asyncio.Event(), asyncio.Event()

            async def slow(*arguments: Any) -> Any:
                answer = await real(*arguments)
                reached.set()
                await go.wait()
                return answer

            setattr(backend, verb, slow)
            asked = asyncio.create_task(claim(client, types=["email"]))
            await reached.wait()
            asked.cancel()
            await asyncio.sleep(0)
            go.set()
            await asyncio.wait([asked])
            assert asked.cancelled()
            record = await job.arecord()
            assert (record.state, record.attempt) == (State.PENDING, 0)

    work(scenario)


def test_a_client_that_leaves_once_it_has_the_whole_answer_keeps_its_jobs() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            job = await app.aenqueue("email", {})
            gone = asyncio.Event()
            sent: list[Any] = []
            await asked_raw(client, {"worker": "w1"}, gone, sent)
            gone.set()
            await asyncio.sleep(0)
            assert (await job.arecord()).state is State.RUNNING
            assert b"".join(message.get("body", b"") for message in sent).endswith(b"]}")

    work(scenario)


def test_a_connection_that_breaks_ends_the_wait_of_its_claim() -> None:
    """B2, over a real connection: nothing is claimed for a machine that is gone."""

    async def scenario() -> None:
        app = new_app(poll_interval="1h")
        service = Service(app)
        async with serving(make_application(service, admitting(LOCAL)), stopping=service.stopping) as url:
            await app.backend()
            host, _, port = url.removeprefix("http://").partition(":")
            body = b'{"worker":"w1","wait":"60s","lease":"1d"}'
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /api/v1/claims HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await until(lambda: store_of(app).bells.are_hung)
            writer.transport.abort()
            await until(lambda: not store_of(app).bells.are_hung)
            job = await app.aenqueue("email", {})
            assert (await job.arecord()).attempt == 0
        await service.close()

    work(scenario)


def test_a_server_that_stops_ends_the_waits_of_its_claims() -> None:
    async def scenario() -> None:
        app = new_app(poll_interval="1h")
        service = Service(app)
        async with serving(make_application(service, admitting(LOCAL)), stopping=service.stopping) as url:
            await app.backend()
            async with httpx.AsyncClient(base_url=url) as client:
                asked = asyncio.create_task(claim(client, wait="60s", lease="1d"))
                await until(lambda: store_of(app).bells.are_hung)
                service.stopping.set()
                assert (await asyncio.wait_for(asked, 60))["jobs"] == []
        await service.close()

    work(scenario)


def test_jobs_behind_many_of_other_types_are_found_in_one_wait() -> None:
    async def scenario() -> None:
        app = new_app(poll_interval="1h")
        async with client_of(app) as client:
            await app.aenqueue_many([("strange", {}) for _ in range(5)])
            job = await app.aenqueue("known", {})
            answer = await claim(client, limit=1, types=["known"], wait="20s", lease="1d")
            assert [one["id"] for one in answer["jobs"]] == [job.id]

    work(scenario)


@pytest.mark.parametrize("url", ["sqlite:///{}/jobs.db"])
def test_a_durable_store_serves_workers_alike(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_MS_MAX", 60_000)  # the machine may stand still for as long as a look may take

    async def scenario() -> None:
        app = Packhorse(url.format(tmp_path))
        async with client_of(app) as client:
            await app.aenqueue_many([("email", {"n": n}) for n in range(3)])
            jobs = (await claim(client, host="box", types=["email"]))["jobs"]
            progress = [{"id": job["id"], "token": job["token"], "progress": 0.5} for job in jobs]
            beat = await post(client, "heartbeats", worker="w1", progress=progress)
            assert beat["held"] == {job["id"]: job["token"] for job in jobs}
            assert await settle(client, jobs[0], "succeeded", result=[1]) == "applied"
            assert await settle(client, jobs[0], "succeeded", result=[1]) == "stale"
            assert await settle(client, jobs[1], "failed", permanent=True) == "applied"
            assert await settle(client, jobs[2], "released") == "applied"
            states = [(await record_of(app, job)).state for job in jobs]
            assert states == [State.SUCCEEDED, State.FAILED, State.PENDING]
            (shown,) = await (await app.backend()).workers()
            assert (shown.id, shown.host, shown.types) == ("w1", "box", ("email",))
            assert len((await client.get("/logs")).json()) == 8
            assert (await client.get("/health")).json()["workers"] == 1

    work(scenario)


async def asked_raw(
    client: Any, body: Any, gone: asyncio.Event, sent: list[Any], *, gone_at_body: bool = False
) -> None:
    """Claim through the bare ASGI interface, where a client can be made to go at will."""
    import msgspec

    requests = [{"type": "http.request", "body": msgspec.json.encode(body), "more_body": False}]

    async def receive() -> Any:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if gone_at_body and message.get("body"):
            gone.set()
            await asyncio.sleep(0)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/v1/claims",
        "raw_path": b"/api/v1/claims",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await client._transport.app(scope, receive, send)
