"""`packhorse serve`: the process, from the first word to the exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from packhorse.server.net.limits import Limits
from scripts.servers import free_port

from .kit import Cli
from .serving import APP, Command, alive, stored, until

#: Read here: no test of the command line has settings of its surroundings.
FULL = os.environ.get("PACKHORSE_FULL") == "1"
TOKEN = "0123456789abcdefghijABCDEFGHIJ"

HELD = """
import os

@app.task(timeout=120)
async def held(file: str) -> str:
    while not os.path.exists(file):
        await asyncio.sleep(0.01)
    return "let go"
"""


@pytest.fixture
def jobs(directory: Path) -> Path:
    (directory / "jobs.py").write_text(APP)
    return directory


def listening_ports(pids: list[int]) -> set[tuple[str, int]]:
    """Answer where these processes listen, as the system says."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = entry.readlink().name
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, _, port = words[1].partition(":")
                found.add((address, int(port, 16)))
    return found


# ---- starting and stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_a_store_that_it_makes_and_ends_when_told(directory: Path, number: signal.Signals) -> None:
    with Command(directory, "serve", "--port", "0") as server:
        assert server.ask("/health")["status"] == "OK"
        job_id = server.submit("anything", x=1)
        assert server.job(job_id)["payload"] == {"x": 1}
        rss_mb = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / 1e6
        assert rss_mb < 80
        server.process.send_signal(number)
        assert server.end([]) == 0
    assert stored(directory, job_id).state == "pending"
    assert sorted(path.name for path in directory.glob("packhorse.db-*")) in (["packhorse.db-wake"], [])


def test_c1_c26_listens_on_the_loopback_only_and_its_worker_nowhere(jobs: Path) -> None:
    """C1, C26: one port of the server on 127.0.0.1, none of the keeper and its runners."""
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        port = server.port
        until(lambda: len(server.tree()) >= 2)
        until(lambda: "worker of" in server.output)
        assert listening_ports([server.process.pid]) == {("0100007F", port)}
        assert listening_ports([pid for pid, _ in server.tree()]) == set()
        assert server.stop() == 0


