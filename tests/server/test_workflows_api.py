"""`/api/v1/workflows`: graphs of jobs in one request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.job import State

from .api import Api, asking, on_stores

PATH = "/api/v1/workflows"


def _node(name: str, *after: str, **job: Any) -> dict[str, Any]:
    return {"name": name, "after": list(after), "job": {"type": "work", **job}}


DIAMOND = {
    "name": "nightly",
    "nodes": [
        _node("load", "left", "right"),  # before what it waits for: the order does not matter
        _node("extract", payload={"day": 1}),
        _node("left", "extract"),
        {**_node("right", "extract"), "after_failed": "continue"},
    ],
}


@on_stores
def test_a_workflow_is_stored_whole_and_goes_its_way(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        outside = await api.enqueue(queue="outside")
        graph = {**DIAMOND, "nodes": [*DIAMOND["nodes"], _node("late", after=[outside])]}
        response = await api.post(PATH, graph)
        assert response.status_code == 201
        stored = response.json()
        assert stored["jobs"].keys() == {"load", "extract", "left", "right", "late"}
        shown = await api.done("GET", response.headers["location"])
        nodes = {node["node"]: node for node in shown["nodes"]}
        assert (shown["name"], shown["state"]) == ("nightly", "live")
        assert sorted(nodes["load"]["after"]) == ["left", "right"]
        assert nodes["late"]["after"] == [outside]
        assert [nodes[name]["level"] for name in ("extract", "left", "right", "load")] == [0, 1, 1, 2]
        assert await api.run() == stored["jobs"]["extract"]
        assert {job.id for job in await api.claim(limit=10)} == {stored["jobs"]["left"], stored["jobs"]["right"]}
        (listed,) = (await api.done("GET", PATH))["items"]
        assert (listed["id"], listed["states"]["running"]) == (stored["id"], 2)

    asking(store, tmp_path, scenario)


@on_stores
def test_a_workflow_is_cancelled_and_its_failures_rerun(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        stored = await api.done("POST", PATH, DIAMOND)
        place = f"{PATH}/{stored['id']}"
        await api.run(State.FAILED)
        assert (await api.done("GET", place))["states"]["cancelled"] == 2  # left and load; right goes on all the same
        answers = await api.done("POST", f"{place}/cancel")
        assert answers["items"]
        assert (await api.done("GET", place))["state"] == "failed"
        rerun = await api.done("POST", f"{place}/rerun")
        assert [item["id"] for item in rerun["items"]] == [stored["jobs"]["extract"]]
        everything = await api.done("POST", f"{place}/rerun", {"cancelled": True})
        assert everything["items"]
        assert (await api.done("GET", place))["state"] == "live"

    asking(store, tmp_path, scenario)


@on_stores
def test_a_workflow_sent_again_with_its_key_is_the_same(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        headers = {"Idempotency-Key": "night of the 31st"}
        first = await api.post(PATH, DIAMOND, headers=headers)
        again = await api.post(PATH, DIAMOND, headers=headers)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json() | {"created": False}
        assert len((await api.done("GET", PATH))["items"]) == 1
        other = {"nodes": [_node("extract", payload={"day": 2})]}
        await api.refused("POST", PATH, other, status=409, headers=headers)

    asking(store, tmp_path, scenario)


@on_stores
def test_what_cannot_be_a_workflow_is_refused_with_the_place(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for nodes, place in (
            ([], "/nodes"),
            ([_node("a"), _node("a")], "/nodes/1"),
            ([_node("a", "b")], "/nodes"),
            ([_node("a", "b"), _node("b", "a")], "/nodes"),
            ([_node("a", "a")], "/nodes"),
            ([_node("a b")], "/nodes/0"),
            ([_node("a"), _node("b", priority=77)], "/nodes/1/job/priority"),
            ([_node("a"), {"name": "b", "job": {"type": "email", "payload": {"to": 7}}}], "/nodes/1/job/payload/to"),
            ([_node("a", recurring={"every": "5m"})], "/nodes/0/job/recurring"),
            ([{**_node("a"), "after_failed": "maybe"}], "/nodes/0"),
            ([_node(f"n{n}") for n in range(1_001)], "/nodes"),
        ):
            await api.refused("POST", PATH, {"nodes": nodes}, status=422, at=place)
        assert (await api.done("GET", "/api/v1/jobs"))["items"] == []
        assert (await api.done("GET", PATH))["items"] == []

    asking(store, tmp_path, scenario)


@on_stores
def test_workflows_are_listed_page_by_page(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ids = [(await api.done("POST", PATH, {"nodes": [_node("a")]}))["id"] for _ in range(5)]
        first = await api.done("GET", f"{PATH}?limit=3")
        rest = await api.done("GET", f"{PATH}?limit=3&cursor={first['next']}")
        assert [item["id"] for item in first["items"] + rest["items"]] == sorted(ids, reverse=True)
        assert rest["next"] is None
        await api.refused("GET", f"{PATH}?limit=101", status=400, at="limit")
        for workflow_id in ("nobody", "0190b3a0-0000-7000-8000-000000000000", "a%20b", "%00"):
            for method, tail in (("GET", ""), ("POST", "/cancel"), ("POST", "/rerun")):
                await api.refused(method, f"{PATH}/{workflow_id}{tail}", status=404)

    asking(store, tmp_path, scenario)
