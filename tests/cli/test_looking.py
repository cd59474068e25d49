"""The reading commands: what they answer, and that looking changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import click
import pytest

from packhorse.admin import Admin
from packhorse.backends.base import Note, QueueChange, WorkerInfo
from packhorse.cli import looking, recent
from packhorse.cli.output import emit_table
from packhorse.errors import Unavailable
from packhorse.job import State

from .kit import Cli

JOB_FIELDS = (
    "id type queue state priority attempt max_attempts key tags meta payload result error errors progress "
    "progress_note cancel_requested unique after after_failed waiting_for "
    "workflow node schedule slot worker timeout_ms created_at due_at started_at finished_at"
)
WORKER_FIELDS = "id host pid queues types concurrency busy running started_at lease_left_ms version trouble"

READING = [
    ("stats",),
    ("health",),
    ("workers",),
    ("jobs", "list"),
    ("list-failed",),
    ("queues", "list"),
    ("jobs", "show", "01a20000-0000-7000-8000-000000000000"),
]


def register(cli: Cli, **fields: object) -> None:
    info = WorkerInfo(id="worker-1", host="box", pid=7, queues=("default",), types=("email",), concurrency=10)
    asyncio.run(cli.backend().heartbeat(info, 30_000))


# ---- stats, health, workers, queues ------------------------------------------------------------------------


def test_stats_counts_states_in_all_and_by_queue(cli: Cli) -> None:
    cli.fail(2)
    cli.add(3)
    cli.add(1, queue="slow", delay_ms=60_000)
    asyncio.run(cli.backend().queues([QueueChange(queue="slow", paused=True)]))
    shown = cli.json("stats")
    assert list(shown) == ["states", "queues"]
    assert shown["states"] == {str(state): 0 for state in State} | {"pending": 3, "scheduled": 1, "failed": 2}
    assert list(shown["queues"]) == ["default", "slow"]
    assert list(shown["queues"]["slow"]) == ["states", "oldest_pending_ms", "paused"]
    assert shown["queues"]["slow"]["paused"] is True
    assert shown["queues"]["slow"]["oldest_pending_ms"] is None
    assert shown["queues"]["default"]["oldest_pending_ms"] >= 0
    assert shown["queues"]["default"]["states"]["failed"] == 2


def test_stats_for_people_are_aligned_lines(cli: Cli) -> None:
    cli.add(12)
    cli.add(1, queue="a-long-queue-name")
    lines = cli("stats").stdout.splitlines()
    assert lines[0].split()[:2] == ["QUEUE", "WAITING"]
    column = lines[0].index("PENDING") + len("PENDING")
    assert [line[:column].rsplit(None, 1)[-1] for line in lines[1:]] == ["1", "12", "13"]


def test_the_heads_of_stats_are_whole_words_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    headers = ["queue", *map(str, State), "oldest", ""]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    emit_table(headers, [["default", *["0"] * len(State), "-", ""]], right=headers[1:-1])
    head = click.unstyle(capsys.readouterr().out.splitlines()[0])
    assert head.split() == headers[:-1]
    assert len(head) <= 80


def test_stats_elsewhere_than_on_a_terminal_has_the_counts_only(cli: Cli) -> None:
    cli.add(2)
    assert [line.split()[0] for line in cli("stats").stdout.splitlines()] == ["QUEUE", "default", "(all)"]


def test_the_newest_jobs_are_drawn_by_queue(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    cli.fail(3)
    cli.add(2)
    cli.add(1, queue="slow")
    found = asyncio.run(recent.read_recent(Admin(cli.backend())))
    assert found.jobs == 6
    moves = found.queues
    assert [len(moves["default"].came_ms), len(moves["default"].ended_ms), len(moves["default"].failed_ms)] == [5, 3, 3]
    assert [len(moves["slow"].came_ms), len(moves["slow"].ended_ms)] == [1, 0]
    recent.print_recent(found)
    _, head, names, default, slow = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"newest 6 jobs, \d+m?s", head)
    assert names.split() == ["QUEUE", "CAME", "JOBS", "ENDED", "JOBS", "FAILED", "JOBS"]
    assert default.split()[0] == "default"
    assert slow.split()[-1] == "0"


def test_at_most_two_thousand_jobs_are_looked_at(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.add(recent.JOBS_MAX + 500)
    assert asyncio.run(recent.read_recent(Admin(cli.backend()))).jobs == recent.JOBS_MAX
    monkeypatch.setattr(recent, "JOBS_MAX", 7)
    assert asyncio.run(recent.read_recent(Admin(cli.backend()))).jobs == 7


def test_a_store_without_jobs_has_nothing_recent(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    recent.print_recent(asyncio.run(recent.read_recent(Admin(cli.backend()))))
    assert capsys.readouterr().out == ""


def test_stats_watch_prints_again_and_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on while the store is away. The third pause is Ctrl+C."""
    cli.add(1)
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 1:
            monkeypatch.setattr(Admin, "stats", away)
        elif len(paused) == 3:
            raise KeyboardInterrupt

    async def away(self: Admin) -> None:
        raise Unavailable("the server cannot be reached")

    monkeypatch.setattr(looking, "_sleep", pause)
    result = cli("stats", "--watch", "2", code=130)
    assert paused == [2, 2, 2]
    assert result.stdout.count("default") == 1
    assert result.stderr.count("packhorse: warning: the server cannot be reached") == 2