def test_with_worker_runs_the_jobs(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0", "-c", "2", "-q", "default,b") as server:
        job_id = server.submit("greet", name="you")
        assert server.wait_for(job_id, "succeeded")["result"] == "Hello you"
        workers = server.ask("/api/v1/workers")["items"]
        assert (workers[0]["concurrency"], workers[0]["queues"]) == (2, ["default", "b"])
        assert server.status_of("/api/v1/jobs", {"type": "greet", "payload": {"nome": "you"}})[0] == 422
        assert server.stop() == 0


def test_ctrl_c_lets_a_running_job_end_and_stops_all_once(jobs: Path) -> None:
    """Ctrl+C in a terminal: the worker hears of it once, so the job ends; the exit code is 0."""
    (jobs / "jobs.py").write_text(APP + HELD)
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        job_id = server.submit("held", file=str(jobs / "go"))
        server.wait_for(job_id, "running")
        tree = server.tree()
        server.interrupt()
        until(lambda: "running jobs have" in server.output)
        (jobs / "go").touch()
        assert server.end(tree) == 0
        assert "stopping now" not in server.output
    found = stored(jobs, job_id)
    assert (found.state, found.attempt) == ("succeeded", 1)


def test_ctrl_c_twice_gives_a_running_job_back(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        job_id = server.submit("slow", seconds=100)
        server.wait_for(job_id, "running")
        tree = server.tree()
        server.interrupt()
        until(lambda: "running jobs have" in server.output)
        server.interrupt()
        assert server.end(tree) == 0
    found = stored(jobs, job_id)
    assert (found.state, found.attempt) == ("pending", 0)


def test_a_request_that_is_being_answered_ends_before_the_server_does(jobs: Path) -> None:
    """A long poll is told to end at once; its answer still comes."""
    with Command(jobs, "serve", "jobs", "--port", "0") as server:
        job_id = server.submit("greet", name="you")
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as asker:
            asker.sendall(f"GET /api/v1/jobs/{job_id}/result?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            until(lambda: is_read(asker))
            assert server.stop(30) == 0  # before the 60 s that it would wait
            assert asker.recv(1_000).startswith(b"HTTP/1.1 2")


def is_read(client: socket.socket) -> bool:
    """Answer whether the server has taken this connection and read all that was sent, as the system says."""
    ours, theirs = (f":{address[1]:04X}" for address in (client.getsockname(), client.getpeername()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(theirs) and words[2].endswith(ours):
            return words[9] != "0" and words[4].endswith(":00000000")
    return False


def test_memory_and_its_worker_share_one_process(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0", "--url", "memory://") as server:
        job_id = server.submit("greet", name="you")
        assert server.wait_for(job_id, "succeeded")["result"] == "Hello you"
        assert server.tree() == []
        assert server.stop() == 0
    assert not list(jobs.glob("*.db"))


# ---- dying ---------------------------------------------------------------------------------------------


def test_kill_9_with_open_requests_leaves_nothing_that_stops_the_next_start(jobs: Path) -> None:
    port = free_port()  # one that nobody else gets while the server is away
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", str(port)) as server:
        job_id = server.submit("greet", name="you")
        server.wait_for(job_id, "succeeded")
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for one in held:
            one.sendall(f"GET /api/v1/jobs/{job_id}/result?wait=20 HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
        tree = server.tree()
        os.kill(server.process.pid, signal.SIGKILL)
        assert server.process.wait(60) == -signal.SIGKILL
        until(lambda: not any(alive(one) for one in tree))  # the worker saw it, and stopped
        with Command(jobs, "serve", "jobs", "--with-worker", "--port", str(port)) as again:
            assert again.job(job_id)["state"] == "succeeded"
            other_id = again.submit("greet", name="me")
            again.wait_for(other_id, "succeeded")
            assert again.stop() == 0
        for one in held:
            one.close()


def test_a_worker_that_is_killed_is_started_again(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        server.wait_for(server.submit("greet", name="you"), "succeeded")
        keeper = next(pid for pid, _ in server.tree() if b"leash" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(keeper, signal.SIGKILL)
        until(lambda: "the worker ended with exit code -9" in server.output)
        server.wait_for(server.submit("greet", name="me"), "succeeded")
        assert server.stop() == 0


def test_an_app_that_only_the_worker_cannot_start_ends_the_server_with_2(jobs: Path) -> None:
    (jobs / "jobs.py").write_text(
        APP + "\nif 'packhorse.worker.runner_process' in ' '.join(sys.orig_argv): raise RuntimeError('no GPU here')\n"
    )
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        assert server.process.wait(60) == 2
        assert "no GPU here" in server.output
        assert "so the server ends too" in server.output


def test_the_url_of_the_server_is_the_one_of_its_worker(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0", "--url", "sqlite:///other.db") as server:
        server.wait_for(server.submit("greet", name="you"), "succeeded")
        assert server.stop() == 0
    assert (jobs / "other.db").exists()
    assert not (jobs / "packhorse.db").exists()


@pytest.mark.parametrize("command", [("serve", "jobs", "--with-worker"), ("dev", "jobs")])
def test_c21_no_process_that_is_started_shows_the_password_of_the_url(jobs: Path, command: tuple[str, ...]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        url = f"redis://:s3cret-canary@127.0.0.1:{closed.getsockname()[1]}/0"
        with Command(jobs, *command, "--port", "0", "--url", url) as server:
            wanted = "runner_process"
            until(lambda: any(wanted in line for line in _command_lines(server)))
            assert not any("s3cret" in line for line in _command_lines(server))
            assert server.output.count("everyone on this machine can see the password") == 1
            assert "s3cret" not in server.output
            server.stop()


def _command_lines(server: Command) -> list[str]:
    """Answer how all that it started was called, as `ps` shows it."""
    lines = []
    for pid, _ in server.tree():
        with suppress(OSError):  # gone meanwhile
            lines.append(Path(f"/proc/{pid}/cmdline").read_text())
    return lines


def test_starts_while_the_store_is_away_and_says_so(directory: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        with Command(directory, "serve", "--port", "0", environ={"PACKHORSE_URL": url}) as server:
            assert server.status_of("/livez")[0] == 200
            assert server.status_of("/readyz")[0] == 503
            status, problem = server.status_of("/api/v1/jobs", {"type": "t", "payload": {}})
            assert (status, problem["type"]) == (503, "urn:packhorse:unavailable")
            assert server.stop() == 0


def test_a_store_of_another_version_ends_the_server_with_2(directory: Path) -> None:
    import sqlite3

    with sqlite3.connect(directory / "packhorse.db") as file:
        file.execute("CREATE TABLE somebody_elses (x)")
    with Command(directory, "serve", "--port", "0") as server:
        assert server.process.wait(60) == 2
        assert "the store cannot be used" in server.output


def test_c25_c32_other_protocols_get_an_answer_and_harm_nobody(directory: Path) -> None:
    """C25, C32: RESP, TLS and noise on the port of a real server."""
    with Command(directory, "serve", "--port", "0") as server:
        for data in (b"*1\r\n$4\r\nPING\r\n", bytes.fromhex("16030100f8010000f4"), b"\0" * 50, b"GET / HTTP/9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
                client.sendall(data)
                assert client.recv(1_000).startswith(b"HTTP/1.1 400 ")
        assert server.ask("/health")["status"] == "OK"
        assert server.stop() == 0


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "192.0.2.1", "0"])
def test_c1_no_address_that_others_reach_without_tokens(directory: Path, host: str) -> None:
    """C1: exit 2 with the reason and the remedy, before anything is bound."""
    error = Cli(None)("serve", "--host", host, "--port", "0", code=2).stderr  # type: ignore[arg-type]
    assert "no tokens" in error
    assert "packhorse tokens create" in error
    assert not list(directory.iterdir())


def test_c1_with_tokens_any_address_but_nobody_without_one(directory: Path) -> None:
    with Command(directory, "serve", "--host", "0.0.0.0", "--port", "0", environ={"PACKHORSE_TOKENS": TOKEN}) as server:
        assert server.status_of("/api/v1/jobs")[0] == 401
        assert server.ask("/api/v1/jobs", headers={"Authorization": f"Bearer {TOKEN}"})["items"] == []
        assert TOKEN not in server.output
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--with-worker",), "needs an APP"),
        (("-c", "3"), "add --with-worker"),
        (("--port", "http"), "must be a port"),
        (("--port", "65536"), "must be a port"),
        (("--port", "-1"), "must be a port"),
        (("--host", "a b"), "must be an address"),
        (("--host", "no-such-name.invalid"), "is no address"),
        (("jobs.py",), "is a file"),
        (("no_such_module",), "no module"),
        (("--url", "http://127.0.0.1:1"), "not another server"),
        (("--url", "nowhere://x"), "names no backend"),
        (("--shutdown-timeout", "soon"), "is not a duration"),
    ],
)
def test_wrong_use(directory: Path, args: tuple[str, ...], says: str) -> None:
    assert says in Cli(None)("serve", *args, code=2).stderr  # type: ignore[arg-type]


def test_an_app_that_cannot_be_imported_shows_where(directory: Path) -> None:
    (directory / "broken.py").write_text("import packhorse\nnonsense(\n")
    with Command(directory, "serve", "broken", "--port", "0") as server:
        assert server.process.wait(60) == 2
        assert 'broken.py", line 2' in server.output
        assert "packhorse: broken cannot be imported: SyntaxError" in server.output


def test_a_port_that_is_taken(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = Cli(None)("serve", "--port", port, code=2).stderr  # type: ignore[arg-type]
        assert f"port {port} of 127.0.0.1 is taken" in error
    assert not list(directory.iterdir())


# ---- settings ------------------------------------------------------------------------------------------


def test_settings_reach_the_server_by_all_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from packhorse.cli.serve import limits_of
    from packhorse.settings import load

    assert (load().host, load().port) == ("127.0.0.1", 8080)
    assert limits_of(load()) == Limits()
    for name, value in {
        "SERVER_HOST": "localhost",
        "SERVER_PORT": "8081",
        "SERVER_READ_TIMEOUT": "5s",
        "SERVER_WRITE_TIMEOUT": "10s",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert (settings.host, settings.port) == ("localhost", 8081)
    limits = limits_of(settings)
    assert (limits.head_ms, limits.body_ms, limits.write_ms) == (5_000, 5_000, 10_000)
    monkeypatch.setenv("PACKHORSE_PORT", "8082")
    with pytest.warns(UserWarning, match="PACKHORSE_PORT and SERVER_PORT disagree"):
        assert load().port == 8082


def test_settings_that_disagree_are_named_once_and_not_by_each_process(jobs: Path) -> None:
    environ = {"PACKHORSE_LOG_LEVEL": "info", "LOG_LEVEL": "debug"}
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0", environ=environ) as server:
        server.wait_for(server.submit("greet", name="you"), "succeeded")
        assert server.stop() == 0
        assert server.output.count("disagree") == 1


def test_the_environment_says_where_to_listen(directory: Path) -> None:
    with Command(directory, "serve", environ={"SERVER_HOST": "localhost", "SERVER_PORT": "0"}) as server:
        assert server.ask("/health")["status"] == "OK"
        assert server.stop() == 0


def test_c30_starting_speaks_to_nobody(directory: Path) -> None:
    """C30: no connection and no look-up of a name, from the import to the first answer."""
    (directory / "sitecustomize.py").write_text(
        "import sys\n"
        "def hear(event, args):\n"
        "    if event == 'socket.connect' or event == 'socket.getaddrinfo' and args[0] != '127.0.0.1':\n"
        "        print('HEARD', event, args, flush=True)\n"
        "sys.addaudithook(hear)\n"
    )
    with Command(directory, "serve", "--port", "0", environ={"PYTHONPATH": str(directory)}) as server:
        assert server.ask("/health")["status"] == "OK"
        assert server.stop() == 0
        assert "HEARD" not in server.output, server.output


def test_serves_ipv6(directory: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine speaks no IPv6")
    with Command(directory, "serve", "--host", "[::1]", "--port", "0") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.ask("/health")["status"] == "OK"
        assert server.stop() == 0


def test_json_logs_are_json_and_the_address_is_the_first_line_of_the_output(directory: Path) -> None:
    import subprocess

    from .kit import clean_environ

    process = subprocess.Popen(
        [sys.executable, "-m", "packhorse", "serve", "--port", "0", "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environ(),
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("packhorse serves http://127.0.0.1:")
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert all(json.loads(line)["level"] for line in err.splitlines())
    assert process.returncode == 0


def test_c15_thousands_of_idle_connections_and_a_slow_client_hold_up_nobody(directory: Path) -> None:
    """C15: the real server with its own limits; 10,000 at full size, of which the oldest make room."""
    import resource
    import time

    count = 10_000 if FULL else 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    with Command(directory, "serve", "--port", "0") as server:
        address = ("127.0.0.1", server.port)
        idle = [socket.create_connection(address, timeout=60) for _ in range(count)]
        slow = socket.create_connection(address, timeout=60)
        slow.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n{")
        try:
            took_s = []
            for _ in range(3):
                started = time.monotonic()
                assert server.ask("/health")["status"] == "OK"
                took_s.append(time.monotonic() - started)
            assert min(took_s) < 1  # a machine may stand still for longer, but not each time
            rss_mb = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / 1e6
            assert rss_mb < 80
        finally:
            for one in [*idle, slow]:
                one.close()
        assert server.stop() == 0
