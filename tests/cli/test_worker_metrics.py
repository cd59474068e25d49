"""`packhorse worker --metrics` and `serve --with-worker`, as processes: one scrape shows what all runners did."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from packhorse import Packhorse
from tests.scraped import Scraped
from tests.standing_still import stop_between_writes

from .kit import Cli, process
from .serving import Command, alive, until
from .test_serve import listening_ports

TOKEN = "0123456789abcdefghijABCDEFGHIJ"

APP = """
import asyncio, os, sys, time
from packhorse import Packhorse

app = Packhorse()

@app.task
async def quick(n: int) -> int:
    return n

@app.task(max_attempts=3, timeout=60)
async def slow(file: str) -> int:
    open(file + "." + str(os.getpid()), "w").close()
    while not os.path.exists(file):
        await asyncio.sleep(0.01)
    return os.getpid()

@app.task(timeout=0)
async def blocks(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.01)
"""


@pytest.fixture
def jobs(directory: Path) -> Path:
    (directory / "jobs.py").write_text(APP)
    return directory


class Worker(Command):
    """A worker that answers metrics on a free port."""

    def __init__(self, directory: Path, *args: str, environ: dict[str, str] | None = None) -> None:
        super().__init__(directory, "worker", "jobs", "--metrics", "127.0.0.1:0", *args, environ=environ)

    @property
    def url(self) -> str:
        until(lambda: "metrics and health at http" in self.output or self.process.poll() is not None)
        assert "metrics and health at http" in self.output, self.output
        return self.output.partition("metrics and health at ")[2].split()[0].removesuffix("/metrics")

    def wait_until_ready(self) -> None:
        until(lambda: get(f"{self.url}/readyz")[0] == 200)


def get(url: str, **headers: str) -> tuple[int, str]:
    """Answer status and text of a URL."""
    try:
        with urlopen(Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(command: Command, **headers: str) -> Scraped:
    status, text = get(f"{command.url}/metrics", **headers)
    assert status == 200, text
    return Scraped(text)


def enqueue(directory: Path, *jobs: dict[str, Any]) -> None:
    with Packhorse(f"sqlite:///{directory / 'packhorse.db'}") as app:
        app.enqueue_many(jobs)


def until_total(command: Command, wanted: float, name: str, seconds: float = 60, **labels: str) -> None:
    until(lambda: scrape(command).total(name, **labels) == wanted, seconds)


def test_what_a_killed_runner_told_stays_and_what_it_held_is_recovered(jobs: Path) -> None:
    go = jobs / "go"
    with Worker(jobs, "-p", "2", "-c", "5", "--poll-interval", "100ms") as worker:
        worker.wait_until_ready()
        enqueue(jobs, *({"type": "quick", "payload": {"n": n}} for n in range(300)))
        until_total(worker, 300, "packhorse_jobs_completed_total", job_type="quick")
        enqueue(jobs, {"type": "slow", "payload": {"file": str(go)}})
        until(lambda: list(jobs.glob("go.*")))
        (marker,) = jobs.glob("go.*")
        os.kill(int(marker.suffix[1:]), signal.SIGKILL)  # a runner of this worker
        until_total(worker, 1, "packhorse_runners_lost_total", reason="died")
        until_total(worker, 1, "packhorse_jobs_recovered_total")
        go.touch()
        until_total(worker, 301, "packhorse_jobs_completed_total")
        until_total(worker, 10, "packhorse_worker_slots")  # of the two runners there are now
        found = scrape(worker)
        assert found.total("worker_jobs_processed_total", status="success") == 301
        until_total(worker, 1, "worker_jobs_processed_total", status="failure")  # the run that died with its process
        assert scrape(worker).total("packhorse_jobs_failed_total") == 0
        assert found.total("worker_job_duration_seconds_count", job_type="quick") == 300
        assert found.total("packhorse_runners_lost_total") == 1
        until_total(worker, 0, "packhorse_worker_busy")
        assert worker.stop() == 0


def test_one_scrape_of_a_server_shows_its_worker_too_and_goes_on_after_that_was_killed(jobs: Path) -> None:
    with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
        for number in range(5):
            server.wait_for(server.submit("quick", n=number), "succeeded")
        until_total(server, 5, "worker_jobs_processed_total", status="success")
        until_total(server, 5, "packhorse_jobs_completed_total", job_type="quick")  # what was not told dies with it
        until_total(server, 100, "packhorse_worker_slots")
        ours = server.tree()
        os.kill(next(pid for pid, _ in ours if "packhorse.leash" in command_line(pid)), signal.SIGKILL)
        until(lambda: not any(alive(one) for one in ours))  # its runner may still take a job, and tells nobody
        server.wait_for(server.submit("quick", n=5), "succeeded")
        until_total(server, 6, "worker_jobs_processed_total", status="success")
        until_total(server, 6, "packhorse_jobs_completed_total", job_type="quick")
        until_total(server, 6, "packhorse_jobs_enqueued_total", job_type="quick")
        until_total(server, 100, "packhorse_worker_slots")
        assert server.stop() == 0


def test_the_worker_beside_a_server_leaves_the_address_of_metrics_to_other_workers(jobs: Path) -> None:
    """Its server answers for it: at an address of its own its jobs would be counted twice, and it might be taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (jobs / "packhorse.toml").write_text(f'metrics = "127.0.0.1:{taken.getsockname()[1]}"')
        with Command(jobs, "serve", "jobs", "--with-worker", "--port", "0") as server:
            server.wait_for(server.submit("quick", n=1), "succeeded")
            until_total(server, 1, "packhorse_jobs_completed_total")
            assert server.stop() == 0


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_c26_a_worker_listens_nowhere_unless_it_is_told_to_and_then_on_the_loopback(jobs: Path) -> None:
    with Command(jobs, "worker", "jobs") as silent:
        until(lambda: " ready: " in silent.output)
        assert not listening_ports([silent.process.pid, *(pid for pid, _ in silent.tree())])
        assert silent.stop() == 0
    with Worker(jobs) as worker:
        worker.wait_until_ready()
        found = listening_ports([worker.process.pid, *(pid for pid, _ in worker.tree())])
        assert {address for address, _ in found} == {"0100007F"}
        assert worker.stop() == 0


