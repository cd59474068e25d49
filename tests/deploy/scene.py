"""A shop on a bad day: a real server and worker, and whatever can go wrong with jobs, under a real Prometheus.

main    a server that wants tokens, a worker of two runners, jobs of every fate
away    a server whose store, a Redis, is killed and comes back
gone    a worker that is not there
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import yaml

from scripts.servers import free_port

from ..cli.serving import Command, alive
from ..servers import Private, PrivatePrometheus, needed
from ..standing_still import stop_between_writes
from .files import PROMETHEUS

LOST = "packhorse_runners_lost_total"
TOKEN = "scraping-and-steering-0123456789"

APP = """
import asyncio, os, time
from packhorse import Context, Packhorse, Retry, Snooze

app = Packhorse()

# All have a time-out: a runner that is blocked for longer than the longest of what it holds is wedged.
@app.task(timeout="1s")
async def quick(n: int = 0) -> int:
    await asyncio.sleep(0.01)
    return n

@app.task(timeout="1s", max_attempts=1)
async def broken() -> None:
    raise ValueError("no such address")

@app.task(timeout="1s")
async def flaky(ctx: Context) -> None:
    if ctx.attempt == 1:
        raise Retry(0.1)

@app.task(timeout="1s")
async def sleepy(ctx: Context) -> None:
    if not os.path.exists(f"slept-{ctx.job.id}"):
        open(f"slept-{ctx.job.id}", "w").close()
        raise Snooze(0.1)

@app.task(timeout="1s", rate="1/s")
async def limited() -> None: ...

@app.task(timeout="1s", max_attempts=3)
async def poison() -> None:
    os._exit(3)

@app.task(timeout="1s", max_attempts=1)
async def blocking(seconds: float) -> None:
    time.sleep(seconds)

@app.task(timeout="100s")
async def held(ctx: Context) -> None:
    if ctx.attempt == 1:
        with open("held", "w") as file:
            file.write(str(os.getpid()))
        await asyncio.sleep(90)

