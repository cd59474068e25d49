"""The other process of a measurement: drains, or stands idle and notes latencies. Talks by lines of JSON."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from ..event_loop import new_event_loop
from ..worker.local import LocalWorker
from . import measures
from .tasks import app, latencies_ms


async def _drain(count: int, concurrency: int) -> dict[str, Any]:
    figure = await measures.drain("drain, no-op async handlers", count, concurrency)
    figure.note += f", {measures.rss_mb():.0f} MB"
    return {"figure": figure}


async def _naps(count: int, concurrency: int) -> dict[str, Any]:
    return {"figure": await measures.naps(count, 10.0, concurrency)}


async def _latency(count: int, concurrency: int) -> dict[str, Any]:
    async with LocalWorker(app, concurrency=concurrency):
        print("{}", flush=True)
        while len(latencies_ms) < count:  # noqa: ASYNC110  # the parent waits for a line, not this for an event
            await asyncio.sleep(0.05)
    return {"latencies_ms": latencies_ms}


async def _run(url: str, what: str, count: int, concurrency: int) -> dict[str, Any]:
    app.settings = msgspec.structs.replace(app.settings, url=url)
    try:
        return await {"drain": _drain, "latency": _latency, "naps": _naps}[what](count, concurrency)
    finally:
        await app.aclose()


def main() -> None:
    """Run `what` with the arguments that came on standard input (a URL may carry a password)."""
    url, what, count, concurrency = msgspec.json.decode(sys.stdin.readline(), type=tuple[str, str, int, int])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        answer = runner.run(_run(url, what, count, concurrency))
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
