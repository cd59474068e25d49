"""`GET /api/v1/jobs/{id}/log`: a job's story, with what its runs logged."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from packhorse.backends.base import Note, WorkerInfo
from packhorse.job import Claimed, State
from packhorse.observe.job_log import AttemptLog, LogLine, name_of
from packhorse.server.access import Caller, Role

from .api import Api, asking, on_stores


async def log(api: Api, job: Claimed, *lines: LogLine, left_out: int = 0) -> None:
    """Keep lines with a running job, as its worker does."""
    data = msgspec.json.encode(AttemptLog(job.attempt, left_out, list(lines)))
    note = Note(id=job.id, token=job.token, step=name_of(job.attempt), result=data)
    await (await api.backend()).heartbeat(WorkerInfo(id="w1"), 30_000, [note])


async def logged(api: Api, queue: str = "default") -> str:
    """A job that failed once, with lines of its run; answers its id."""
    job_id = await api.enqueue(queue=queue)
    (job,) = await api.claim(queue)
    at_ms = api.app.clock.now_ms()
    lines = [LogLine(at_ms, "info", "shop", "sold\n3"), LogLine(at_ms, "warning", "shop", "low stock")]
    await log(api, job, *lines, left_out=2)
    await api.settle(job, State.FAILED, "no more")
    return job_id


@on_stores
def test_a_jobs_story(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await logged(api)
        found = await api.done("GET", f"/api/v1/jobs/{job_id}/log")
        items = found.pop("items")
        assert found == {
            "id": job_id,
            "type": "work",
            "queue": "default",
            "state": "failed",
            "attempt": 1,
            "left_out": 2,
        }
        assert {(item["level"], item["logger"], item["attempt"], item["message"]) for item in items} == {
            ("info", "packhorse", 0, "enqueued in queue default, priority 5"),
            ("info", "packhorse", 1, "attempt 1 of 4 starts"),
            ("info", "shop", 1, "sold\n3"),
            ("warning", "shop", 1, "low stock"),
            ("error", "packhorse", 1, "attempt 1 ended: ValueError: no more"),
            ("error", "packhorse", 1, "the job has failed for good"),
        }
        assert items == sorted(items, key=lambda item: item["at"])

    asking(store, tmp_path, scenario)


def test_by_attempt_and_level(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        path = f"/api/v1/jobs/{await logged(api)}/log"
        grave = await api.done("GET", f"{path}?level=warning")
        assert [item["level"] for item in grave["items"]] == ["warning", "error", "error"]
        assert (await api.done("GET", f"{path}?attempt=2"))["items"] == []
        await api.refused("GET", f"{path}?level=loud", status=400)
        await api.refused("GET", f"{path}?attempt=0", status=400)

    asking("memory", tmp_path, scenario)


def test_an_answer_that_is_the_same_is_not_sent_again(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        path = f"/api/v1/jobs/{await logged(api)}/log"
        first = await api.get(path)
        assert (await api.get(path, headers={"If-None-Match": first.headers["etag"]})).status_code == 304

    asking("memory", tmp_path, scenario)


def test_c19_the_log_of_another_queues_job_is_not_there(tmp_path: Path) -> None:
    """For a token of some queues it does not exist."""
    ids: list[str] = []

    async def make(api: Api) -> None:
        ids.extend([await logged(api, "mine"), await logged(api, "theirs")])

    async def look(api: Api) -> None:
        assert (await api.done("GET", f"/api/v1/jobs/{ids[0]}/log"))["items"]
        await api.refused("GET", f"/api/v1/jobs/{ids[1]}/log", status=404)
        await api.refused("GET", "/api/v1/jobs/none/log", status=404)

    asking("sqlite", tmp_path, make)
    asking("sqlite", tmp_path, look, caller=Caller(name="one", role=Role.READ, queues=frozenset({"mine"})))


def test_c22_a_request_is_one_debug_line_that_names_the_route_and_no_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(api: Api) -> None:
        with caplog.at_level(logging.DEBUG, "packhorse.requests"):
            await api.refused("GET", "/api/v1/jobs/canary%0A2026/log", status=404)
        (line,) = [record for record in caplog.records if record.name == "packhorse.requests"]
        assert line.getMessage() == "GET /api/v1/jobs/{id}/log answers 404"
        assert line.__dict__["duration_ms"] > 0

    asking("memory", tmp_path, scenario)
