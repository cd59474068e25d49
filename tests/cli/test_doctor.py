"""`packhorse doctor`: what the promise is worth on this server. It changes nothing; exit code 1 where a line fails."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from packhorse import doctor
from packhorse.backends.checkup import Checkup, Finding, Level, Line, clock_finding
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.backends.sqlite import checkup as sqlite_checkup
from packhorse.backends.sqlite.filing import parse_url
from packhorse.cli.main import root
from packhorse.errors import Unavailable

from .kit import Cli


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    asyncio.run(open_backend(url).migrate())
    return url


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(root, ["doctor", *args])
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.output
    return result.stdout


def levels(*args: str, code: int = 0) -> dict[str, str]:
    found = json.loads(run(*args, "--json", code=code))["findings"]
    return {each["check"]: each["level"] for each in found}


def test_a_good_file_keeps_the_promise(url: str) -> None:
    text = run(url)
    assert "survives a power cut" in text
    assert "broken" not in text
    found = json.loads(run("--url", url, "--json"))
    assert found["holds"] is True
    assert {line["holds"] for line in found["promise"].values()} == {True}
    assert list(found["promise"]) == ["acknowledged", "server_kill", "power_cut", "dead_worker", "order"]
    assert {"opens": "ok", "latency": "ok", "workers": "warn"}.items() <= levels(url).items()


def test_a_promise_that_does_not_hold_names_the_remedy_and_exits_with_1(url: str) -> None:
    result = CliRunner().invoke(root, ["doctor", f"{url}?synchronous=normal"])
    assert result.exit_code == 1
    assert result.stderr == "packhorse: the promise does not hold on this server: synchronous\n"
    assert "leave synchronous= out of the URL" in result.stdout
    assert "no: see synchronous" in result.stdout
    found = json.loads(run(f"{url}?synchronous=normal", "--json", code=1))
    assert found["promise"]["power_cut"] == {"says": "yes", "holds": False, "because": ["synchronous"]}
    assert found["promise"]["server_kill"]["holds"] is True


def test_another_journal_is_told_and_left_alone(url: str, tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "jobs.db")
    db.execute("PRAGMA journal_mode=DELETE")
    for _ in range(2):
        assert levels(url, code=1)["journal mode"] == "broken"
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()


def test_an_old_schema_a_new_one_and_another_programs_file(url: str, tmp_path: Path) -> None:
    for pragma, check, word in (
        ("user_version=1", "schema", "packhorse migrate"),
        ("user_version=99", "schema", "newer packhorse"),
        ("application_id=7", "opens", "another program"),
    ):
        with sqlite3.connect(tmp_path / "jobs.db") as db:
            db.execute(f"PRAGMA {pragma}")
        db.close()
        found = {each["check"]: each for each in json.loads(run(url, "--json", code=1))["findings"]}
        assert found[check]["level"] == "broken"
        assert word in found[check]["meaning"]


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    run(f"sqlite:///{tmp_path / 'none.db'}", code=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch(0o600)
    assert levels(f"sqlite:///{tmp_path / 'empty.db'}")["schema"] == "warn"
    assert (tmp_path / "empty.db").stat().st_size == 0
    missing = sqlite_checkup.checkup(parse_url(f"sqlite:///{tmp_path / 'none.db'}"))
    assert [finding.level for finding in missing.findings] == [Level.WARN]
    assert not missing.ready


@pytest.mark.parametrize(
    ("kind", "broken"),
    [("ext4", set()), ("nfs4", {Line.ACKNOWLEDGED, Line.SERVER_KILL, Line.POWER_CUT}), ("tmpfs", {Line.POWER_CUT})],
)
def test_the_file_system_is_the_one_that_holds_the_file(url: str, tmp_path: Path, kind: str, broken: set[Line]) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:1 / {tmp_path} rw shared:1 - {kind} server:/x rw\n"
        f"3 2 0:2 / {tmp_path}/other rw - proc none rw\n"
        f"4 1 0:3 / {str(tmp_path)[:-1]} rw - cifs //x rw\n"
        "a line that makes no sense\n"
    )
    found = sqlite_checkup.checkup(parse_url(url), str(mounts))
    finding = next(each for each in found.findings if each.check == "file system")
    assert finding.value == kind
    assert set(finding.breaks) == broken
    unreadable = sqlite_checkup.checkup(parse_url(url), str(tmp_path / "none"))
    assert next(each for each in unreadable.findings if each.check == "file system").value == "not known"


def test_open_permissions_a_full_disk_and_a_long_log_are_told(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs.db").chmod(0o644)
    assert levels(url)["permissions"] == "warn"
    monkeypatch.setattr(sqlite_checkup, "FREE_BYTES_WARN", 1 << 60)
    monkeypatch.setattr(sqlite_checkup, "WAL_BYTES_WARN", -1)
    found = levels(url)
    assert found["free disk space"] == "warn"
    assert found["write-ahead log"] == "warn"
    monkeypatch.setattr(sqlite_checkup, "FREE_BYTES_MIN", 1 << 60)
    assert levels(url, code=1)["free disk space"] == "broken"


def test_a_backend_that_says_nothing_promises_nothing(cli: Cli) -> None:
    found = cli.json("doctor", code=0)
    assert found["promise"]["server_kill"]["says"].startswith("not known")
    silent = doctor._diagnose(Checkup(), [])
    assert silent.holds
    assert not any(line.holds for line in silent.promise)
    run("memory://", code=2)


class Away(MemoryBackend):
    """A server that does not answer: to the check-up, or to the calls after it."""

    def __init__(self, at: str, error: Exception | None) -> None:
        super().__init__(MemoryStore())
        self.at, self.error = at, error

    async def _maybe(self, what: str) -> None:
        if what == self.at:
            if self.error is None:
                await asyncio.sleep(3600)
            else:
                raise self.error

    async def checkup(self) -> Checkup:
        await self._maybe("checkup")
        return await super().checkup()

    async def open(self) -> None:
        await self._maybe("open")

    async def workers(self):
        await self._maybe("workers")
        return await super().workers()


@pytest.mark.parametrize("at", ["checkup", "open", "workers"])
def test_a_server_that_does_not_answer_is_a_finding(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asyncio.run(doctor.examine(Away(at, Unavailable("no route; start it"))))
    assert [(each.check, each.meaning) for each in found.broken] == [("answers", "no route; start it")]
    if at == "checkup":
        assert {line.says for line in found.promise} == {"not known: the store does not answer"}
    monkeypatch.setattr(doctor, "TIMEOUT_MS", 50)
    found = asyncio.run(doctor.examine(Away(at, None)))
    assert [each.check for each in found.broken] == ["answers"]


def test_a_clock_is_off_only_by_what_the_round_trip_cannot_explain() -> None:
    assert clock_finding(1_000, 0, 2_000).level is Level.OK
    assert clock_finding(3_000, 0, 2_000).level is Level.OK
    assert clock_finding(3_001, 0, 2_000).level is Level.WARN
    assert "ahead" in clock_finding(3_601_000, 0, 1_000).value
    assert "behind" in clock_finding(0, 60_000, 60_001).value


def test_no_password_is_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Talkative(MemoryBackend):
        capabilities = msgspec.structs.replace(MemoryBackend.capabilities, shared=True)

        async def checkup(self) -> Checkup:
            return Checkup(findings=(Finding(check="x", value="pw-4711", meaning="pw-4711", remedy="pw-4711"),))

    from packhorse.backends import opening

    monkeypatch.setitem(opening._registered, "talkative", lambda url, clock: Talkative(MemoryStore()))
    monkeypatch.setenv("PACKHORSE_URL", "talkative://u:pw-4711@h/")
    assert "4711" not in cli("doctor").output
    assert "4711" not in cli("doctor", "--json").output
