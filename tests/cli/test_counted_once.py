"""Counters of many processes on one store: together they say what happened, and none of them ever falls."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packhorse import Packhorse
from packhorse.observe.metrics import METRICS, Kind
from tests.scraped import Scraped

from .serving import Command, until
from .test_worker_metrics import Worker, get, scrape

APP = """
import asyncio
from packhorse import Cancel, Context, Fail, Packhorse, Retry, Snooze

app = Packhorse()

@app.task
async def good(n: int) -> int:
    await asyncio.sleep(0 if n % 3 else 0.002)
    return n

@app.task(max_attempts=2, backoff=0)
async def bad(n: int) -> None:
    raise ValueError("no")

@app.task(max_attempts=3)
async def again(ctx: Context, n: int) -> None:
    if ctx.attempt == 1:
        raise Retry(0)

@app.task
async def needless(n: int) -> None:
    raise Cancel

@app.task
async def parent(ctx: Context, n: int) -> None:
    ctx.then(good, {"n": n})

@app.task(executor="thread")
def blocking(n: int) -> None: ...

@app.task
async def elsewhere(n: int) -> None: ...
"""
TYPES = ("good", "bad", "again", "needless", "parent", "blocking")
STATES = ("waiting", "scheduled", "pending", "running")


def of_each(count: int) -> list[dict[str, object]]:
    return [{"type": job_type, "payload": {"n": n}} for n in range(count) for job_type in TYPES]


def in_this_process(url: str, jobs: list[dict[str, object]]) -> Scraped:
    """Enqueue as a program does that answers metrics itself."""
    with Packhorse(url) as app:
        app.enqueue_many(jobs)
        return Scraped(app.metrics())


def run_elsewhere(server: Command, count: int) -> None:
    """Run jobs as a worker in another language does."""
    asked = {"worker": "other", "queues": ["elsewhere"], "types": ["elsewhere"], "limit": 10, "wait": "5s"}
    done = 0
    while done < count:
        jobs = server.ask("/api/v1/claims", asked)["jobs"]
        outcomes = [
            ("failed", {"permanent": True}) if job["payload"]["n"] % 5 == 0 else ("succeeded", {}) for job in jobs
        ]
        ends = [
            {"id": job["id"], "token": job["token"], "outcome": outcome, **rest}
            for job, (outcome, rest) in zip(jobs, outcomes, strict=True)
        ]
        server.ask("/api/v1/settlements", {"settlements": ends})
        done += len(jobs)


def test_a_thousand_jobs_of_all_kinds_are_counted_once_over_all_processes(directory: Path) -> None:
    """Enqueued is completed, failed, cancelled and what is left, whoever enqueued, ran and counted them."""
    (directory / "jobs.py").write_text(APP)
    (directory / "behind").mkdir()
    (directory / "behind" / "jobs.py").write_text(APP)
    (directory / "direct").mkdir()
    (directory / "direct" / "jobs.py").write_text(APP)
    file = f"sqlite:///{directory / 'packhorse.db'}"
    with Command(directory, "serve", "jobs", "--with-worker", "--port", "0", environ={"PACKHORSE_URL": file}) as server:
        at_server, at_store = {"PACKHORSE_URL": server.url}, {"PACKHORSE_URL": file}
        with (
            Worker(directory / "behind", "-c", "5", environ=at_server) as behind,
            Worker(directory / "direct", "-c", "5", "-p", "2", environ=at_store) as direct,
        ):
            behind.wait_until_ready()
            direct.wait_until_ready()
            programs = [in_this_process(file, of_each(60)), in_this_process(server.url, of_each(60))]
            server.ask("/api/v1/jobs/batch", {"jobs": of_each(60)})
            others = [{"type": "elsewhere", "queue": "elsewhere", "payload": {"n": n}} for n in range(50)]
            server.ask("/api/v1/jobs/batch", {"jobs": others})
            for number in range(20):
                made = server.ask("/api/v1/jobs", {"type": "good", "payload": {"n": number}, "delay": "1h"})
                if number < 10:
                    server.ask(f"/api/v1/jobs/{made['id']}/cancel", {})
            run_elsewhere(server, 50)

            def left(found: Scraped) -> float:
                return sum(found.total("packhorse_queue_depth", state=state) for state in STATES)

            until(lambda: left(scrape(server)) == 10)

            def counted(name: str, **labels: str) -> float:
                every = [*programs, *(scrape(one) for one in (server, behind, direct))]
                return sum(found.total(name, **labels) for found in every)

            enqueued = 3 * 60 * len(TYPES) + 50 + 20 + 180  # the last are those of parents
            wanted = {
                "enqueued": enqueued,
                "completed": 180 * 5 + 40,  # good, again, parent, good of parent, blocking
                "failed": 180 + 10,
                "retried": 60 + 120 * 3 + 180,  # a program that does not have the code gives them 4 attempts
                "cancelled": 180 + 10,
                "parked": 0,
            }

            def all_counted() -> dict[str, float]:
                return {name: counted(f"packhorse_jobs_{name}_total") for name in wanted}

            until(lambda: all_counted() == wanted)
            assert wanted["enqueued"] == wanted["completed"] + wanted["failed"] + wanted["cancelled"] + 10
            assert counted("worker_jobs_processed_total", status="success") == wanted["completed"]
            assert counted("worker_jobs_processed_total", status="failure") == wanted["failed"] + wanted["retried"]
            runs = wanted["completed"] + wanted["failed"] + wanted["retried"]
            for name in ("worker_job_duration_seconds_count", "packhorse_job_duration_seconds_count"):
                assert counted(name) == runs, name
            starts = runs + 180  # those that were needless are no runs that say anything
            assert counted("packhorse_job_queue_time_seconds_count") == starts
            found = scrape(server)
            assert found.total("packhorse_dead_letter_size") == wanted["failed"]
            assert found.total("packhorse_queue_depth", state="succeeded") == wanted["completed"]
            assert found.total("packhorse_queue_depth", state="cancelled") == wanted["cancelled"]


@contextmanager
def scraping(url: str) -> Iterator[list[str]]:
    """Scrape all the time, and answer in what series a counter fell."""
    falls: list[str] = []
    over = threading.Event()
    counters = {metric.name for metric in METRICS.values() if metric.kind is Kind.COUNTER}

    def is_counter(name: str) -> bool:
        return name in counters or name.endswith(("_bucket", "_count", "_sum"))

    def work() -> None:
        before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        while not over.wait(0.1):
            found = Scraped(get(f"{url}/metrics")[1])
            now = {
                (one.name, tuple(sorted(one.labels.items()))): one.value for one in found.series if is_counter(one.name)
            }
            falls.extend(
                f"{key}: {value} → {now.get(key)}" for key, value in before.items() if now.get(key, -1) < value
            )
            before = now

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield falls
    finally:
        over.set()
        thread.join(60)


def test_no_counter_falls_while_runners_and_workers_are_killed(directory: Path) -> None:
    (directory / "jobs.py").write_text(APP)
    (directory / "direct").mkdir()
    (directory / "direct" / "jobs.py").write_text(APP)
    file = f"sqlite:///{directory / 'packhorse.db'}"
    with (
        Command(directory, "serve", "jobs", "--with-worker", "--port", "0", environ={"PACKHORSE_URL": file}) as server,
        Worker(directory / "direct", "-p", "2", "-c", "5", environ={"PACKHORSE_URL": file}) as worker,
    ):
        worker.wait_until_ready()
        with scraping(server.url) as of_server, scraping(worker.url) as of_worker:
            for lost in range(1, 5):
                in_this_process(file, of_each(20))
                os.kill(newest(worker, b"runner_process"), signal.SIGKILL)
                until(lambda lost=lost: scrape(worker).total("packhorse_runners_lost_total") == lost)
                until(lambda: scrape(worker).total("packhorse_worker_slots") == 10)
                if lost == 2:
                    os.kill(newest(server, b"packhorse.leash"), signal.SIGKILL)
        assert of_server == []
        assert of_worker == []


def newest(command: Command, what: bytes) -> int:
    """Answer the latest process of a command that has this in its command line."""
    found = []
    for pid, started in command.tree():
        with suppress(OSError):  # gone meanwhile
            if what in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append((int(started), pid))
    return max(found)[1]
