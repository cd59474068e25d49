"""What the guard costs a request: `python bench/guard.py`. The best of several rounds, the machine being shared."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time

from packhorse.clock import SYSTEM_CLOCK
from packhorse.server.door.entry import Door
from packhorse.server.door.guard import Guard
from packhorse.server.door.origins import Hosts
from packhorse.settings import load

TOKEN = "ph_0123456789abcdef0123456789abcdef"
REQUESTS = 50_000
ROUNDS = 5

PLAIN = [
    (b"host", b"127.0.0.1:8080"),
    (b"user-agent", b"client/1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"content-type", b"application/json"),
    (b"content-length", b"100"),
]


async def nothing(scope, receive, send):
    """Stand for the application behind the guard."""


async def measure(name: str, tokens: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Print the time of one request, less that of calling what does nothing."""
    guarded = Guard(Door.of(load({"tokens": tokens}, {}), SYSTEM_CLOCK), Hosts())(nothing)
    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "query_string": b"", "client": ("127.0.0.1", 5)}
    best = {}
    for application in [nothing, guarded] * ROUNDS:
        began_s = time.perf_counter()
        for _ in range(REQUESTS):
            await application({**scope, "headers": headers}, None, None)
        took_us = (time.perf_counter() - began_s) / REQUESTS * 1e6
        best[application] = min(took_us, best.get(application, took_us))
    print(f"{name:<28} {best[guarded] - best[nothing]:5.1f} us")


async def main() -> None:
    os.chdir(tempfile.mkdtemp())
    await measure("without tokens", "", PLAIN)
    await measure("a token seen before", TOKEN, [*PLAIN, (b"authorization", b"Bearer " + TOKEN.encode())])
    page = [*PLAIN, (b"origin", b"http://127.0.0.1:8080"), (b"sec-fetch-site", b"same-origin")]
    await measure("the same, from a page", TOKEN, [*page, (b"authorization", b"Bearer " + TOKEN.encode())])


if __name__ == "__main__":
    asyncio.run(main())
