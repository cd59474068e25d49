"""Jobs at the door: what the answer says of them, keys in headers, depth on every way in, and large bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packhorse import Unique
from packhorse.job import JobSpec, State

from ..worker.working import new_app, work
from .api import Api, asking, on_stores
from .kit import client_of


@on_stores
def test_a_job_whose_parents_have_ended_is_answered_as_it_stands(store: str, tmp_path) -> None:
    async def scenario(api: Api) -> None:
        parent = await api.enqueue()
        waits = await api.done("POST", "/api/v1/jobs", {"type": "work", "queue": "b", "after": [parent]})
        assert (waits["state"], waits["status"]) == ("waiting", "enqueued")
        await api.run()
        ready = await api.done("POST", "/api/v1/jobs", {"type": "work", "queue": "b", "after": [parent]})
        assert (ready["state"], ready["status"]) == ("pending", "enqueued")
        failed = await api.enqueue(queue="c", max_attempts=1)
        await api.run(State.FAILED, queue="c")
        both = [{"type": "work", "after": [failed]}, {"type": "work", "after": [parent], "delay": "5m"}]
        found = await api.done("POST", "/api/v1/jobs/batch", {"jobs": both})
        assert [(job["state"], job["status"]) for job in found["items"]] == [
            ("cancelled", "failed"),
            ("scheduled", "scheduled"),
        ]
        for job in (waits, ready, *found["items"]):
            assert (await api.state_of(job["id"])) == (job["state"] if job is not waits else "pending")

    asking(store, tmp_path, scenario)


def test_an_id_that_no_header_takes_is_written_as_a_url_has_it() -> None:
    """An id may be of another program's making, and what stands in a header is Latin-1."""

    async def scenario() -> None:
        app = new_app()
        await (await app.backend()).enqueue([JobSpec(id="é ✓/1", type="x", unique=Unique(key="u"))])
        async with client_of(app) as client:
            found = await client.post("/api/v1/jobs", json={"type": "x", "unique": "u"})
            assert found.status_code == 200
            assert found.json()["id"] == "é ✓/1"
            assert found.headers["location"] == "/api/v1/jobs/%C3%A9%20%E2%9C%93%2F1"

    work(scenario)


@pytest.mark.parametrize("key", ["", "k" * 257, "a\tb"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/jobs", {"type": "x"}),
        ("/jobs", {"type": "x"}),
        ("/api/v1/jobs/batch", {"jobs": [{"type": "x"}]}),
        ("/api/v1/workflows", {"nodes": [{"name": "a", "job": {"type": "x"}}]}),
    ],
)
def test_an_idempotency_key_that_is_none_is_a_fault_of_the_header(path: str, body: Any, key: str) -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            refused = await client.post(path, json=body, headers={"Idempotency-Key": key})
            assert refused.status_code == 400
            assert [fault["parameter"] for fault in refused.json()["errors"]] == ["Idempotency-Key"]
            assert (await client.get("/api/v1/jobs")).json()["items"] == []

    work(scenario)


def _nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


_WAYS = {
    "POST /api/v1/jobs": lambda payload: {"type": "x", "payload": payload},
    "POST /jobs": lambda payload: {"type": "x", "payload": payload},
    "POST /api/v1/jobs/batch": lambda payload: {"jobs": [{"type": "x", "payload": payload}]},
    "POST /api/v1/workflows": lambda payload: {"nodes": [{"name": "a", "job": {"type": "x", "payload": payload}}]},
    "PUT /api/v1/schedules/s": lambda payload: {"type": "x", "every": "1h", "payload": payload},
    "POST /api/v1/jobs/ID/rerun": lambda payload: {"payload": payload},
    "POST /api/v1/settlements": lambda payload: {
        "settlements": [{"id": "ID", "token": "1", "outcome": "succeeded", "result": payload}]
    },
}


@pytest.mark.parametrize("way", _WAYS)
def test_every_way_in_takes_64_levels_and_not_one_more(way: str) -> None:
    """C13: the same verdict on every way in."""

    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            job_id = (await client.post("/api/v1/jobs", json={"type": "x"})).json()["id"]
            await client.post(f"/api/v1/jobs/{job_id}/cancel")
            method, _, path = way.replace("ID", job_id).partition(" ")
            refused = await client.request(method, path, json=_WAYS[way](_nested(65)))
            assert refused.status_code == 422
            assert "nested deeper than 64 levels" in refused.json()["detail"]
            assert refused.json()["errors"][0]["pointer"].endswith("/a" * 64)
            taken = await client.request(method, path, json=_WAYS[way](_nested(64)))
            assert taken.status_code < 300, taken.text

    work(scenario)


def test_a_large_body_holds_nobody_else_up() -> None:
    """C16: 8 MiB of JSON take half a second to read; on the event loop all other requests would wait for it."""
    rows = [{"id": number, "name": "some name", "value": 1.5} for number in range(180)]
    body = {"jobs": [{"type": "x", "payload": {"rows": rows}} for _ in range(900)]}

    async def scenario() -> None:
        async with client_of(new_app()) as client:
            large = asyncio.create_task(client.post("/api/v1/jobs/batch", json=body))
            answered = 0
            while not large.done():
                await asyncio.sleep(0)
                assert (await client.get("/livez")).status_code == 200
                answered += 1
            assert (await large).status_code == 201
            assert answered >= 10

    work(scenario)


def test_a_body_of_brackets_is_refused_before_it_fills_the_memory() -> None:
    """C13, C16: 8 MiB of empty lists are 2.7 million of them, half a gigabyte; one whole payload of them is fine."""
    lists = "[" + "[]," * 330_000 + "[]]"

    async def scenario() -> None:
        async with client_of(new_app()) as client:
            headers = {"Content-Type": "application/json"}
            one = await client.post("/api/v1/jobs", content=f'{{"type":"x","payload":{lists}}}', headers=headers)
            assert one.status_code == 201, one.text
            job = f'{{"type":"x","payload":{lists}}}'
            two = await client.post("/api/v1/jobs/batch", content=f'{{"jobs":[{job},{job}]}}', headers=headers)
            assert two.status_code == 413
            assert "send it in parts" in two.json()["detail"]

    work(scenario)
