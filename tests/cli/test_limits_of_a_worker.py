"""A real worker process: it declares its limits, and takes queues by weight."""

from __future__ import annotations

import json
from pathlib import Path

from .kit import process

URL = {"PACKHORSE_URL": "sqlite:///jobs.db"}

APP = """
from packhorse import Packhorse

app = Packhorse("sqlite:///jobs.db")

@app.task("slow", rate="100/m", burst=50, concurrency=2, concurrency_per_key=1)
async def slow() -> None:
    pass
"""


def run(*args: str) -> str:
    done = process(*args, environ=URL)
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


def test_a_worker_declares_its_limits_and_takes_all_queues(directory: Path) -> None:
    (directory / "jobs.py").write_text(APP)
    run("migrate")
    run("limits", "set", "slow", "--each-key", "--concurrency", "7")
    ids = [run("submit", "-t", "slow", "--queue", queue, "--id-only").strip() for queue in ("a", "b", "a", "b")]
    run("worker", "jobs", "-q", "a=6,b=1", "--burst")
    states = [json.loads(run("jobs", "show", job_id, "--json"))["state"] for job_id in ids]
    assert states == ["succeeded"] * 4
    whole, each = json.loads(run("limits", "list", "--json"))["items"]
    assert (whole["rate"], whole["burst"], whole["concurrency"], whole["source"]) == ("100/m", 50, 2, "code")
    assert (each["concurrency"], each["source"]) == (7, "operator")