def test_health_of_a_worker(jobs: Path) -> None:
    with Worker(jobs, "-p", "2") as worker:
        worker.wait_until_ready()
        well = ('"ready":2', '"status":"OK"', '"problems":[]')
        until(lambda: all(part in get(f"{worker.url}/health")[1] for part in well))
        until(lambda: get(f"{worker.url}/health")[0] == 200)
        assert get(f"{worker.url}/livez") == (200, '{"status":"OK","service":"packhorse"}')
        assert get(f"{worker.url}/jobs")[0] == 404
        assert get(f"{worker.url}/metrics", Host="evil.example")[0] == 403
        assert get(f"{worker.url}/metrics", Origin="https://evil.example")[0] == 403
        assert worker.stop() == 0


def test_a_worker_whose_store_is_away_lives_and_is_not_healthy(jobs: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        store = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        away(jobs, store)


def test_a_worker_is_busy_with_what_it_runs(jobs: Path) -> None:
    go = jobs / "go"
    with Worker(jobs, "-c", "2") as worker:
        worker.wait_until_ready()
        enqueue(jobs, *({"type": "slow", "payload": {"file": str(go)}} for _ in range(6)))
        until(lambda: len(list(jobs.glob("go.*"))) > 0)
        until(lambda: seen(jobs)["busy"] == 2)
        assert seen(jobs)["concurrency"] == 2
        go.touch()
        until_total(worker, 6, "packhorse_jobs_completed_total")
        until(lambda: seen(jobs)["busy"] == 0)
        assert worker.stop() == 0


def seen(directory: Path) -> Any:
    """Answer what `packhorse workers` shows of the only one."""
    (found,) = json.loads(run(directory, "workers", "--json").stdout)["items"]
    return found


def test_health_of_a_worker_names_runners_in_trouble_and_is_503_only_when_none_can_work(jobs: Path) -> None:
    with Worker(jobs, "-p", "2", environ={"PACKHORSE_BLOCKED": "200ms"}) as worker:
        worker.wait_until_ready()
        # On a machine that stands still for so long, any loop is blocked: what is shown is waited for.
        until(lambda: health(worker)["ready"] == 2 and health(worker)["trouble"] == [])
        enqueue(jobs, {"type": "blocks", "payload": {"file": str(jobs / "go")}})
        found: list[Any] = []

        def one_is_blocked() -> bool:
            found[:] = health(worker)["trouble"]
            return len(found) == 1 and "event loop blocked" in found[0]["trouble"] and "jobs.py" in found[0]["trouble"]

        until(one_is_blocked)
        assert list(found[0]) == ["id", "pid", "trouble"]
        until(lambda: get(f"{worker.url}/readyz")[0] == 200)  # a job runs there, and the other runner can take more
        (jobs / "go").touch()
        until(lambda: health(worker)["trouble"] == [])
        runners = [pid for pid, _ in worker.tree() if pid != worker.process.pid]

        def is_seen(stopped: list[int], **wanted: object) -> bool:
            said = health(worker)
            in_trouble = {one["pid"] for one in said["trouble"]}
            return in_trouble == set(stopped) and all(said[name] == value for name, value in wanted.items())

        stop_between_writes(runners[0], jobs / "packhorse.db")
        until(lambda: is_seen(runners[:1], ready=1, status="OK"))
        stop_between_writes(runners[1], jobs / "packhorse.db")
        until(lambda: is_seen(runners, ready=0, problems=["no runner is ready"]))
        assert get(f"{worker.url}/health")[0] == 503
        assert get(f"{worker.url}/livez")[0] == 200
        for pid in runners:
            os.kill(pid, signal.SIGCONT)
        until(lambda: get(f"{worker.url}/readyz")[0] == 200)
        assert worker.stop() == 0


def health(worker: Worker) -> Any:
    return json.loads(get(f"{worker.url}/health")[1])


def away(jobs: Path, store: str) -> None:
    with Worker(jobs, environ={"PACKHORSE_URL": store}) as worker:
        assert get(f"{worker.url}/livez")[0] == 200
        status, text = get(f"{worker.url}/health")
        assert status == 503
        assert "the store does not answer" in text
        assert "no runner is ready" in text
        assert get(f"{worker.url}/readyz")[0] == 503
        found = scrape(worker)
        assert found.total("packhorse_store_up") == 0
        assert found.has("worker_jobs_processed_total")
        assert found.has("packhorse_jobs_recovered_total")


def test_with_tokens_metrics_need_one_without_queues_and_health_none(jobs: Path) -> None:
    environ = {"PACKHORSE_TOKENS": f"read:{TOKEN},admin@mail:{TOKEN}x"}
    with Worker(jobs, environ=environ) as worker:
        worker.wait_until_ready()
        assert get(f"{worker.url}/metrics")[0] == 401
        status, text = get(f"{worker.url}/metrics", Authorization=f"Bearer {TOKEN}x")
        assert status == 403
        assert "metrics speak of all" in text
        until(lambda: scrape(worker, Authorization=f"Bearer {TOKEN}").total("packhorse_store_up") == 1)
        until(lambda: get(f"{worker.url}/health")[1] == '{"status":"OK","service":"packhorse"}')
        assert "runners" in get(f"{worker.url}/health", Authorization=f"Bearer {TOKEN}")[1]
        assert worker.stop() == 0


def test_what_cannot_be_is_refused_in_one_line_before_any_job_runs(jobs: Path) -> None:
    enqueue(jobs, {"type": "slow", "payload": {"file": str(jobs / "never")}})
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        refused = {
            taken: f"port {other.getsockname()[1]} of 127.0.0.1 is taken",
            "0.0.0.0:0": "lets other machines in, and there are no tokens",
            "127.0.0.1": "must be a port",
            "127.0.0.1:99999": "must be a port",
            "203.0.113.7:0": "lets other machines in",
        }
        for address, why in refused.items():
            done = run(jobs, "worker", "jobs", "--metrics", address)
            assert done.returncode == 2, (address, done.stderr)
            (line,) = done.stderr.splitlines()
            assert why in line
            assert "--host" not in line
    assert not list(jobs.glob("never.*"))


def test_an_address_in_the_apps_code_is_not_used_and_a_warning_says_so(jobs: Path) -> None:
    (jobs / "jobs.py").write_text(APP.replace("Packhorse()", "Packhorse(metrics='127.0.0.1:0')"))
    done = run(jobs, "worker", "jobs", "--burst")
    assert done.returncode == 0
    assert "metrics='127.0.0.1:0' in the app's code is not used" in done.stderr
    assert "PACKHORSE_METRICS" in done.stderr


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return process(*args, environ={}, cwd=directory)


def test_the_setting_asks_for_it_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded only then: a worker without it neither imports a server nor prometheus_client."""
    from packhorse.server import worker_endpoint
    from packhorse.worker import keeper, launch

    from .test_worker import CalledOff

    asked: list[object] = []
    monkeypatch.setattr(worker_endpoint, "WorkerEndpoint", lambda settings: settings.metrics)
    monkeypatch.setattr(keeper, "run_keeper", lambda options, launched, endpoint: asked.append(endpoint) or 0)
    monkeypatch.setattr(launch, "launch", CalledOff)
    cli("worker", "jobs")
    cli("worker", "jobs", "--metrics", "9091")
    monkeypatch.setenv("PACKHORSE_METRICS", "[::1]:9092")
    cli("worker", "jobs")
    assert asked == [None, "127.0.0.1:9091", "::1:9092"]
