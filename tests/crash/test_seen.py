"""The four bad days, as whoever is woken at night sees them: in the log, in the metrics, in `packhorse top`.

That the alert for each fires is shown by deploy/prometheus/tests/bad_days.yml.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.scraped import Scraped

from .harness import Lab, Worker


class Night:
    """A worker with its metrics, its log lines as JSON, and what `top` shows of its store."""

    def __init__(self, directory: Path, url: str = "") -> None:
        self.lab = Lab(directory, url)
        self.worker: Worker = self.lab.worker("--metrics", "127.0.0.1:0", "--log-format", "json", "--lease", "30s")
        self.until(lambda: self._address() is not None, "the worker says where its metrics are")

    def _address(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:\d+/metrics", self.worker.output.read_text())
        return None if found is None else found[0]

    def metrics(self) -> Scraped:
        with urlopen(self._address() or "", timeout=10) as answer:
            return Scraped(answer.read().decode())

    def log(self) -> list[dict[str, Any]]:
        """All whole lines: each must be JSON."""
        return [json.loads(line) for line in self.worker.output.read_text().splitlines(True) if line.endswith("\n")]

    def said(self, words: str, **fields: str) -> bool:
        return any(
            re.search(words, line["message"]) and all(line.get(name) == value for name, value in fields.items())
            for line in self.log()
        )

    def top(self) -> dict[str, Any]:
        """What `packhorse top` shows, once."""
        shown = self.ask("top", "--once", "--json", "--interval", "1s")
        assert shown.returncode == 0, shown.stderr
        found: dict[str, Any] = json.loads(shown.stdout)
        return found

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "packhorse", *arguments, "--url", self.lab.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.lab.directory, check=False)

    def until(self, condition: Callable[[], bool], what: str, limit: float = 60) -> None:
        self.lab.until(condition, limit, what)


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    night = Night(tmp_path)
    try:
        yield night
    finally:
        night.lab.close()


def test_a_blocked_loop_is_seen(night: Night) -> None:
    go = night.lab.directory / "go"
    (job,) = night.lab.enqueue("sleep_badly", payload={"ms": 200_000, "go": str(go)})
    night.until(lambda: night.said(r"event loop has been blocked .*crashapp\.py:\d+ sleep_badly", job_id=job), "a line")
    night.until(lambda: night.metrics().total("packhorse_loop_blocked_total") >= 1, "the metric")
    night.until(lambda: any("blocked" in (worker["trouble"] or "") for worker in night.top()["workers"]), "`top`")
    night.until(lambda: night.metrics().total("packhorse_workers", state="trouble") == 1, "the gauge")
    go.touch()
    night.until(lambda: night.said("event loop turns again"), "the end of it")


def test_a_wedged_runner_is_seen(night: Night) -> None:
    (job,) = night.lab.enqueue("match_badly", max_attempts=1, timeout="1s")
    night.until(lambda: night.said(r"blocked", level="warning"), "a line")
    night.until(lambda: night.said(r"was killed: its event loop was blocked", level="error"), "the kill")
    night.until(lambda: night.metrics().total("packhorse_runners_lost_total", reason="killed") == 1, "the metric")
    night.until(lambda: night.lab.all_ended([job]), "the job ends")
    (failure,) = [failure for failure in night.top()["failures"] if failure["id"] == job]
    assert "event loop was blocked" in failure["error"]
    assert "match_badly" in failure["error"]


def test_a_poison_job_is_seen(night: Night) -> None:
    (job,) = night.lab.enqueue("die", payload={"how": "exit"}, max_attempts=3)
    night.until(lambda: night.lab.all_ended([job]), "the job ends")
    night.until(lambda: night.metrics().total("packhorse_runners_lost_total", reason="died") == 3, "its runners die")
    night.until(lambda: night.metrics().total("packhorse_jobs_recovered_total") == 3, "its job is recovered each time")

    def counted(name: str, **labels: str) -> float:
        return night.metrics().total(name, job_type="die", **labels)

    night.until(lambda: counted("worker_jobs_processed_total", status="failure") == 3, "its runs are counted")
    night.until(lambda: counted("packhorse_jobs_failed_total", queue="default") == 1, "and its end")
    night.until(lambda: night.metrics().total("packhorse_dead_letter_size") == 1, "the dead letter")
    night.until(lambda: night.said(r"runner \d+ ended with exit code 1", level="error"), "a line")
    shown = night.top()
    (failure,) = [failure for failure in shown["failures"] if failure["id"] == job]
    assert "its runner ended with exit code 1" in failure["error"]
    assert shown["dead_letters"]["jobs"] == 1


def test_a_store_outage_is_seen(private: Any, tmp_path: Path) -> None:
    server = private.redis({"appendonly": "yes"})
    night = Night(tmp_path, server.url)
    try:
        night.until(lambda: night.metrics().total("packhorse_store_up") == 1, "all is well")
        server.stop_hard()
        night.until(lambda: night.metrics().total("packhorse_store_up") == 0, "the metric")
        night.until(lambda: night.said("^cannot .*, trying again", level="warning"), "a line")
        began = time.monotonic()
        shown = night.ask("top", "--once")
        assert (shown.returncode, shown.stdout) == (1, "")
        assert len(shown.stderr.splitlines()) == 1
        assert time.monotonic() - began < 30
        server.start()
        night.until(lambda: night.metrics().total("packhorse_store_up") == 1, "it is back")
        night.until(lambda: night.said("the store answers again after"), "the end of it")
        assert len([line for line in night.log() if "trying again" in line["message"]]) < 40  # said, not shouted
    finally:
        night.lab.close()