def test_stats_watch_is_for_people(cli: Cli) -> None:
    assert "leave --watch out" in cli("stats", "--watch", "2", "--json", code=2).stderr
    cli("stats", "--watch", "0.1", code=2)


def test_health_of_a_store_that_answers(cli: Cli) -> None:
    register(cli)
    cli.add(2)
    shown = cli.json("health")
    assert list(shown) == ["status", "service", "version", "latency_ms", "workers", "pending", "problems"]
    assert (shown["status"], shown["service"], shown["workers"], shown["pending"]) == ("OK", "packhorse", 1, 2)
    assert shown["problems"] == []


def test_health_says_what_to_look_at(cli: Cli) -> None:
    cli.add(1, queue="a")
    cli.add(1, queue="b")
    asyncio.run(cli.backend().queues([QueueChange(queue="b", paused=True)]))
    unserved, paused = cli.json("health")["problems"]
    assert "packhorse worker APP -q a" in unserved
    assert "packhorse queues resume b" in paused
    assert unserved in cli("health").stdout


def test_workers(cli: Cli) -> None:
    assert cli.json("workers") == {"items": [], "next": None}
    assert "start one with" in cli("workers").stderr
    register(cli)
    cli.add(1)
    cli.start()
    (worker,) = cli.json("workers")["items"]
    assert " ".join(worker) == WORKER_FIELDS
    assert (worker["id"], worker["running"], worker["queues"]) == ("worker-1", 1, ["default"])
    assert "worker-1" in cli("workers").stdout


def test_queues_list_shows_queues_with_jobs_or_settings(cli: Cli) -> None:
    assert "no queues" in cli("queues", "list").stderr
    cli.add(2, queue="b")
    asyncio.run(cli.backend().queues([QueueChange(queue="a", paused=True)]))
    shown = cli.json("queues", "list")
    assert [(item["queue"], item["paused"], item["states"]["pending"]) for item in shown["items"]] == [
        ("a", True, 0),
        ("b", False, 2),
    ]
    assert shown["next"] is None
    assert cli("queues", "list").stdout.splitlines()[1].endswith("paused")


# ---- jobs --------------------------------------------------------------------------------------------------


def test_show_has_the_fields_of_a_job_and_no_others(cli: Cli) -> None:
    (job_id,) = cli.add(1, payload=b'{"to":"a"}', key="k", tags=("x", "y"), workflow="w", schedule="s", slot_at_ms=0)
    shown = cli.json("jobs", "show", job_id)
    assert " ".join(shown) == JOB_FIELDS
    assert (shown["payload"], shown["tags"], shown["slot"]) == ({"to": "a"}, ["x", "y"], "1970-01-01T00:00:00.000Z")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["created_at"])
    assert (shown["result"], shown["error"], shown["errors"], shown["finished_at"]) == (None, None, [], None)


def test_a_failed_job_shows_its_errors(cli: Cli) -> None:
    (job_id,) = cli.fail()
    shown = cli.json("jobs", "show", job_id)
    assert shown["error"] == "ValueError: no such address"
    assert shown["errors"] == [
        {
            "attempt": 1,
            "at": "2023-11-14T22:13:20.000Z",
            "kind": "ValueError",
            "message": "no such address",
            "traceback": "a\n  b",
        }
    ]
    lines = cli("jobs", "show", job_id).stdout.splitlines()
    assert "state         failed" in lines
    assert any("attempt 1 at 2023-11-14T22:13:20.000Z: ValueError: no such address" in line for line in lines)


def test_a_job_that_succeeded_shows_its_result_and_no_error(cli: Cli) -> None:
    cli.add()
    (job_id,) = cli.settle(State.SUCCEEDED, result=b'{"n":1}')
    shown = cli.json("jobs", "show", job_id)
    assert (shown["state"], shown["result"], shown["error"]) == ("succeeded", {"n": 1}, None)


def test_progress_is_a_number(cli: Cli) -> None:
    cli.add()
    ((job_id, token),) = cli.start()
    note = Note(id=job_id, token=token, progress=0.5)
    asyncio.run(cli.backend().heartbeat(WorkerInfo(id="worker-1"), 30_000, [note]))
    assert cli.json("jobs", "show", job_id)["progress"] == 0.5


@pytest.mark.parametrize("data", [b"\x80\x04garbage", b"", b"\xff" * 500, b"[" * 100_000, b'{"a": NaN}'])
def test_bytes_that_are_not_json_are_shown_and_keep_no_other_job_from_being_seen(cli: Cli, data: bytes) -> None:
    """B9."""
    bad, good = cli.add(1, payload=data)[0], cli.add(1)[0]
    shown = cli.json("jobs", "list")["items"]
    assert [job["id"] for job in shown] == [good, bad]
    undecodable = shown[1]["payload"]["undecodable"]
    assert undecodable.rstrip("…") == data[:64].hex()
    assert undecodable.endswith("…") == (len(data) > 64)
    cli("jobs", "show", bad)


