"""What traces cost: drains with tracing off, on with nothing kept, with 1 % and with all of it kept, in turn.

Usage: python bench/tracing.py [ROUNDS] [JOBS]

The receiver is another process that takes everything and keeps nothing; `away` has none. All ways take turns on the
same machine within the same minute, each round in another order; CPU time a job (with sending) is what to read, rates
swing with whatever else goes on. Jobs are enqueued in bulk with tracing as it is for the drain.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import msgspec

from packhorse.benchmark import measures
from packhorse.benchmark.tasks import app
from packhorse.clock import SYSTEM_CLOCK, process_cpu_ms
from packhorse.event_loop import new_event_loop
from packhorse.worker.local import LocalWorker

RECEIVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Take(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
#: Share of traces that are kept; None: tracing is off.
WAYS = {"off": None, "kept 0 %": 0.0, "kept 1 %": 0.01, "kept 100 %": 1.0, "1 %, away": 0.01}


@contextmanager
def receiver():
    """Run a receiver; answers its URL."""
    with subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def set_up(way: str, url: str, store: str) -> None:
    """Let the app make spans this way, on a store of its own."""
    share = WAYS[way]
    where = "off" if share is None else "http://127.0.0.1:9" if way.endswith("away") else url
    app.settings = msgspec.structs.replace(app.settings, url=store, tracing=where, tracing_sample=share or 0.0)
    app._tracing = None  # noqa: SLF001  # one app takes turns


async def drain(jobs: int) -> tuple[float, float, float]:
    """Enqueue and drain jobs that do nothing; answers CPU us a job enqueued, CPU us a job drained, jobs/s drained."""
    tracing = app.tracing()
    cpu_ms = process_cpu_ms()
    await measures.enqueue_bulk(jobs)
    if tracing is not None:
        await tracing.aflush(5)
    enqueued_ms = process_cpu_ms() - cpu_ms
    cpu_ms, began_ms = process_cpu_ms(), SYSTEM_CLOCK.boot_ms()
    await LocalWorker(app, burst=True).run()
    rate = jobs / (SYSTEM_CLOCK.boot_ms() - began_ms) * 1_000
    if tracing is not None:
        await tracing.aflush(5)
    drained_ms = process_cpu_ms() - cpu_ms
    await app.aclose()
    return enqueued_ms / jobs * 1_000, drained_ms / jobs * 1_000, rate


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    print(f"{rounds} rounds of {jobs:,} jobs in turn")
    with receiver() as url, tempfile.TemporaryDirectory() as directory:
        for scheme in ("sqlite", "memory"):
            found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                for number in range(rounds):
                    ways = list(WAYS)
                    for place in range(len(ways)):
                        way = ways[(place + number) % len(ways)]
                        name = f"{number}-{place}"
                        store = f"sqlite:///{Path(directory) / name}.db" if scheme == "sqlite" else f"memory://{name}"
                        set_up(way, url, store)
                        found[way].append(runner.run(drain(jobs)))
            print(f"\n{scheme:14} {'CPU us enqueued':>16} {'us drained':>16} {'least':>8} {'jobs/s':>10} {'of off':>8}")
            for way, figures in found.items():
                enqueued, drained, rates = zip(*figures, strict=True)
                paired = statistics.median(b[1] / a[1] for a, b in zip(found["off"], figures, strict=True))
                print(
                    f"{way:14} {statistics.median(enqueued):>16.2f} {statistics.median(drained):>16.2f} "
                    f"{min(drained):>8.2f} {statistics.median(rates):>10,.0f} {paired:>8.3f}"
                )


if __name__ == "__main__":
    main()
