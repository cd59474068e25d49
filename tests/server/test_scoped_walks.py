"""Walks of callers for several queues: their `next` must be a cursor that the API takes."""

from __future__ import annotations

import pytest

from packhorse.backends.base import Page, Query
from packhorse.backends.scoped import ScopedBackend
from packhorse.job import JobSpec, State
from packhorse.server.access import Caller, Role
from packhorse.server.door.tokens import QUEUES_MAX

from ..worker.working import new_app, work
from .kit import client_of


@pytest.mark.parametrize("chars", [1, 128])
def test_a_caller_for_as_many_queues_as_a_token_may_name_can_walk_them(chars: int) -> None:
    queues = [f"{number:0>{max(chars, 2)}}" for number in range(QUEUES_MAX)]

    async def scenario() -> None:
        app = new_app()
        await app.aenqueue_many({"type": "x", "queue": queue} for queue in queues for _ in range(3))
        tenant = Caller(name="tenant", role=Role.READ, queues=frozenset(queues))
        async with client_of(app, tenant) as client:
            seen: list[str] = []
            parameters = {"limit": "7", "brief": "true"}
            while True:
                answer = await client.get("/api/v1/jobs", params=parameters)
                assert answer.status_code == 200, answer.text
                seen += [job["id"] for job in answer.json()["items"]]
                if answer.json()["next"] is None:
                    break
                parameters["cursor"] = answer.json()["next"]
            assert len(seen) == len(set(seen)) == 3 * QUEUES_MAX

    work(scenario)


def test_a_cursor_of_other_queues_is_refused() -> None:
    async def scenario() -> None:
        app = new_app()
        await app.aenqueue_many({"type": "x", "queue": queue} for queue in "abc" for _ in range(2))
        async with client_of(app, Caller(name="one", role=Role.READ, queues=frozenset("ab"))) as client:
            cursor = (await client.get("/api/v1/jobs?limit=1")).json()["next"]
        async with client_of(app, Caller(name="other", role=Role.READ, queues=frozenset("ac"))) as client:
            refused = await client.get("/api/v1/jobs", params={"limit": 1, "cursor": cursor})
            assert refused.status_code == 400
            assert "is not a cursor of this list" in refused.text

    work(scenario)


def test_a_workflow_costs_a_caller_for_many_queues_one_look() -> None:
    """1,000 workflows of others are looked through for one answer: 32 looks for each took seconds (FAILURES C6)."""

    async def scenario() -> None:
        app = new_app()
        backend = await app.backend()
        for number in range(20):
            await backend.enqueue([JobSpec(id=f"job-{number}", type="x", queue="theirs", workflow=f"w{number}")])
        await backend.enqueue([JobSpec(id="mine", type="x", queue="q7", workflow="w7")])
        looks = 0
        find = backend.find

        async def counted(query: Query) -> Page:
            nonlocal looks
            looks += 1
            return await find(query)

        backend.find = counted  # type: ignore[method-assign]
        mine = ScopedBackend(backend, frozenset(f"q{number}" for number in range(QUEUES_MAX)))
        assert [(one.id, one.states) for one in await mine.workflows()] == [("w7", {State.PENDING: 1})]
        assert looks <= 21

    work(scenario)