def test_an_instant_past_the_year_9999_is_still_shown(cli: Cli) -> None:
    cli.add(1, delay_ms=10**15)
    assert cli.json("jobs", "list")["items"][0]["due_at"].endswith(" ms")


def test_list_pages_by_cursor_and_never_repeats(cli: Cli) -> None:
    ids = cli.add(7)
    seen, cursor = [], None
    while True:
        page = cli.json("jobs", "list", "--limit", "3", *(("--cursor", cursor) if cursor else ()))
        assert list(page) == ["items", "next"]
        seen += [job["id"] for job in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert [job["id"] for job in cli.json("jobs", "list", "--oldest-first")["items"]] == ids
    assert "add --cursor" in cli("jobs", "list", "--limit", "3").stderr


def test_list_filters(cli: Cli) -> None:
    (a,) = cli.add(1, queue="qa", type="ta", tags=("x",), key="k")
    (b,) = cli.fail(1, queue="qb")
    (c,) = cli.add(1, queue="qc", delay_ms=60_000)

    def found(*args: str) -> set[str]:
        return {job["id"] for job in cli.json("jobs", "list", *args)["items"]}

    assert found("--queue", "qa") == found("--type", "ta") == found("--tag", "x") == found("--key", "k") == {a}
    assert found("--state", "failed") == {b}
    assert found("--state", "failed", "--state", "scheduled") == found("--state", "failed,scheduled") == {b, c}
    assert found("--queue", "qa", "--state", "failed") == set()
    assert found("--created-before", "2020-01-01T00:00:00Z") == set()
    assert found("--created-from", "2020-01-01T00:00:00Z") == {a, b, c}


def test_an_empty_list_says_so_on_stderr(cli: Cli) -> None:
    result = cli("jobs", "list")
    assert (result.stdout, result.stderr) == ("", "no jobs match\n")


def test_list_failed_is_the_dead_letter_queue(cli: Cli) -> None:
    (failed,) = cli.fail(1, queue="q", type="t", tags=("x",), key="k")
    cli.add(2)
    assert [job["id"] for job in cli.json("list-failed")["items"]] == [failed]
    for args in (("--queue", "q"), ("--type", "t"), ("--tag", "x"), ("--key", "k")):
        assert [job["id"] for job in cli.json("list-failed", *args)["items"]] == [failed]
    assert cli.json("list-failed", "--type", "other")["items"] == []
    assert "ValueError: no such address" in cli("list-failed").stdout


def test_a_job_that_does_not_exist(cli: Cli) -> None:
    assert "no job" in cli("jobs", "show", "01a20000-0000-7000-8000-000000000000", code=1).stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--limit", "0"), "from 1 to 1000"),
        (("--limit", "1001"), "from 1 to 1000"),
        (("--limit", str(10**30)), "from 1 to 1000"),
        (("--limit", "-5"), "from 1 to 1000"),
        (("--limit", "1.5"), "--limit"),
        (("--state", "dead"), "must be one of waiting"),
        (("--state", "failed,"), "must be one of waiting"),
        (("--state", ""), "must be one of waiting"),
        (("--queue", ""), "cannot name a queue"),
        (("--type", "a b"), "cannot name a job type"),
        (("--tag", "*"), "cannot name a tag"),
        (("--key", ""), "key"),
        (("--cursor", "abc"), "not a cursor"),
        (("--cursor", ""), "not a cursor"),
        (("--cursor", "9" * 400), "not a cursor"),
        (("--created-from", "2030-01-31"), "no time zone"),
        (("--created-before", "now"), "not an instant"),
        (("extra",), "unexpected extra argument"),
    ],
)
def test_bad_values_of_list(cli: Cli, args: tuple[str, ...], says: str) -> None:
    """C6, C9."""
    assert says in cli("jobs", "list", *args, code=2).stderr


# ---- looking changes nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", READING)
def test_a_reading_command_does_not_make_a_sqlite_file(command: tuple[str, ...], cli: Cli, directory: Path) -> None:
    stderr = cli("--url", "sqlite:///gone.db", *command, code=2).stderr
    assert "there is no file gone.db" in stderr
    assert "packhorse migrate" in stderr
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("command", READING)
def test_url_before_or_after_the_command(command: tuple[str, ...], cli: Cli) -> None:
    for args in (("--url", "nowhere://x", *command), (*command, "--url", "nowhere://x")):
        assert "'nowhere://x' names no backend" in cli(*args, code=2).stderr
    assert cli.opened == 0


@pytest.mark.parametrize("command", READING[:-1])
def test_reading_commands_print_one_json_document_in_ascii(command: tuple[str, ...], cli: Cli) -> None:
    cli.fail(1, message="ü \x1b[31m\u202e\x7f")
    out = cli(*command, "--json").stdout
    json.loads(out)
    assert out.isascii()
    assert not set(out) & set("\x1b\x7f")
