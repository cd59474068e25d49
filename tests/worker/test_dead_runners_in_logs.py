"""A job that takes its process with it is named in the worker's log: the process itself cannot say so any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from packhorse import Packhorse

_PROGRAM = """
import os
from packhorse import Packhorse
app = Packhorse()

@app.task(backoff="10ms")
async def poison():
    os._exit(7)
"""


def lines_of(tmp_path: Path, url: str) -> list[dict[str, Any]]:
    """Run a worker until nothing is left; answer its lines about jobs."""
    (tmp_path / "poison_app.py").write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", "worker", "poison_app", "--burst", "--log-format", "json"],
        cwd=tmp_path,
        env={**os.environ, "PACKHORSE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [msgspec.json.decode(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "packhorse.jobs"]


def test_a_poison_job_is_named_at_each_attempt_and_at_its_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Packhorse(url) as app:
        job = app.enqueue("poison", {}, max_attempts=2)
    again, final = lines_of(tmp_path, url)
    for line in (again, final):
        assert (line["job_id"], line["job_type"], line["queue"]) == (job.id, "poison", "default")
        assert line["error"] == "LeaseLapsed: its runner ended with exit code 7"
    assert (again["level"], again["attempt"]) == ("warning", 1)
    assert again["message"] == "job lost its process, attempt 1 of 2"
    assert (final["level"], final["attempt"]) == ("error", 2)
    assert final["message"] == "job failed for good with its process, attempt 2 of 2"
    assert again["worker"] != final["worker"]
