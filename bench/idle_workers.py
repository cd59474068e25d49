"""What idle workers cost a server: N real workers (a keeper and a runner each), and the commands while none has work.

    python bench/idle_workers.py redis://127.0.0.1/0?prefix=idle --workers 100 --seconds 30

On PostgreSQL transactions are counted; most have one statement.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time

from packhorse.backends.opening import open_backend
from packhorse.benchmark.meter import postgres_meter, redis_meter
from packhorse.benchmark.places import kind_of


async def live_workers(url: str) -> int:
    backend = open_backend(url)
    await backend.open()
    try:
        return len(await backend.workers())
    finally:
        await backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    asked = parser.parse_args()
    meter = (redis_meter if kind_of(asked.url) == "redis" else postgres_meter)(asked.url)
    environ = {**os.environ, "PACKHORSE_URL": asked.url, "PACKHORSE_LOG_LEVEL": "error"}
    command = [sys.executable, "-m", "packhorse", "worker", "packhorse.benchmark.tasks:app"]
    workers = []
    try:
        for number in range(asked.workers):
            workers.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL))
            print(f"\rstarted {number + 1}", end="", flush=True)
            time.sleep(0.3)
        while (live := asyncio.run(live_workers(asked.url))) < asked.workers:
            print(f"\r{live} of {asked.workers} live ", end="", flush=True)
            time.sleep(1)
        time.sleep(5)
        before, started = meter.read(), time.monotonic()
        time.sleep(asked.seconds)
        done, seconds = meter.read().since(before), time.monotonic() - started
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(timeout=60)
    share = done.commands / seconds / asked.workers
    print(f"\n{asked.workers} idle workers: {share:.2f} {meter.unit}s a second each", end="")
    if done.cpu_ms is not None:
        print(f", the server uses {done.cpu_ms / seconds / 10:.1f} % of a core for all of them")


if __name__ == "__main__":
    main()
