"""`/api/v1/jobs`: stopped, started over and removed, one or many."""

from __future__ import annotations

from pathlib import Path

from packhorse.job import State

from .api import Api, asking, on_stores

#: What nothing does to a job, by verb and the state it is in.
REFUSED = [
    ("cancel", "succeeded", "urn:packhorse:job-ended"),
    ("cancel", "failed", "urn:packhorse:job-ended"),
    ("cancel", "cancelled", "urn:packhorse:job-ended"),
    ("rerun", "pending", "urn:packhorse:job-live"),
    ("rerun", "running", "urn:packhorse:job-live"),
    ("delete", "running", "urn:packhorse:job-live"),
]


async def _job_in(api: Api, state: str) -> str:
    queue = f"for-{state}"
    job_id = await api.enqueue(queue=queue)
    if state == "cancelled":
        await api.done("POST", f"/api/v1/jobs/{job_id}/cancel")
    elif state == "running":
        assert [job.id for job in await api.claim(queue)] == [job_id]
    elif state != "pending":
        await api.run(State(state), queue=queue)
    return job_id


@on_stores
def test_a_job_is_cancelled_rerun_and_deleted(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue()
        place = f"/api/v1/jobs/{job_id}"
        assert await api.done("POST", f"{place}/cancel") == {"id": job_id, "answer": "done"}
        assert await api.state_of(job_id) == "cancelled"
        assert await api.done("POST", f"{place}/rerun") == {"id": job_id, "answer": "done"}
        await api.claim()
        assert await api.done("POST", f"{place}/cancel") == {"id": job_id, "answer": "requested"}
        assert (await api.done("GET", place))["cancel_requested"] is True
        other = await api.enqueue()
        assert await api.done("DELETE", f"/api/v1/jobs/{other}") == {"id": other, "answer": "done"}
        await api.refused("GET", f"/api/v1/jobs/{other}", status=404)

    asking(store, tmp_path, scenario)


@on_stores
def test_what_cannot_be_done_to_a_job_is_a_conflict(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        jobs = {state: await _job_in(api, state) for state in {state: None for _, state, _ in REFUSED}}
        for verb, state, kind in REFUSED:
            job_id = jobs[state]
            method, path = ("DELETE", "") if verb == "delete" else ("POST", f"/{verb}")
            problem = await api.refused(method, f"/api/v1/jobs/{job_id}{path}", status=409)
            assert (problem["type"], problem["job_id"]) == (kind, job_id)
            assert await api.state_of(job_id) == state

    asking(store, tmp_path, scenario)


@on_stores
def test_a_job_whose_unique_key_another_holds_is_not_rerun(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue(unique="u")
        await api.run(State.FAILED)
        await api.enqueue(unique="u")
        problem = await api.refused("POST", f"/api/v1/jobs/{job_id}/rerun", status=409)
        assert problem["type"] == "urn:packhorse:job-conflict"

    asking(store, tmp_path, scenario)


@on_stores
def test_a_rerun_takes_edits_and_checks_them(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue(type="email", payload={"to": "a"}, queue="default", max_attempts=1)
        place = f"/api/v1/jobs/{job_id}/rerun"
        await api.run(State.FAILED)
        for wrong, pointer in (
            ({"payload": {"to": 7}}, "/payload/to"),
            ({"payload": None}, "/payload"),
            ({"queue": "a/b"}, "/queue"),
            ({"priority": "soon"}, "/priority"),
            ({"max_attempts": 1_001}, "/max_attempts"),
            ({"delay": "-1s"}, "/delay"),
            ({"state": "pending"}, ""),
        ):
            await api.refused("POST", place, wrong, status=422, at=pointer)
        assert await api.state_of(job_id) == "failed"
        edits = {"payload": {"to": "b"}, "queue": "other", "priority": 1, "max_attempts": 7, "delay": "1h"}
        await api.done("POST", place, edits)
        shown = await api.done("GET", f"/api/v1/jobs/{job_id}")
        assert [shown[name] for name in ("payload", "queue", "priority", "max_attempts", "state", "attempt")] == [
            {"to": "b"},
            "other",
            1,
            7,
            "scheduled",
            0,
        ]
        await api.refused("POST", "/api/v1/jobs/nobody/rerun", {"payload": {}}, status=404)

    asking(store, tmp_path, scenario)


@on_stores
def test_many_jobs_are_steered_by_their_ids(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ids = [await api.enqueue() for _ in range(3)]
        answers = (await api.done("POST", "/api/v1/jobs/cancel", {"ids": [*ids, "nobody", "a b", ids[0]]}))["items"]
        assert [answer["answer"] for answer in answers] == ["done"] * 3 + ["missing"] * 2
        again = (await api.done("POST", "/api/v1/jobs/cancel", {"ids": ids[:1]}))["items"]
        assert again == [{"id": ids[0], "answer": "ended"}]
        rerun = (await api.done("POST", "/api/v1/jobs/rerun", {"ids": ids[:2], "delay": "1h"}))["items"]
        assert [answer["answer"] for answer in rerun] == ["done"] * 2
        assert await api.state_of(ids[0]) == "scheduled"
        deleted = (await api.done("POST", "/api/v1/jobs/delete", {"ids": ids}))["items"]
        assert [answer["answer"] for answer in deleted] == ["done"] * 3
        assert (await api.done("GET", "/api/v1/jobs"))["items"] == []

    asking(store, tmp_path, scenario)


@on_stores
def test_many_jobs_are_steered_by_a_filter_after_a_dry_run(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for n in range(6):
            await api.enqueue(type=f"t{n % 2}", tags=[f"g{n % 3}"])
        ask = {"filter": {"type": "t1", "states": ["pending"]}, "dry_run": True}
        counted = await api.done("POST", "/api/v1/jobs/cancel", ask)
        assert (counted["matched"], counted["done"], counted["dry_run"]) == (3, 0, True)
        done = await api.done("POST", "/api/v1/jobs/cancel", {**ask, "dry_run": False})
        assert (done["matched"], done["done"]) == (3, 3)
        rerun = await api.done("POST", "/api/v1/jobs/rerun", {"filter": {"states": ["cancelled"], "tag": "g1"}})
        assert rerun["done"] == 1
        nothing = await api.done("POST", "/api/v1/jobs/rerun", {"filter": {}})
        assert nothing["matched"] == 0  # failed ones only, unless states are named
        deleted = await api.done("POST", "/api/v1/jobs/delete", {"filter": {"states": ["cancelled"]}})
        assert deleted["done"] == 2
        everything = await api.done("POST", "/api/v1/jobs/delete", {"filter": {}})
        assert everything["done"] == 4
        assert (await api.done("GET", "/api/v1/jobs"))["items"] == []

    asking(store, tmp_path, scenario)


@on_stores
def test_nothing_is_named_by_being_left_out(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue()
        for verb in ("cancel", "rerun", "delete"):
            path = f"/api/v1/jobs/{verb}"
            await api.refused("POST", path, {}, status=422, at="")
            await api.refused("POST", path, {"ids": [job_id], "filter": {}}, status=422, at="/ids")
            await api.refused("POST", path, {"ids": [job_id], "dry_run": True}, status=422, at="/dry_run")
            await api.refused("POST", path, {"ids": []}, status=422, at="/ids")
            await api.refused("POST", path, {"ids": ["x"] * 1_001}, status=422, at="/ids")
            await api.refused("POST", path, {"filter": {"stats": ["failed"]}}, status=422, at="/filter")
            await api.refused("POST", path, {"filter": {"states": ["gone"]}}, status=422, at="/filter/states/0")
            await api.refused("POST", path, {"filter": {"states": []}}, status=422, at="/filter/states")
            for name in ("queue", "type", "tag", "key"):
                await api.refused("POST", path, {"filter": {name: ""}}, status=422, at=f"/filter/{name}")
            await api.refused("POST", path, {"filter": {"queue": "a b"}}, status=422, at="/filter/queue")
            await api.refused("POST", path, {"filter": {"created_from": "now"}}, status=422, at="/filter/created_from")
            await api.refused("POST", path, status=415)
        await api.refused(
            "POST", "/api/v1/jobs/delete", {"filter": {"states": ["running"]}}, status=422, at="/filter/states"
        )
        await api.refused(
            "POST", "/api/v1/jobs/cancel", {"filter": {"states": ["failed"]}}, status=422, at="/filter/states"
        )
        await api.refused("POST", "/api/v1/jobs/rerun", {"ids": [job_id], "delay": "soon"}, status=422, at="/delay")
        await api.refused("POST", "/api/v1/jobs/delete", {"group": "nonsense"}, status=422, at="/group")
        assert await api.state_of(job_id) == "pending"

    asking(store, tmp_path, scenario)
