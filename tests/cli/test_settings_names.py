"""The names of settings that REQUIREMENTS section C asks for, as the command line understands them."""

from __future__ import annotations

import pytest

from packhorse.settings import ALIASES, Settings, own_name
from packhorse.worker import keeper, launch

from .kit import Cli
from .reference import commands

OURS = (
    "URL STORE QUEUES CONCURRENCY PROCESSES MAX_ATTEMPTS LEASE SHUTDOWN_TIMEOUT POLL_INTERVAL LOG_LEVEL LOG_FORMAT "
    "HOST PORT TOKENS NAMESPACE CONFIG"
)
THEIRS = (
    "SERVER_PORT SERVER_HOST SERVER_READ_TIMEOUT SERVER_WRITE_TIMEOUT REDIS_URL REDIS_ADDR REDIS_PASSWORD REDIS_DB "
    "REDIS_TIMEOUT WORKER_CONCURRENCY WORKER_COUNT WORKERS WORKER_POLL_INTERVAL WORKER_MAX_RETRIES MAX_ATTEMPTS "
    "WORKER_SHUTDOWN_TIMEOUT BUFFER_SIZE TASKS LOG_LEVEL LOG_FORMAT"
)

#: Names that mean nothing before the part exists that they set. Whoever adds the part takes them out of here.
LATER = {
    "the Redis backend": "REDIS_ADDR REDIS_PASSWORD REDIS_DB REDIS_TIMEOUT",
}


def test_every_name_is_understood_or_waits_for_its_part() -> None:
    wanted = {f"PACKHORSE_{name}" for name in OURS.split()} | set(THEIRS.split())
    options = {param.envvar for _, command in commands() for param in command.params if param.envvar}
    understood = {own_name(field) for field in Settings.__struct_fields__} | set(ALIASES) | {"PACKHORSE_CONFIG"}
    later = {name for names in LATER.values() for name in names.split()}
    assert wanted == (understood | options) & wanted | later
    assert not later & understood, "it is understood now: take it out of LATER"


@pytest.mark.parametrize(
    ("name", "value", "setting", "read"),
    [
        ("PACKHORSE_QUEUES", "a, b", "queues", ("a", "b")),
        ("PACKHORSE_QUEUES", "a=6, b=1", "queues", ("a=6", "b=1")),
        ("BUFFER_SIZE", "100", "capacity", 100),
        ("WORKER_CONCURRENCY", "5", "concurrency", 5),
        ("WORKER_COUNT", "6", "concurrency", 6),
        ("WORKERS", "3", "concurrency", 3),
        ("WORKER_POLL_INTERVAL", "1s", "poll_interval_ms", 1000),
        ("WORKER_SHUTDOWN_TIMEOUT", "30s", "shutdown_timeout_ms", 30_000),
        ("SERVER_HOST", "localhost", "host", "localhost"),
        ("PACKHORSE_HOST", "[::1]", "host", "::1"),
        ("SERVER_PORT", "8080", "port", 8080),
        ("SERVER_READ_TIMEOUT", "10s", "read_timeout_ms", 10_000),
        ("SERVER_WRITE_TIMEOUT", "10s", "write_timeout_ms", 10_000),
        ("LOG_LEVEL", "INFO", "log_level", "info"),
        ("LOG_FORMAT", "console", "log_format", "console"),
    ],
)
def test_a_worker_takes_the_names_of_other_engines(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, setting: str, read: object
) -> None:
    from packhorse.settings import load

    told: list[keeper.KeeperOptions] = []
    monkeypatch.setattr(keeper, "run_keeper", lambda options, launched, endpoint: told.append(options))
    monkeypatch.setattr(launch, "launch", lambda: None)
    monkeypatch.setenv(name, value)
    assert cli("worker", "jobs").stderr == ""
    assert getattr(load(), setting) == read  # what the runners will read for themselves
    if setting.startswith("log_"):
        assert getattr(told[0], setting) == read


@pytest.mark.parametrize(
    ("environ", "runs"),
    [
        ({}, 4),
        ({"MAX_ATTEMPTS": "3"}, 3),
        ({"WORKER_MAX_RETRIES": "3"}, 4),
        ({"PACKHORSE_MAX_ATTEMPTS": "7", "MAX_ATTEMPTS": "7"}, 7),
    ],
)
def test_attempts_and_retries(cli: Cli, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], runs: int) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    job_id = cli.json("submit", "-t", "t")["id"]
    assert cli.json("jobs", "show", job_id)["max_attempts"] == runs
    job_id = cli.json("submit", "-t", "t", "--retries", "0")["id"]
    assert cli.json("jobs", "show", job_id)["max_attempts"] == 1


def test_two_names_that_disagree_warn_once_and_the_higher_wins(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("MAX_ATTEMPTS", "3")
    result = cli("submit", "-t", "t", "--id-only")
    assert result.stderr.count("warning") == 1
    assert "PACKHORSE_MAX_ATTEMPTS and MAX_ATTEMPTS disagree" in result.stderr
    assert cli("jobs", "show", result.stdout.strip(), "--json").stdout.count('"max_attempts": 2') == 1


def test_redis_url_names_a_store_of_lower_rank(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACKHORSE_URL")
    monkeypatch.setenv("REDIS_URL", "clitest://redis")
    cli("stats")
    monkeypatch.setenv("PACKHORSE_URL", "nowhere://x")
    assert "nowhere" in cli("stats", code=2).stderr
