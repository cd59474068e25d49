"""How commands end badly: exit codes, one line, no secrets, and names that play tricks."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from packhorse.admin import Admin
from packhorse.backends.opening import secrets_of
from packhorse.cli.main import root
from packhorse.cli.output import age, plain
from packhorse.errors import NotFound, QueueFull, SchemaMismatch, Unavailable

from .kit import Cli

SECRET = "c4n4ry-s3cret"

HOSTILE = [
    "' OR '1'='1",
    "x'; DROP TABLE jobs; --",
    '" OR ""="',
    "1 UNION SELECT payload FROM jobs",
    "q%",
    "q\\",
    "../../etc/passwd",
    "..%2f..%2fx",
    "/absolute",
    "*",
    ">",
    "a.*",
    "{}",
    "{tag}",
    "a b",
    "a\0b",
    "a\r\nDEL everything",
    "a\n2026-01-01 INFO paid",
    "\x1b]0;owned\x07",
    "\u202egnp.exe",
    "١٢٣",
    "x" * 129,
    "\ud800",
    "",
]


# ---- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("the server went away; start it"), 1),
        (NotFound("no such thing"), 1),
        (QueueFull("q", 10), 1),
        (SchemaMismatch(1, 2, "run packhorse migrate"), 2),
        (RuntimeError("a bug\nin two lines"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
    ],
)
def test_what_a_backend_raises_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(self: Admin) -> None:
        raise error

    monkeypatch.setattr(Admin, "stats", fail)
    stderr = cli("stats", code=code).stderr
    assert plain(error) in stderr
    assert ("PACKHORSE_DEBUG=1" in stderr) == isinstance(error, RuntimeError | OSError)


def test_debug_shows_where(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Admin) -> None:
        raise RuntimeError(f"a bug with {SECRET}")

    monkeypatch.setattr(Admin, "stats", fail)
    monkeypatch.setenv("PACKHORSE_DEBUG", "1")
    monkeypatch.setenv("PACKHORSE_URL", f"clitest://user:{SECRET}@host/")
    result = CliRunner().invoke(root, ["stats"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert SECRET not in result.stderr


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_ctrl_c_and_a_closed_pipe_say_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def fail(self: Admin) -> None:
        raise error

    monkeypatch.setattr(Admin, "stats", fail)
    result = cli("stats", code=code)
    assert result.output.strip() == ""


def test_health_of_a_store_that_cannot_be_opened(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: object) -> None:
        raise Unavailable(f"no answer from user:{SECRET}@host")

    monkeypatch.setattr("packhorse.backends.memory.MemoryBackend.open", fail)
    monkeypatch.setenv("PACKHORSE_URL", f"clitest://user:{SECRET}@host/")
    shown = cli.json("health", code=1)
    assert shown["status"] == "UNAVAILABLE"
    assert SECRET not in json.dumps(shown)
    assert "no answer from user:***@host" in cli("health", code=1).stderr


@pytest.mark.parametrize(
    "args",
    [
        ("jobs",),
        ("queues",),
        (),
    ],
)
def test_a_group_without_a_command_shows_its_help(cli: Cli, args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(root, list(args))
    assert result.exit_code == 2
    assert "Commands:" in result.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sbmit",), "did you mean submit?"),
        (("jobs", "lst"), "did you mean list?"),
        (("xyzzy",), "there is no command 'xyzzy'"),
        (("--nope",), "No such option"),
        (("stats", "--nope"), "No such option"),
        (("stats", "extra"), "unexpected extra argument"),
        (("stats", "--url"), "requires an argument"),
        (("jobs", "show"), "Missing argument 'ID'"),
        (("migrate", "x"), "unexpected extra argument"),
        (("version", "x"), "unexpected extra argument"),
        (("health", "--limit", "3"), "No such option"),
        (("workers", "x"), "unexpected extra argument"),
    ],
)
def test_wrong_usage(cli: Cli, args: tuple[str, ...], says: str) -> None:
    stderr = cli(*args, code=2).stderr
    assert says in stderr
    assert "--help" in stderr


# ---- the URL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("stats",), ("submit", "-t", "t"), ("migrate",), ("worker", "jobs:app")])
def test_memory_is_refused_with_the_remedy(command: tuple[str, ...], cli: Cli) -> None:
    stderr = cli(*command, "--url", "memory://", code=2).stderr
    assert "live inside one process" in stderr
    assert "--url sqlite:///" in stderr


@pytest.mark.parametrize("url", ["", "x", "nowhere://h", "sqlite://", "sqlite:///", "http://[bad", "://", "a\0b"])
def test_a_url_that_names_no_store(cli: Cli, url: str) -> None:
    cli("stats", "--url", url, code=2)
    cli("submit", "-t", "t", "--url", url, code=2)


def test_a_password_on_the_command_line_warns_and_is_never_shown(cli: Cli) -> None:
    """C21, B40, C20."""
    result = cli("--url", f"nowhere://me:{SECRET}@host/db", "stats", code=2)
    assert "ps shows it" in result.stderr
    assert "PACKHORSE_URL" in result.stderr
    assert "me:***@host" in result.stderr
    assert SECRET not in result.output


def test_a_password_in_the_environment_does_not_warn_and_is_never_shown(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKHORSE_URL", f"nowhere://me:{SECRET}@host/db")
    result = cli("stats", code=2)
    assert "warning" not in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("postgresql://me:p%40ss@host/db", {"p%40ss", "p@ss"}),
        ("redis://:secret@host", {"secret"}),
        ("amqp://me:a@b:c@host/x?y=z@w", {"a@b:c", "a@b:c@host/x?y=z"}),
        ("postgresql://host/db?user=me&password=secret", {"secret"}),
        ("postgresql://me@host/db", set()),
        ("sqlite:///a:b@c.db", set()),
        ("redis://host:6379/0", set()),
    ],
)
def test_secrets_of_urls(url: str, secrets: set[str]) -> None:
    assert secrets_of(url) == secrets


def test_a_warning_of_the_settings_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", "3")
    monkeypatch.setenv("PACKHORSE_CONCURRENCY", "4")
    assert cli("stats").stderr == (
        "packhorse: warning: PACKHORSE_CONCURRENCY and WORKERS disagree; PACKHORSE_CONCURRENCY is used\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PACKHORSE_CONCURRENCY", "many", "PACKHORSE_CONCURRENCY"),
        ("PACKHORSE_LEASE", "soon", "PACKHORSE_LEASE"),
        ("PACKHORSE_CONFIG", "gone.toml", "gone.toml"),
        ("PACKHORSE_LOG_FORMAT", "xml", "PACKHORSE_LOG_FORMAT"),
    ],
)
def test_a_setting_that_cannot_be_read(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    assert says in cli("stats", code=2).stderr


def test_the_configuration_file_names_the_store(cli: Cli, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.delenv("PACKHORSE_URL")
    (directory / "packhorse.toml").write_text('url = "clitest://store"\n')
    cli.add(2)
    assert cli.json("stats")["states"]["pending"] == 2


# ---- hostile text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused_everywhere_and_reach_no_store(cli: Cli, text: str) -> None:
    """C9, C10: one rule, before anything is opened."""
    ids = cli.add(1)
    cli.opened = 0
    for args in (
        ("jobs", "list", "--queue", text),
        ("jobs", "list", "--type", text),
        ("jobs", "list", "--tag", text),
        ("jobs", "list", "--state", text),
        ("list-failed", "--queue", text),
        ("list-failed", "--type", text),
        ("retry-all", "--type", text),
        ("retry-all", "--tag", text),
        ("jobs", "cancel", "--queue", text, "--yes"),
        ("jobs", "delete", "--tag", text, "--yes"),
        ("jobs", "rerun", "--type", text, "--yes"),
        ("submit", "-t", text),
        ("submit", "-t", "t", "--queue", text),
        ("submit", "-t", "t", "--tag", text),
    ):
        cli(*args, code=2)
    assert cli.opened == 0
    for args in (("purge", "--yes", "--", text), ("queues", "pause", "--", text), ("queues", "resume", "--", text)):
        cli(*args, code=2)
    assert cli.states(ids) == ["pending"]
    assert list(cli.store.settings) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_id_is_a_job_that_does_not_exist(cli: Cli, text: str) -> None:
    ids = cli.add(1)
    for command in (("jobs", "show"), ("jobs", "cancel"), ("jobs", "rerun"), ("jobs", "delete"), ("retry",)):
        cli(*command, "--", text, code=1)
    assert cli.states(ids) == ["pending"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_cursor_or_instant(cli: Cli, text: str) -> None:
    cli.add(2)
    cli("jobs", "list", "--cursor", text, code=2)
    cli("jobs", "list", "--created-from", text, code=2)
    cli("submit", "-t", "t", "--at", text, code=2)
    cli("submit", "-t", "t", "--in", text, code=2)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text and text.isprintable() and len(text) < 129])
def test_free_text_is_kept_as_it_is_and_matches_only_itself(cli: Cli, text: str) -> None:
    """C9: keys and payloads may hold anything printable; a filter by key is no pattern."""
    cli.add(3, key="other")
    payload = json.dumps({"text": text})
    job_id = cli.json("submit", "-t", "t", "-p", payload, "--key", text, "--unique", text)["id"]
    (job,) = cli.json("jobs", "list", "--key", text)["items"]
    assert (job["id"], job["key"], job["unique"], job["payload"]) == (job_id, text, text, {"text": text})


def test_what_the_store_holds_cannot_play_tricks_on_a_terminal(cli: Cli) -> None:
    """C22: names and errors that no front door would have let in."""
    evil = "a\n2026 INFO paid\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\0[bold]x[/bold]"
    cli.add(1, type=evil, queue="q")
    (job_id,) = cli.fail(
        1, message=evil, type=evil, queue="r", tags=(evil,), key=evil, payload=json.dumps(evil).encode()
    )
    asyncio.run(cli.backend().claim(["none"], 1, 30_000, evil))
    for args in (
        ("jobs", "list"),
        ("jobs", "show", job_id),
        ("list-failed",),
        ("workers",),
        ("stats",),
        ("queues", "list"),
        ("health",),
    ):
        result = cli(*args)
        for char in "\x1b\x07\u202e\x9b\0":
            assert char not in result.output
        assert "\n2026 INFO paid" not in result.output
        json.loads(cli(*args, "--json").stdout)
    assert r"a\n2026 INFO paid\x1b]0;owned" in cli("jobs", "list").stdout
    lines = cli("list-failed").stdout.splitlines()
    assert len(lines) == 2


def test_plain() -> None:
    assert plain("ü ok [x]") == "ü ok [x]"
    assert plain("a\tb\nc\rd\x00e\x7f\x9b\u200b\u2028\U000e0001\ud800") == (
        r"a\tb\nc\rd\x00e\x7f\x9b\u200b\u2028\U000e0001\ud800"
    )


def test_age() -> None:
    assert [age(ms) for ms in (None, 0, 999, 1000, 59_999, 60_000, 192_000, 7_500_000, 86_400_000, 90_000_000)] == (
        ["-", "0ms", "999ms", "1s", "59s", "1m", "3m12s", "2h5m", "1d", "1d1h"]
    )
