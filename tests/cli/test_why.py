"""`packhorse jobs why`."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from packhorse import Packhorse
from packhorse.backends.base import WorkerInfo

from .kit import Cli


def test_why_says_what_holds_a_job_and_what_would_free_it(cli: Cli) -> None:
    (job_id,) = cli.add()
    cli("queues", "pause", "default")
    shown = cli.json("jobs", "why", job_id)
    assert (shown["id"], shown["type"], shown["queue"], shown["state"]) == (job_id, "email", "default", "pending")
    assert [cause["code"] for cause in shown["causes"]] == ["queue_paused", "no_worker"]
    assert shown["causes"][0] == {
        "code": "queue_paused",
        "text": "queue default is paused",
        "remedy": "resume it: packhorse queues resume default",
        "until": None,
        "jobs": [],
    }
    lines = cli("jobs", "why", job_id).stdout.splitlines()
    assert lines[0] == f"id      {job_id}"
    assert "why     queue default is paused" in lines
    assert "remedy  resume it: packhorse queues resume default" in lines


def test_an_instant_is_given_as_one(cli: Cli) -> None:
    asyncio.run(cli.backend().heartbeat(WorkerInfo(id="w", queues=("default",)), 30_000))
    (job_id,) = cli.add(delay_ms=3_600_000)
    (cause,) = cli.json("jobs", "why", job_id)["causes"]
    assert cause["code"] == "due"
    assert cause["until"] == cli.json("jobs", "show", job_id)["due_at"]


def test_no_such_job(cli: Cli) -> None:
    for job_id in ("01a20000-0000-7000-8000-000000000000", "a\0b", "../x"):
        assert "no job" in cli("jobs", "why", job_id, code=1).stderr


def test_an_error_cannot_play_tricks(cli: Cli) -> None:
    (job_id,) = cli.fail(message="\x1b[2Jgone\u202e")
    assert "\\x1b[2Jgone\\u202e" in cli("jobs", "why", job_id).stdout


def test_the_time_a_job_may_be_parked_is_the_setting(cli: Cli, monkeypatch) -> None:
    from packhorse.backends.base import Settlement
    from packhorse.job import State

    cli.add()
    ((job_id, token),) = cli.start()
    parking = Settlement(id=job_id, token=token, state=State.SCHEDULED, delay_ms=5_000, refund=True, park=True)
    asyncio.run(cli.backend().settle([parking]))
    monkeypatch.setenv("PACKHORSE_PARK", "2h")
    parked = next(cause for cause in cli.json("jobs", "why", job_id)["causes"] if cause["code"] == "parked")
    assert re.search(r"\(in (2h|1h59m)\)$", parked["text"])


def test_why_on_sqlite(cli: Cli, directory: Path) -> None:
    url = f"sqlite:///{directory}/jobs.db"
    cli("migrate", "--url", url)
    with Packhorse(url) as app:
        parent = app.enqueue("load", delay="1h")
        child = app.enqueue("report", after=[parent])
        first, second = app.enqueue("mail"), app.enqueue("mail")
        ended = app.enqueue("mail", unique="k")
        ended.cancel()
        holder = app.enqueue("mail", unique="k")
        codes = {job.id: [cause.code for cause in job.why()] for job in (parent, child, first, second, ended)}
    assert codes[parent.id] == ["due", "no_worker"]
    assert codes[child.id] == ["waiting_for_parents", "parent_held", "no_worker"]
    assert codes[first.id] == ["no_worker"]
    assert codes[second.id] == ["no_worker", "in_line"]
    assert codes[ended.id] == ["cancelled", "unique_conflict"]
    shown = cli.json("jobs", "why", ended.id, "--url", url)
    assert shown["causes"][1]["jobs"] == [holder.id]
