"""What event clients see, and what they cost: `packhorse serve` and a worker on a fresh SQLite file.

    python bench/event_clients.py --clients 50 --jobs 20000

First jobs come at a steady pace, and each client measures how old a move is when it hears of it (by the store's clock,
on the same machine). Then a worker drains many jobs with nobody listening and with clients, in turns. The clients run
in one process of their own and take their share of the machine, which is why `--hears failed` is measured too: clients
that hear nothing, while the server follows every move all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from packhorse import Packhorse
from packhorse.benchmark.tasks import noop

PORT = 18098


async def connect(query: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream and read its head and hello."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 20)
    writer.write(f"GET /api/v1/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head:
        sys.exit(f"no stream: {head.decode()}")
    await reader.readuntil(b"event: hello")
    return reader, writer


async def measure(reader: asyncio.StreamReader, ages: dict[str, list[float]]) -> None:
    """Note how old each event is when it is read."""
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "state" in event:
                at = datetime.fromisoformat(event["at"]).timestamp()
                ages.setdefault(event["state"], []).append((time.time() - at) * 1000)


async def discard(reader: asyncio.StreamReader, counted: list[int]) -> None:
    """Read and count bytes."""
    while data := await reader.read(1 << 18):
        counted[0] += len(data)


async def latency(url: str, clients: int, seconds: int, rate: int) -> None:
    """Print how old moves are when clients hear of them, at `rate` jobs a second."""
    ages: dict[str, list[float]] = {}
    streams = [await connect("") for _ in range(clients)]
    readers = [asyncio.create_task(measure(reader, ages)) for reader, _ in streams]
    app = Packhorse(url)
    for _ in range(seconds * rate):
        await app.aenqueue(noop.type, {})
        await asyncio.sleep(1 / rate)
    await asyncio.sleep(1)
    for task in readers:
        task.cancel()
    for _, writer in streams:
        writer.close()
    await app.aclose()
    for state, found in ages.items():
        found.sort()
        p50, p95, p99 = (found[int(len(found) * part)] for part in (0.5, 0.95, 0.99))
        figures = f"median {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, max {found[-1]:.0f}"
        print(f"  {state:10} {len(found):7,} heard, ms: {figures}")
    expected = seconds * rate * clients * 3
    print(f"  {sum(map(len, ages.values())):,} of {expected:,} moves heard")


async def drain(url: str, clients: int, query: str, jobs: int) -> tuple[float, float]:
    """Answer how many jobs a second a worker drains while clients listen, and its CPU in us for each."""
    app = Packhorse(url)
    for _ in range(0, jobs, 1_000):
        await app.aenqueue_many([(noop.type, {})] * 1_000)
    backend = await app.backend()
    counted = [0]
    streams = [await connect(query) for _ in range(clients)]
    readers = [asyncio.create_task(discard(reader, counted)) for reader, _ in streams]
    before = children_cpu_s()
    with worker(url):

        async def left() -> int:
            counts = (await backend.counts())["default"].states
            return sum(counts.get(state, 0) for state in ("pending", "running"))

        async def at_most(limit: float) -> tuple[int, float]:
            """Wait until so many jobs are left; answers how many, and when."""
            while True:
                jobs_left, now = await left(), time.monotonic()
                if jobs_left <= limit:
                    return jobs_left, now
                await asyncio.sleep(0.05)

        first, began = await at_most(jobs * 0.9)  # the worker starts up
        last, ended = await at_most(jobs * 0.1)
        rate = (first - last) / (ended - began)
        await at_most(0)
    used = children_cpu_s() - before  # all of the worker's processes; its start is in it
    closed = sum(task.done() for task in readers)
    for task in readers:
        task.cancel()
    for _, writer in streams:
        writer.close()
    await app.aclose()
    if clients:
        print(f"    {counted[0] / clients / 1e6:.1f} MB heard by each, {closed} of {clients} were too slow and cut off")
    return rate, used / jobs * 1e6


@contextmanager
def running(*arguments: str, url: str):
    """Run a command of packhorse while the block runs."""
    environ = {**os.environ, "PACKHORSE_URL": url, "PACKHORSE_LOG_LEVEL": "warning"}
    process = subprocess.Popen([sys.executable, "-m", "packhorse", *arguments], env=environ, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def worker(url: str):
    """Run a worker."""
    return running("worker", "packhorse.benchmark.tasks:app", "--url", url, url=url)


def children_cpu_s() -> float:
    """Answer the CPU time of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_s(pid: int) -> float:
    """Answer the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store; a fresh SQLite file unless given")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rate", type=int, default=20, help="jobs a second while latency is measured")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs that are drained in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hears", choices=["failed", "all", "stats"], action="append")
    asked = parser.parse_args()
    queries = {"failed": "?state=failed", "all": "", "stats": "?events=stats"}
    with tempfile.TemporaryDirectory() as directory:
        url = asked.url or f"sqlite:///{directory}/jobs.db"
        with running("serve", "--port", str(PORT), url=url) as server:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/livez", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            print(f"{asked.clients} clients, {asked.rate} jobs/s for {asked.seconds} s:")
            with worker(url):
                asyncio.run(latency(url, asked.clients, asked.seconds, asked.rate))
            for hears in asked.hears or ["failed", "all", "stats"]:
                print(f"{asked.jobs:,} jobs drained by one worker, jobs/s; {asked.clients} clients hear {hears}:")
                ratios = []
                for _ in range(asked.rounds):
                    alone, alone_us = asyncio.run(drain(url, 0, "", asked.jobs))
                    before = cpu_s(server.pid)
                    watched, watched_us = asyncio.run(drain(url, asked.clients, queries[hears], asked.jobs))
                    server_us = (cpu_s(server.pid) - before) / asked.jobs * 1e6
                    ratios.append((watched / alone, watched_us / alone_us))
                    print(f"  nobody {alone:,.0f} ({alone_us:.0f} us CPU each), clients {watched:,.0f}", end=" ")
                    print(f"({watched_us:.0f} us, server {server_us:.0f} us)")
                speed, cpu = (sorted(part)[len(ratios) // 2] for part in zip(*ratios, strict=True))
                print(f"  with clients, median: {speed:.2f} of the speed, {cpu:.2f} of the worker's CPU")
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
            print(f"server: at most {int(peak[1]) / 1000:.0f} MB")


if __name__ == "__main__":
    main()
