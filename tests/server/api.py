"""Asks the application, and holds every answer to what its operation declares."""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from packhorse import Packhorse
from packhorse.backends.base import Backend, Settlement
from packhorse.job import Claimed, JobError, State
from packhorse.server.access import LOCAL, Caller
from packhorse.server.app import operations
from packhorse.server.operation import Operation

from ..worker.working import work
from .kit import client_of
from .tasks import make_app

_numbers = itertools.count()

on_stores = pytest.mark.parametrize("store", ["memory", "sqlite"])

_BY_PATH = [
    (operation.method, re.compile(re.sub(r"{\w+}", "[^/]+", operation.path) + r"\Z"), operation)
    for operation in sorted(operations(), key=lambda operation: operation.path.count("{"))
]


def operation_of(method: str, path: str) -> Operation | None:
    """Answer which operation a request is for."""
    for its_method, pattern, operation in _BY_PATH:
        if its_method == method and pattern.match(path):
            return operation
    return None


def check_declared(response: httpx.Response) -> None:
    """Check that an answer has the shape that its operation declares for its status."""
    operation = operation_of(response.request.method, response.request.url.path)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json", response.text
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["type"].startswith("urn:packhorse:")
        assert problem["title"]
        return
    assert operation is not None
    if response.status_code in {204, 304}:
        assert not response.content
        return
    declared = {operation.status: operation.answer, **operation.answers}[response.status_code]
    found = response.json()
    for kind in declared if isinstance(declared, tuple) else (declared,):
        try:
            if msgspec.to_builtins(msgspec.convert(found, kind)) == found:
                return
        except msgspec.ValidationError:
            continue
    raise AssertionError(f"{operation.name} answers {response.text[:500]}, which is not {declared}")


class Api:
    """A client of the application, and what stands behind it."""

    def __init__(self, app: Packhorse, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask, and check the shape of the answer."""
        response = await self.client.request(method, path, **options)
        check_declared(response)
        return response

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.ask("POST", path, **({} if body is None else {"json": body}), **options)

    async def done(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Ask for something that must succeed; answers the JSON."""
        response = await self.ask(method, path, **({} if body is None else {"json": body}), **options)
        assert response.status_code < 300, response.text
        return response.json() if response.content else None

    async def refused(
        self, method: str, path: str, body: Any = None, *, status: int, at: str | None = None, **options: Any
    ) -> Any:
        """Ask for something that must be refused with a status, and a place of the body or URL; answers the problem."""
        response = await self.ask(method, path, **({} if body is None else {"json": body}), **options)
        assert response.status_code == status, response.text
        problem = response.json()
        if at is not None:
            (fault,) = problem["errors"]
            assert fault.get("pointer", fault.get("parameter")) == at, problem
        return problem

    async def enqueue(self, **job: Any) -> str:
        """Store a job; answers its id."""
        return (await self.done("POST", "/api/v1/jobs", {"type": "work", **job}))["id"]

    # ---- the other end -----------------------------------------------------------------------------------

    async def backend(self) -> Backend:
        return await self.app.backend()

    async def claim(self, queue: str = "default", limit: int = 1) -> list[Claimed]:
        """Claim as a worker."""
        return await (await self.backend()).claim([queue], limit, 30_000, "w1")

    async def run(self, state: State = State.SUCCEEDED, *, queue: str = "default", error: str = "it broke") -> str:
        """Claim the next job and end it; answers its id."""
        (job,) = await self.claim(queue)
        await self.settle(job, state, error)
        return job.id

    async def settle(self, job: Claimed, state: State = State.SUCCEEDED, error: str = "it broke") -> None:
        """End a run."""
        ended = Settlement(id=job.id, token=job.token, state=state, result=b'{"ok":true}')
        if state is State.FAILED:
            found = JobError(attempt=job.attempt, at_ms=self.app.clock.now_ms(), kind="ValueError", message=error)
            ended = Settlement(id=job.id, token=job.token, state=state, error=found)
        await (await self.backend()).settle([ended])

    async def state_of(self, job_id: str) -> str:
        return (await self.done("GET", f"/api/v1/jobs/{job_id}"))["state"]


def asking(store: str, tmp_path: Path, scenario: Callable[[Api], Awaitable[None]], *, caller: Caller = LOCAL) -> None:
    """Run a scenario against an application on a store of its own."""
    app = make_app(f"memory://api-{next(_numbers)}" if store == "memory" else f"sqlite:///{tmp_path}/jobs.db", tmp_path)

    async def main() -> None:
        async with client_of(app, caller) as client:
            await scenario(Api(app, client))

    work(main)
