"""`packhorse schedules …`, and `submit` with `recurring`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from packhorse.backends import opening
from packhorse.backends.base import Schedule, ScheduleChange
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.cli.main import root
from packhorse.cli.schedules import SCHEDULES
from packhorse.clock import SYSTEM_CLOCK
from packhorse.job import JobSpec
from packhorse.schedule import make_schedule

from .kit import Cli, SharedMemory, clean_environ, process

#: All that a schedule shows, so that nothing is forgotten or renamed.
FIELDS = {
    *("name", "type", "payload", "queue", "priority", "max_attempts", "timeout_ms", "key", "tags", "source", "paused"),
    *("cron", "every_ms", "tz", "missed", "overlap", "jitter_ms", "next", "done_until"),
}


class SharedSchedules(SharedMemory):
    """A memory backend with all it can do, that passes for one that other processes reach."""

    capabilities = replace(MemoryBackend.capabilities, shared=True)


class SchedulesCli(Cli):
    def backend(self) -> SharedMemory:
        self.opened += 1
        return SharedSchedules(self.store)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    found = SchedulesCli(MemoryStore(SYSTEM_CLOCK))
    monkeypatch.setitem(opening._registered, "clitest", lambda url, clock: found.backend())
    monkeypatch.setenv("PACKHORSE_URL", "clitest://store")
    return found


def stored(cli: Cli) -> dict[str, Schedule]:
    return {one.name: one for one in asyncio.run(cli.backend().schedules())}


def jobs(cli: Cli) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli.json("jobs", "list")["items"]
    return found


# ---- add, show, list -------------------------------------------------------------------------------------


def test_add_by_expression(cli: Cli) -> None:
    done = cli.json(
        *["schedules", "add", "report", "-t", "make-report", "-p", '{"to": "a"}', "--cron", "0 9 * * mon-fri"],
        *["--tz", "Europe/Paris", "--missed", "all", "--overlap", "skip", "--jitter", "5s", "-q", "mail"],
        *["--priority", "high", "--max-attempts", "2", "--timeout", "5m", "--key", "k", "--tag", "a", "--tag", "b"],
    )
    assert set(done) == FIELDS | {"answer"}
    assert done.pop("answer") == "added"
    shown = cli.json("schedules", "show", "report")
    assert shown == done
    assert {name: shown[name] for name in FIELDS - {"next", "done_until"}} == {
        "name": "report",
        "type": "make-report",
        "payload": {"to": "a"},
        "queue": "mail",
        "priority": 2,
        "max_attempts": 2,
        "timeout_ms": 300_000,
        "key": "k",
        "tags": ["a", "b"],
        "cron": "0 9 * * mon-fri",
        "every_ms": None,
        "tz": "Europe/Paris",
        "missed": "all",
        "overlap": "skip",
        "jitter_ms": 5_000,
        "source": "",
        "paused": False,
    }
    assert shown["next"].endswith(("T07:00:00.000Z", "T08:00:00.000Z"))
    assert cli.json("schedules", "list") == {"items": [shown], "next": None}


def test_add_by_interval_and_what_people_see(cli: Cli) -> None:
    said = cli("schedules", "add", "ping", "-t", "ping", "--every", "30s").stdout
    assert said.startswith("schedule ping added; next at 20")
    cli("schedules", "add", "nightly", "-t", "clean", "--cron", "@daily", "--tz", "Asia/Tokyo", "--paused")
    table = cli("schedules", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "TYPE", "WHEN", "NEXT", "LOCAL", "SOURCE"]
    assert table[1].split()[:3] == ["nightly", "clean", "@daily"]
    assert table[1].endswith("paused")
    assert "every 30s" in table[2]
    fields = dict(line.split(maxsplit=1) for line in cli("schedules", "show", "nightly").stdout.splitlines())
    assert fields["state"] == "paused"
    assert fields["next"] == "-"
    cli("schedules", "resume", "nightly")
    fields = dict(line.split(maxsplit=1) for line in cli("schedules", "show", "nightly").stdout.splitlines())
    assert fields["next"].endswith("T15:00:00.000Z")
    assert fields["local"].endswith("00:00:00+09:00 Asia/Tokyo")


def test_adding_again_says_what_came_of_it(cli: Cli) -> None:
    words = ["schedules", "add", "ping", "-t", "ping", "--every", "30s"]
    assert cli.json(*words)["answer"] == "added"
    assert cli.json(*words)["answer"] == "unchanged"
    assert cli.json(*words, "--jitter", "1s")["answer"] == "changed"
    assert stored(cli)["ping"].revision == 2


def test_an_empty_list_says_how_to_begin(cli: Cli) -> None:
    assert "schedules add" in cli("schedules", "list").stderr
    assert cli.json("schedules", "list") == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--cron", "0 0 30 2 *"], "cron"),
        (["--cron", "* * *"], "five fields"),
        (["--cron", "@daily", "--tz", "Mars/Olympus"], "IANA"),
        (["--cron", "@daily", "--every", "5s"], "--cron EXPR or --every"),
        ([], "--cron EXPR or --every"),
        (["--every", "10ms"], "1s to 366d"),
        (["--every", "1d", "--tz", "Europe/Paris"], "use cron"),
        (["--every", "5s", "--missed", "some"], "skip, latest, all"),
        (["--every", "5s", "--priority", "11"], "priority"),
        (["--every", "5s", "-p", "{"], "not JSON"),
    ],
)
def test_what_cannot_work_is_a_mistake_in_usage(cli: Cli, words: list[str], remedy: str) -> None:
    code = 1 if "-p" in words else 2
    assert remedy in cli("schedules", "add", "s", "-t", "t", *words, code=code).stderr
    assert stored(cli) == {}


@pytest.mark.parametrize("name", ["a b", "", "é", "x" * 129])
def test_names_are_checked(cli: Cli, name: str) -> None:
    assert "name a schedule" in cli("schedules", "add", name, "-t", "t", "--every", "5s", code=2).stderr


def test_a_schedule_of_code_is_not_changed_by_hand(cli: Cli) -> None:
    made = make_schedule("report", JobSpec(id="", type="report"), every="1h", source="app:jobs")
    asyncio.run(cli.backend().schedules([ScheduleChange(name="report", define=made)]))
    assert "'jobs'" in cli("schedules", "add", "report", "-t", "report", "--every", "5s", code=2).stderr
    assert stored(cli)["report"].every_ms == 3_600_000
    assert "app:jobs" in cli("schedules", "list").stdout


def test_a_zone_that_is_not_known_here_hides_nothing(cli: Cli) -> None:
    """As another machine may have defined it, with newer time zones."""
    elsewhere = Schedule(name="far", spec=JobSpec(id="", type="t"), cron="@daily", tz="Mars/Olympus")
    asyncio.run(cli.backend().schedules([ScheduleChange(name="far", define=elsewhere)]))
    cli("schedules", "add", "near", "-t", "t", "--every", "1h")
    items = cli.json("schedules", "list")["items"]
    assert [(one["name"], one["tz"]) for one in items] == [("far", "Mars/Olympus"), ("near", "UTC")]
    assert items[0]["next"] is None
    assert "Mars/Olympus is not known here" in cli("schedules", "list").stdout
    assert "Mars/Olympus is not known here" in cli("schedules", "show", "far").stdout


# ---- pause, resume, remove, run --------------------------------------------------------------------------


def test_pause_resume_and_remove(cli: Cli) -> None:
    for name in ("a", "b"):
        cli("schedules", "add", name, "-t", "t", "--every", "1h")
    assert cli.json("schedules", "pause", "a", "b", "a") == {
        "items": [{"name": "a", "paused": True}, {"name": "b", "paused": True}],
        "next": None,
    }
    assert [one.paused for one in stored(cli).values()] == [True, True]
    assert cli("schedules", "resume", "b").stdout == "resumed b\n"
    assert [one.paused for one in stored(cli).values()] == [True, False]
    assert cli.json("schedules", "remove", "a")["items"] == [{"name": "a", "removed": True}]
    assert list(stored(cli)) == ["b"]


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "remove", "run", "next"])
def test_one_that_is_not_there(cli: Cli, verb: str) -> None:
    cli("schedules", "add", "there", "-t", "t", "--every", "1h")
    names = ["there", "gone"] if verb in {"pause", "resume", "remove"} else ["gone"]
    assert "schedules list" in cli("schedules", verb, *names, code=1).stderr
    assert not stored(cli)["there"].paused  # all or none


def test_run_enqueues_one_job_and_leaves_the_slots_alone(cli: Cli) -> None:
    cli("schedules", "add", "s", "-t", "work", "-p", '{"n": 1}', "--every", "1h")
    before = stored(cli)
    answer = cli.json("schedules", "run", "s")
    assert answer["created"]
    assert stored(cli) == before
    (job,) = jobs(cli)
    assert (job["id"], job["type"], job["payload"], job["state"]) == (answer["id"], "work", {"n": 1}, "pending")
    assert (job["schedule"], job["slot"]) == ("s", None)
    assert cli("schedules", "run", "s").stdout.endswith(" enqueued\n")


def test_run_keeps_to_overlap_skip(cli: Cli) -> None:
    cli("schedules", "add", "s", "-t", "work", "--every", "1h", "--overlap", "skip")
    first = cli.json("schedules", "run", "s")
    assert cli.json("schedules", "run", "s") == {"id": first["id"], "created": False}
    assert "nothing was added" in cli("schedules", "run", "s").stdout


# ---- next ------------------------------------------------------------------------------------------------


def test_next_of_an_expression_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACKHORSE_URL", raising=False)
    words = ["schedules", "next", "30 2 * * *", "--tz", "Europe/Berlin", "-n", "3", "--from", "2026-03-27T12:00:00Z"]
    found = json.loads(CliRunner().invoke(root, [*words, "--json"]).stdout)
    assert found == {
        "items": [
            {"at": "2026-03-28T01:30:00.000Z", "local": "2026-03-28T02:30:00+01:00"},
            {"at": "2026-03-29T01:00:00.000Z", "local": "2026-03-29T03:00:00+02:00"},
            {"at": "2026-03-30T00:30:00.000Z", "local": "2026-03-30T02:30:00+02:00"},
        ],
        "next": None,
    }
    lines = CliRunner().invoke(root, words).stdout.splitlines()
    assert lines[0].split() == ["AT", "LOCAL"]
    assert lines[2].split() == ["2026-03-29T01:00:00.000Z", "2026-03-29", "03:00:00+02:00", "Europe/Berlin"]
    assert list(Path().iterdir()) == []


def test_next_of_a_schedule_by_its_name(cli: Cli) -> None:
    cli("schedules", "add", "s", "-t", "t", "--cron", "0 9 * * *", "--tz", "Asia/Tokyo")
    found = cli.json("schedules", "next", "s", "-n", "2", "--from", "2026-01-01T00:00:00Z")["items"]
    assert [one["at"] for one in found] == ["2026-01-02T00:00:00.000Z", "2026-01-03T00:00:00.000Z"]
    assert len(cli.json("schedules", "next", "@hourly")["items"]) == 5


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["0 0 30 2 *"], "cron"),
        (["* * * * *", "-n", "0"], "1 to 1000"),
        (["* * * * *", "-n", "1001"], "1 to 1000"),
        (["* * * * *", "--from", "tomorrow"], "--from"),
        (["* * * * *", "--from", "2026-01-01T00:00:00"], "time zone"),
        (["* * * * *", "--tz", "Nowhere"], "IANA"),
        (["a-name", "--tz", "UTC"], "its own zone"),
    ],
)
def test_next_of_what_cannot_be_read(cli: Cli, words: list[str], remedy: str) -> None:
    assert remedy in cli("schedules", "next", *words, code=2).stderr


def test_next_at_the_end_of_the_calendar(cli: Cli) -> None:
    words = ["schedules", "next", "@yearly", "--from", "9999-12-31T00:00:00Z"]
    assert "eight years" in cli(*words).stderr
    assert cli.json(*words)["items"] == []


# ---- submit ----------------------------------------------------------------------------------------------


def test_a_job_that_recurs_becomes_a_schedule(cli: Cli) -> None:
    document = {"type": "email", "payload": {"to": "a"}, "queue": "mail", "recurring": {"cron_expression": "0 0 * * *"}}
    assert cli.json("submit", json.dumps(document)) == {"schedule": "email", "answer": "added"}
    made = stored(cli)["email"]
    assert (made.cron, made.spec.queue, made.spec.payload) == ("0 0 * * *", "mail", b'{"to":"a"}')
    assert jobs(cli) == []
    document["recurring"] = {"every": "5s", "name": "often"}
    assert cli("enqueue", json.dumps(document), "--id-only").stdout == "often\n"
    assert cli("enqueue", json.dumps(document)).stdout == "schedule often unchanged\n"
    document["recurring"] = {"cron_expression": "0 0 30 2 *"}
    assert "cron" in cli("submit", json.dumps(document), code=2).stderr
    document["recurring"] = {"cron_expression": "@daily"}
    for name, value in (("at", "2030-01-01T00:00:00Z"), ("delay", "5s"), ("idempotency_key", "k")):
        assert "leave" in cli("submit", json.dumps({**document, name: value}), code=2).stderr
    document["recurring"] = {"when": "daily"}
    assert "cron_expression" in cli("submit", json.dumps(document), code=2).stderr


# ---- on a real store -------------------------------------------------------------------------------------


def test_all_verbs_on_a_file_by_processes_of_their_own(tmp_path: Path) -> None:
    environ = {**clean_environ(), "PACKHORSE_URL": f"sqlite:///{tmp_path / 'jobs.db'}"}

    def call(*words: str) -> Any:
        done = process(*words, "--json", environ=environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    call("migrate")
    assert call("schedules", "add", "s", "-t", "work", "--every", "1h", "--overlap", "skip")["answer"] == "added"
    assert call("schedules", "pause", "s")["items"] == [{"name": "s", "paused": True}]
    assert call("schedules", "show", "s")["paused"]
    call("schedules", "resume", "s")
    job_id = call("schedules", "run", "s")["id"]
    assert call("jobs", "show", job_id)["schedule"] == "s"
    assert len(call("schedules", "next", "s", "-n", "3")["items"]) == 3
    call("schedules", "remove", "s")
    assert call("schedules", "list")["items"] == []


def test_a_worker_whose_schedule_cannot_work_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from packhorse import Packhorse\n"
        "app = Packhorse()\n"
        "@app.schedule('@daily')\n"
        "@app.task\n"
        "def work(n: int) -> None: ...\n"
    )
    environ = {**clean_environ(), "PACKHORSE_URL": f"sqlite:///{tmp_path / 'jobs.db'}"}
    done = process("worker", "bad:app", environ=environ, cwd=tmp_path)
    assert done.returncode == 2
    assert "InvalidPayload" in done.stderr


# ---- help ------------------------------------------------------------------------------------------------


def test_every_verb_is_in_the_help() -> None:
    shown = CliRunner().invoke(root, ["schedules", "--help"]).stdout
    for name in SCHEDULES:
        assert f"  {name} " in shown
