"""What single enqueues over HTTP cost: `packhorse serve` on a fresh SQLite file, asked by many clients at once.

    python bench/http_enqueue.py --clients 64 --seconds 10
    python bench/http_enqueue.py --against ../before/src --rounds 8 --seconds 3

The load comes from wrk (Debian: `apt-get install wrk`), which takes its share of the machine. Floors in the same
run: a request that does nothing, and the bare store asked by as many callers in one process. `--against` serves
another source tree too, and asks both in turn: on a machine that is not quiet only such pairs can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from packhorse import Packhorse

SCRIPT = """
wrk.method = "POST"
wrk.body = '{"type":"email","payload":{"to":"user@example.com","subject":"Welcome to the machine"}}'
wrk.headers["Content-Type"] = "application/json"
"""


def cpu_s(pid: int) -> float:
    """Answer the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Answer the most memory that a process had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


def load(url: str, pid: int, clients: int, seconds: int, *arguments: str) -> tuple[float, float, list[str]]:
    """Answer requests a second, CPU of the server in us a request, and the lines of wrk about latency."""
    before = cpu_s(pid)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", *arguments, url]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = cpu_s(pid) - before
    if "Non-2xx" in told or "Socket errors" in told:
        sys.exit(f"not all requests were answered well:\n{told}")
    requests = int(re.search(r"(\d+) requests in", told)[1])
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])
    latency = [line.strip() for line in told.splitlines() if re.match(r"\s+(50|99)%", line)]
    return rate, used / requests * 1e6, latency


async def bare_store(path: str, callers: int, each: int) -> tuple[float, float]:
    """Answer enqueues a second and CPU in us of each, without HTTP: `callers` tasks of one process."""
    app = Packhorse(f"sqlite:///{path}")

    async def caller() -> None:
        for _ in range(each):
            await app.aenqueue("email", {"to": "user@example.com", "subject": "Welcome to the machine"})

    await app.aenqueue("email", {})
    started, used = time.monotonic(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds, used = time.monotonic() - started, time.process_time() - used
    await app.aclose()
    return callers * each / seconds, used / (callers * each) * 1e6


@contextmanager
def served(store: str, port: int, source: str | None) -> Iterator[tuple[str, int]]:
    """Serve a store from a source tree, else from what is installed; yields the URL and the process."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ |= {"PACKHORSE_URL": store} | ({} if source is None else {"PYTHONPATH": source})
    command = [sys.executable, "-m", "packhorse", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/livez", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url, server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store; a fresh SQLite file unless given")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", help="another source tree to compare with")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk makes the load and is not there; apt-get install wrk")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        script = Path(directory, "post.lua")
        script.write_text(SCRIPT)
        servers = {}
        for number, source in enumerate([None] if asked.against is None else [asked.against, None]):
            store = asked.url or f"sqlite:///{directory}/jobs{number}.db"
            servers[source or "this"] = stack.enter_context(served(store, 18099 + number, source))
        costs: dict[str, list[float]] = {name: [] for name in servers}
        floors: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(asked.rounds):
            for name, (url, pid) in servers.items():
                enqueue = f"{url}/api/v1/jobs"
                rate, cpu, latency = load(enqueue, pid, asked.clients, asked.seconds, "-s", str(script))
                nothing, floor, _ = load(f"{url}/livez", pid, asked.clients, max(1, asked.seconds // 3))
                costs[name].append(cpu)
                floors[name].append(floor)
                print(
                    f"{name}: {rate:,.0f} enqueues/s, {cpu:.0f} us each, {', '.join(latency)}; "
                    f"a request that does nothing: {nothing:,.0f}/s, {floor:.0f} us; "
                    f"the most memory: {peak_mb(pid):.0f} MB",
                    flush=True,
                )
        for name in servers:
            print(
                f"{name}: CPU of an enqueue, the least {min(costs[name]):.0f} us, median {median(costs[name]):.0f}; "
                f"of nothing {min(floors[name]):.0f}, {median(floors[name]):.0f}"
            )
        rate, cpu = asyncio.run(bare_store(f"{directory}/bare.db", asked.clients, 500))
        print(f"floor, the store without HTTP: {rate:,.0f} enqueues/s, {cpu:.0f} us")


if __name__ == "__main__":
    main()