@app.schedule(every="1s")
@app.task(timeout="1s")
async def heartbeat() -> None: ...
"""


class Scene:
    """The processes, and what they are asked and told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._parts = ExitStack()
        self._private = Private()
        (directory / "shop.py").write_text(APP)
        self._store = f"sqlite:///{directory / 'jobs.db'}"
        self._commands: list[Command] = []
        self._began = time.time()

    def seconds(self) -> int:
        """How long it has been going on: on a slow machine no fixed stretch of time holds all of it."""
        return int(time.time() - self._began) + 1

    def start(self) -> None:
        """Start all processes and have Prometheus look at them every second."""
        for program in ("prometheus", "redis-server"):
            needed(program)
        self.server = self._command("serve", "shop:app", "--port", "0", PACKHORSE_TOKENS=f"admin:{TOKEN}")
        self.redis = self._private.redis()
        self.away = self._command("serve", "--port", "0", PACKHORSE_URL=self.redis.url)
        port = free_port()
        self.worker_url = f"http://127.0.0.1:{port}"
        options = ["-p", "2", "-c", "20", "--lease", "2s", "-q", "default,other-work,resting"]
        nobody = f"http://127.0.0.1:{free_port()}"  # traces lead from here; where to is for the tests of tracing
        self.worker = self._command(
            "worker", "shop:app", "--metrics", f"127.0.0.1:{port}", *options, PACKHORSE_TRACING=nobody
        )
        self.until("the worker is ready", lambda: b" ready: " in self.worker.log.read_bytes())
        targets = {
            "packhorse-server": [(self.server.port, "main"), (self.away.port, "away")],
            "packhorse-worker": [(port, "main"), (free_port(), "gone")],
        }
        self.prometheus = self._look(targets)
        self.until("all are scraped", lambda: len(self.query("up == 1")) == 3)
        self.until("both stores answer", lambda: self.value("sum(packhorse_store_up)") == 3)

    def _command(self, *args: str, **environ: str) -> Command:
        """Start a command of packhorse; each has a directory for its output."""
        directory = self.directory / f"{args[0]}-{len(list(self.directory.iterdir()))}"
        directory.mkdir()
        named = {"PACKHORSE_URL": self._store, "PYTHONPATH": str(self.directory), **environ}
        self._commands.append(self._parts.enter_context(Command(directory, *args, environ=named)))
        return self._commands[-1]

    def _look(self, targets: dict[str, list[tuple[int, str]]]) -> PrivatePrometheus:
        """Start Prometheus with the configuration of deploy/, but for where the targets are and how often it looks."""
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            job["static_configs"] = [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"store": store}}
                for port, store in targets[job["job_name"]]
            ]
            job["authorization"] = {"credentials_file": "packhorse-token"}
        files = {name: (PROMETHEUS / name).read_text() for name in config["rule_files"]}
        return self._private.prometheus(yaml.safe_dump(config), {**files, "packhorse-token": TOKEN})

    def close(self) -> None:
        """End all that was started; a runner that is wedged or stopped does not go by itself."""
        self._private.close()
        for command in self._commands:
            for one in command.tree():
                if alive(one):
                    with suppress(ProcessLookupError):
                        os.kill(one[0], signal.SIGKILL)
        self._parts.close()

    # ---- what happens ------------------------------------------------------------------------------------

    def play(self) -> None:
        """Let it all happen; comes back when the last of it is over and was scraped."""
        self.redis.stop_hard()
        refused = {"type": "quick", "payload": {"n": 1}, "idempotency_key": "once"}
        self.post("/api/v1/jobs", refused)
        assert self.post("/api/v1/jobs", {**refused, "payload": {"n": 2}}) == 409
        self._enqueue("quick", 100, payload={"n": 1})
        self._enqueue("quick", 20, payload={"n": 2}, queue="other-work")
        self._enqueue("broken", 40)
        self._enqueue("flaky", 5)
        self._enqueue("sleepy", 3)
        self._enqueue("limited", 20)
        self._enqueue("quick", 3, payload={"n": 3}, queue="lonely")
        self._enqueue("never-heard-of", 2)
        assert self.post("/api/v1/queues/resting/pause") < 300
        self._enqueue("quick", 2, payload={"n": 4}, queue="resting")
        self._cancel_one()
        self._lose_a_lease()
        self.until("the store is away", lambda: self.history('ALERTS{alertname="PackhorseStoreDown"}'))
        self._ask_in_vain()
        self._enqueue("poison", 1)
        self.until("the poison job is spent", lambda: self.value(f"sum({LOST}{{reason='died'}})") >= 3)
        self._ask_in_vain()
        self._enqueue("blocking", 1, payload={"seconds": 60})
        self._enqueue("quick", 50, payload={"n": 5})
        self.redis.start()
        killed = 'ALERTS{alertname="PackhorseRunnerKilled", alertstate="firing"}'
        self.until("the wedged runner is killed, and Prometheus says so", lambda: self.history(killed))
        self.until("the store is back", lambda: self.value('packhorse_store_up{store="away"}') == 1)

    def _enqueue(self, job_type: str, count: int, **options: Any) -> None:
        jobs = [{"type": job_type, **options} for _ in range(count)]
        assert self.post("/api/v1/jobs/batch", {"jobs": jobs}) < 300

    def _cancel_one(self) -> None:
        job = self.ask("/api/v1/jobs", {"type": "quick", "payload": {"n": 6}, "delay": "1h"})
        assert self.post(f"/api/v1/jobs/{job['id']}/cancel") < 300

    def _lose_a_lease(self) -> None:
        """Stop a runner for longer than its lease: others go on with its job, and its run is stopped when it wakes."""
        self._enqueue("held", 1)
        told = self.worker.directory / "held"
        self.until("the job runs", lambda: told.exists() and told.read_text())
        pid = int(told.read_text())
        assert pid in {one for one, _ in self.worker.tree()}
        stop_between_writes(pid, self.directory / "jobs.db")
        try:
            self.until("its job was taken back", lambda: self.value("sum(packhorse_jobs_recovered_total)") >= 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.until("the run was stopped", lambda: self.value("sum(packhorse_leases_lost_total)") >= 1)

    def _ask_in_vain(self) -> None:
        assert self.away.status_of("/api/v1/jobs")[0] == 503

    # ---- asking --------------------------------------------------------------------------------------------

    def ask(self, path: str, body: Any = None) -> Any:
        return self.server.ask(path, body, {"Authorization": f"Bearer {TOKEN}"})

    def post(self, path: str, body: Any = None) -> int:
        return self.server.status_of(path, body or {}, {"Authorization": f"Bearer {TOKEN}"})[0]

    def exposed(self, url: str) -> bytes:
        """Answer the metrics of a process, as they are scraped."""
        with urlopen(Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}), timeout=30) as answer:
            return answer.read()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Ask Prometheus, as Grafana does. Raises AssertionError with its words where it refuses."""
        return self.api("query", query=expr)["result"]

    def value(self, expr: str) -> float:
        """Answer the one value of an expression; 0 where there is none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else 0.0

    def history(self, expr: str) -> list[dict[str, Any]]:
        """Ask for all the time since the beginning, as panels do."""
        return self.api("query_range", query=expr, start=str(self._began), end=str(time.time()), step="1")["result"]

    def told(self, alerts: str) -> set[str]:
        """Answer the names of alerts that there were, such as `ALERTS{store="main"}`."""
        return {one["metric"]["alertname"] for one in self.history(alerts)}

    def exemplars(self, expr: str) -> list[dict[str, Any]]:
        return self.api("query_exemplars", query=expr, start=str(self._began), end=str(time.time()))

    def api(self, what: str, **parameters: str) -> Any:
        """Ask Prometheus' HTTP API; answers the data."""
        body = urlencode(parameters).encode() if parameters else None
        asked = Request(f"{self.prometheus.url}/api/v1/{what}", body)
        try:
            with urlopen(asked, timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 100) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.outputs()}"
            time.sleep(0.1)

    def outputs(self) -> str:
        logs = sorted(self.directory.glob("*/output.log"))
        return "\n".join(f"--- {log.parent.name}\n{log.read_text()[-3000:]}" for log in logs)
