"""The app that is measured."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..app import Packhorse
from ..clock import precise_boot_ms

app = Packhorse()  # the URL comes with the measurement, never from here

#: Delays between enqueue and start, ms, as the `stamp` handler saw them.
latencies_ms: list[float] = []


@app.task
async def noop() -> None:
    """Do nothing."""


@app.task
async def nap(ms: float) -> None:
    """Wait as a handler waits for a network."""
    await asyncio.sleep(ms / 1000)


@app.task
async def stamp(sent_ms: float) -> None:
    """Note how long this job took from before its enqueue to its start."""
    latencies_ms.append(precise_boot_ms() - sent_ms)


@app.task
def touch(path: str) -> None:
    """Tell another process that a job started."""
    Path(path).write_text(str(precise_boot_ms()), encoding="ascii")
