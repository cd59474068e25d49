"""A long poll that ends early: the client has gone, or the server is about to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from packhorse import Packhorse
from packhorse.errors import NotFound
from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.service import Service

from ..worker.working import until, work
from .kit import admitting

_numbers = itertools.count()


class Waiting:
    """One request for the result of a job that does not end, at an application without a network."""

    def __init__(self, service: Service, app: Any, job_id: str) -> None:
        self.service = service
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._asked = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": f"/api/v1/jobs/{job_id}/result",
            "raw_path": b"",
            "root_path": "",
            "query_string": b"wait=60s",
            "headers": [(b"host", b"127.0.0.1")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def waiting_for_a_job(scenario: Callable[[Waiting, Packhorse, str], Awaitable[None]]) -> None:
    """Run a scenario while a client waits for the end of a job."""

    async def main() -> None:
        app = Packhorse(f"memory://waiting-{next(_numbers)}", tokens_file="/nowhere/tokens.json")
        job = await app.aenqueue("work", delay="1h")
        service = Service(app)
        backend: Any = await app.backend()
        waiting = Waiting(service, make_application(service, admitting(LOCAL)), job.id)
        await until(lambda: backend.inner.store.bells.are_hung)
        await scenario(waiting, app, job.id)
        await asyncio.wait_for(waiting.task, 60)
        assert not backend.inner.store.bells.are_hung
        await service.close()

    work(main)


def test_a_client_that_has_gone_is_waited_for_no_longer() -> None:
    async def scenario(waiting: Waiting, app: Packhorse, job_id: str) -> None:
        waiting.gone.set()

    waiting_for_a_job(scenario)


def test_a_server_that_stops_answers_what_it_knows() -> None:
    async def scenario(waiting: Waiting, app: Packhorse, job_id: str) -> None:
        waiting.service.stopping.set()
        await asyncio.wait_for(waiting.task, 60)
        assert waiting.sent[0]["status"] == 202
        assert b"scheduled" in waiting.sent[1]["body"]

    waiting_for_a_job(scenario)


def test_the_end_of_a_job_is_seen_at_once() -> None:
    async def scenario(waiting: Waiting, app: Packhorse, job_id: str) -> None:
        await app.job(job_id).acancel()
        await asyncio.wait_for(waiting.task, 60)
        assert waiting.sent[0]["status"] == 200
        assert b'"cancelled"' in waiting.sent[1]["body"]

    waiting_for_a_job(scenario)


def test_a_job_that_is_deleted_meanwhile_is_not_found() -> None:
    async def scenario(waiting: Waiting, app: Packhorse, job_id: str) -> None:
        await app.job(job_id).adelete()
        await asyncio.wait_for(waiting.task, 60)
        assert waiting.sent[0]["status"] == 404
        with pytest.raises(NotFound):
            await app.job(job_id).arecord()

    waiting_for_a_job(scenario)
