"""`packhorse logs`: a job's story, and what happened to the newest jobs."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest

from packhorse.backends.base import Note, Settlement, WorkerInfo
from packhorse.cli import logs as command
from packhorse.job import JobError, State
from packhorse.observe.job_log import AttemptLog, LogLine, name_of

from .kit import Cli


def log(cli: Cli, job: tuple[str, str], attempt: int, *lines: LogLine, left_out: int = 0) -> None:
    """Keep lines with a running job, as its worker does."""
    data = msgspec.json.encode(AttemptLog(attempt, left_out, list(lines)))
    note = Note(id=job[0], token=job[1], step=name_of(attempt), result=data)
    asyncio.run(cli.backend().heartbeat(WorkerInfo(id="worker-1"), 30_000, [note]))


def end(cli: Cli, job: tuple[str, str], state: State, error: str = "") -> None:
    now_ms = cli.store.clock.now_ms()
    found = JobError(attempt=1, at_ms=now_ms, kind="ValueError", message=error) if error else None
    settlement = Settlement(id=job[0], token=job[1], state=state, error=found)
    asyncio.run(cli.backend().settle([settlement]))


def a_story(cli: Cli) -> str:
    """A job that failed once and succeeded then."""
    (job_id,) = cli.add()
    now_ms = cli.store.clock.now_ms
    (job,) = cli.start()
    log(cli, job, 1, LogLine(now_ms(), "info", "shop", "begun"), LogLine(now_ms(), "debug", "shop", "detail"))
    end(cli, job, State.PENDING, "first\nfailure")
    (job,) = cli.start()
    log(cli, job, 2, LogLine(now_ms(), "warning", "shop", "again"), left_out=7)
    end(cli, job, State.SUCCEEDED)
    return job_id


def test_a_jobs_story_is_told_by_time(cli: Cli) -> None:
    job_id = a_story(cli)
    result = cli("logs", job_id)
    told = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert told[0] == "-   info    enqueued in queue default, priority 5"
    assert sorted(told[1:]) == sorted(
        [
            "#1  info    shop: begun",
            "#1  debug   shop: detail",
            "#1  warning attempt 1 ended: ValueError: first\\nfailure",
            "#2  info    attempt 2 of 4 starts",
            "#2  warning shop: again",
            "#2  info    the job has succeeded",
        ]
    )
    assert told.index("#1  info    shop: begun") < told.index("#2  warning shop: again")
    assert "7 lines that its runs logged are not kept" in result.stderr


def test_by_attempt_and_level(cli: Cli) -> None:
    job_id = a_story(cli)
    one = cli("logs", job_id, "--attempt", "1").stdout
    assert "begun" in one
    assert "again" not in one
    grave = [line.split(" ", 1)[1] for line in cli("logs", job_id, "--level", "warning").stdout.splitlines()]
    assert grave == ["#1  warning attempt 1 ended: ValueError: first\\nfailure", "#2  warning shop: again"]


def test_nothing_of_that_attempt_is_said_and_no_error(cli: Cli) -> None:
    done = cli("logs", a_story(cli), "--attempt", "99")
    assert done.stdout == ""
    assert "lines none is of that" in done.stderr


def test_as_json(cli: Cli) -> None:
    job_id = a_story(cli)
    found = cli.json("logs", job_id, "--attempt", "2")
    items = found.pop("items")
    assert found == {
        "id": job_id,
        "type": "email",
        "queue": "default",
        "state": "succeeded",
        "attempt": 2,
        "left_out": 7,
    }
    assert {"level": "warning", "logger": "shop", "attempt": 2, "message": "again"} in [
        {name: item[name] for name in ("level", "logger", "attempt", "message")} for item in items
    ]


def test_c22_no_line_forges_another(cli: Cli) -> None:
    cli.add()
    (job,) = cli.start()
    evil = "a\n2026-01-01T00:00:00.000Z -   error   paid\x1b]0;x\x07\u202e"
    log(cli, job, 1, LogLine(0, evil, evil, evil))
    lines = cli("logs", job[0]).stdout.splitlines()
    assert len(lines) == 3  # it was enqueued, it runs, it logged
    assert all(line.isprintable() for line in lines)
    assert cli.json("logs", job[0])["items"][0]["message"] == evil


def test_follow_goes_on_until_the_job_has_ended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line once, although every look finds all of them again."""
    cli.add()
    (job,) = cli.start()
    lines = [LogLine(n, "info", "shop", f"line {n}") for n in (1, 2, 2, 3)]
    log(cli, job, 1, *lines[:2])
    looks = iter([lambda: log(cli, job, 1, *lines), lambda: end(cli, job, State.SUCCEEDED)])

    pause, sleep = 0.0123, asyncio.sleep

    async def look_again(seconds: float, *result: Any) -> Any:
        if seconds != pause:
            return await sleep(seconds, *result)  # of somebody else in this process
        step = threading.Thread(target=next(looks))
        step.start()
        step.join()
        return None

    monkeypatch.setattr(command, "_LOOK_S", pause)
    monkeypatch.setattr(asyncio, "sleep", look_again)
    result = cli("logs", job[0], "--follow", "--level", "info")
    messages = [line.rpartition(" shop: ")[2] for line in result.stdout.splitlines() if " shop: " in line]
    assert messages == ["line 1", "line 2", "line 2", "line 3"]
    assert result.stdout.rstrip().endswith("the job has succeeded")


def test_follow_as_json_is_a_document_a_line(cli: Cli) -> None:
    job_id = a_story(cli)
    found = [json.loads(line) for line in cli("logs", job_id, "--follow", "--json").stdout.splitlines()]
    assert len(found) == 7
    assert all(set(line) == {"at", "level", "logger", "attempt", "message"} for line in found)


def test_the_newest_jobs(cli: Cli) -> None:
    first, second = cli.add(), cli.add(type="report")
    cli.settle(State.SUCCEEDED)
    lines = cli("logs").stdout.splitlines()
    assert len(lines) == 4
    assert any(line.endswith(f"[ENQUEUE] Job {first[0]} (email) queue: default priority: 5") for line in lines)
    assert any(line.endswith(f"[UPDATE] Job {first[0]} status: DONE") for line in lines)
    assert any(f"Job {second[0]} (report)" in line for line in lines)
    assert cli.json("logs") == lines
    assert cli("logs", "--limit", "1").stdout.splitlines() == lines[-1:]


def test_no_jobs_at_all(cli: Cli) -> None:
    result = cli("logs")
    assert result.stdout == ""
    assert "there are no jobs" in result.stderr
    assert cli.json("logs") == []


@pytest.mark.parametrize("args", [("--attempt", "1"), ("--level", "info")])
def test_what_is_about_one_job_needs_its_id(cli: Cli, args: Any) -> None:
    assert "give its ID" in cli("logs", *args, code=2).stderr


def test_a_job_that_is_not_there_is_an_error(cli: Cli) -> None:
    assert "no job" in cli("logs", "01890000-0000-7000-8000-000000000000", code=1).stderr
