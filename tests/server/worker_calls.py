"""What a worker asks of a server, for the tests of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import httpx

from packhorse import Packhorse

from .kit import client_of


async def post(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    answer = await client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def claim(client: httpx.AsyncClient, worker: str = "w1", **options: Any) -> Any:
    return await post(client, "claims", worker=worker, **{"limit": 10, **options})


async def settle(client: httpx.AsyncClient, job: Any, outcome: str, **rest: Any) -> str:
    end = {"id": job["id"], "token": job["token"], "outcome": outcome, **rest}
    (settled,) = (await post(client, "settlements", settlements=[end]))["settlements"]
    assert settled["id"] == job["id"]
    return settled["verdict"]


@asynccontextmanager
async def one_claimed(app: Packhorse, payload: Any = None, **options: Any):
    """A client, and a job that it has claimed."""
    async with client_of(app) as client:
        await app.aenqueue("email", {} if payload is None else payload, **options)
        (job,) = (await claim(client))["jobs"]
        yield client, job


async def record_of(app: Packhorse, job: Any):
    return await app.job(job["id"]).arecord()
