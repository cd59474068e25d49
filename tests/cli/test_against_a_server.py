"""Every command of the table, against the URL of a server: it works, or says why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.backends.memory import MemoryStore
from packhorse.cli.main import COMMANDS
from packhorse.clock import SYSTEM_CLOCK
from tests.http.process import ServerProcess

from .kit import Cli, clean_environ

#: Commands that look at no store: nothing to ask of them here.
WITHOUT_A_STORE = {"demo", "version", "tokens"}
#: Long-running ones, which have tests of their own below or beside.
SERVERS = {"serve", "dev"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    with ServerProcess(directory, f"sqlite:///{directory / 'jobs.db'}") as started:
        yield started


@pytest.fixture
def cli(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PACKHORSE_URL", server.url)
    return Cli(MemoryStore(SYSTEM_CLOCK))  # whose own store nobody asks here


def submit(cli: Cli, *more: str) -> str:
    return cli.json("submit", "-t", "email", "-p", '{"to": "a@example.com"}', *more)["id"]


def test_jobs_are_submitted_looked_at_and_steered(cli: Cli) -> None:
    job_id = submit(cli, "--queue", "mail", "--priority", "high", "--in", "1h")
    assert cli.json("jobs", "show", job_id)["state"] == "scheduled"
    assert job_id in cli("jobs", "list", "--queue", "mail").stdout
    assert cli.json("jobs", "why", job_id)
    cli("jobs", "cancel", job_id)
    cli("jobs", "rerun", job_id)
    assert cli.json("jobs", "show", job_id)["state"] == "pending"
    cli("jobs", "cancel", job_id)
    cli("retry", job_id)
    cli("jobs", "delete", job_id)
    cli("jobs", "show", job_id, code=1)
    assert "mail" in cli("stats").stdout or cli.json("stats")["queues"] is not None
    assert cli.json("health")["status"]
    cli("workers")
    assert cli.json("top")["rates"]["in"] == 0
    cli("list-failed")
    cli("retry-all")
    submit(cli, "--queue", "old")
    cli("purge", "old", "--yes")


def test_a_job_tells_its_story_and_workers_are_looked_into_where_they_run(cli: Cli) -> None:
    job_id = submit(cli, "--queue", "told")
    assert "enqueued" in cli("logs", job_id).stdout
    assert cli.json("logs", job_id)["items"]
    cli("logs", "no-such-job", code=1)
    for command in ("stacks", "profile"):  # the server lists workers; this machine has to have one of them
        assert "no-such-worker" in cli(command, "no-such-worker", code=1).stderr
    cli("purge", "told", "--yes")


def test_queues_limits_schedules_and_workflows_are_steered(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("queues", "pause", "mail")
    assert cli.json("queues", "list")
    cli("queues", "resume", "mail")
    cli("queues", "capacity", "mail", "1")
    submit(cli, "--queue", "mail")
    monkeypatch.setenv("PACKHORSE_ENQUEUE_TIMEOUT", "50ms")
    full = cli("submit", "-t", "email", "-p", "{}", "--queue", "mail", code=1)
    assert "full" in full.stderr
    cli("purge", "mail", "--yes")
    cli("limits", "set", "email", "--rate", "5/s", "--concurrency", "3")
    assert cli.json("limits", "list")
    cli("limits", "show", "email")
    cli("limits", "clear", "email")
    cli("schedules", "add", "nightly", "-t", "report", "-p", "{}", "--cron", "0 3 * * *")
    cli("schedules", "pause", "nightly")
    cli("schedules", "resume", "nightly")
    cli("schedules", "run", "nightly")
    assert "nightly" in cli("schedules", "list").stdout
    cli("schedules", "remove", "nightly")
    cli("purge", "default", "--yes")
    cli("workflows", "list")
    cli("workflows", "show", "nothing", code=1)


def test_the_store_behind_is_examined_and_left_as_it_is(cli: Cli, server: ServerProcess) -> None:
    assert cli.json("migrate")["schema"] > 0
    diagnosis = cli.json("doctor")
    assert diagnosis["holds"]
    checks = {finding["check"]: finding for finding in diagnosis["findings"]}
    assert server.url in checks["server"]["value"]
    assert checks["opens"]["level"] == "ok"


def test_a_store_moves_into_a_server_and_out_again(cli: Cli, server: ServerProcess, tmp_path: Path) -> None:
    job_id = submit(cli, "--queue", "moved")
    file = f"sqlite:///{tmp_path / 'other.db'}"
    cli("move", "--from", server.url, "--to", file)
    cli("jobs", "show", job_id, code=1)
    cli("move", "--from", file, "--to", server.url)
    assert cli.json("jobs", "show", job_id)["state"] == "pending"
    cli("purge", "moved", "--yes")


def test_bench_measures_an_empty_store_and_refuses_another(cli: Cli, server: ServerProcess) -> None:
    submit(cli, "--queue", "precious")
    refused = cli("bench", "--backend", server.url, "--jobs", "1000", "--backlog", "0", code=2)
    assert "give the URL of an empty store" in refused.stderr
    cli("purge", "precious", "--yes")


def test_a_worker_runs_the_jobs_of_a_server(cli: Cli, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from packhorse import Packhorse\napp = Packhorse()\n\n@app.task('add')\nasync def add(a: int) -> int:\n"
        "    return a + 1\n"
    )
    ids = [cli.json("submit", "-t", "add", "-p", f'{{"a": {number}}}', "--queue", "w")["id"] for number in range(3)]
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", "worker", "shop", "--burst", "-q", "w", "--url", server.url],
        cwd=tmp_path,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [cli.json("jobs", "show", job_id)["result"] for job_id in ids] == [1, 2, 3]


# ---- what may be wrong with the URL --------------------------------------------------------------------------


def test_what_is_wrong_with_the_url_is_told_in_one_line(cli: Cli, server: ServerProcess) -> None:
    port = server.port
    for url, code, words in (
        ("http://127.0.0.1:1", 1, "is `packhorse serve` running there"),
        (f"http://127.0.0.1:{port}/nowhere", 2, "the path is not its own"),
        (f"https://127.0.0.1:{port}", 2, "does not speak TLS"),
        (f"http://127.0.0.1:{port}?nonsense=1", 2, "there is no parameter"),
        ("http://", 2, "names no server"),
    ):
        assert words in cli("--url", url, "stats", code=code).stderr, url


def test_tokens_are_told_apart_and_never_shown(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B40, C20, C21: a wrong token, one without the right, one in the URL."""
    reader, admin = "reader-canary-0123456789abcdef", "admin-canary-0123456789abcdefgh"
    tokens = {"PACKHORSE_TOKENS": f"read:{reader},admin:{admin}"}
    with ServerProcess(tmp_path, f"sqlite:///{tmp_path / 'guarded.db'}", **tokens) as guarded:
        monkeypatch.setenv("PACKHORSE_URL", guarded.url)
        assert "refuses the token" in cli("stats", code=2).stderr
        monkeypatch.setenv("PACKHORSE_TOKEN", "wrong-canary-0123456789abcdef")
        wrong = cli("stats", code=2)
        monkeypatch.setenv("PACKHORSE_TOKEN", reader)
        cli("stats")
        no_right = cli("submit", "-t", "email", "-p", "{}", code=1)
        assert "read" in no_right.stderr
        monkeypatch.setenv("PACKHORSE_TOKEN", admin)
        submit(cli)
        monkeypatch.delenv("PACKHORSE_TOKEN")
        in_url = cli("--url", guarded.url.replace("://", f"://{admin}@"), "stats")
        assert "everyone on this machine can see" in in_url.stderr
        doctor = cli("--url", guarded.url.replace("://", f"://:{admin}@"), "doctor")
        for said in (wrong, no_right, in_url, doctor):
            assert "canary" not in said.output


def test_every_command_is_asked_here() -> None:
    """A new command belongs into this file."""
    here = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f'"{name}"' not in here] == []
