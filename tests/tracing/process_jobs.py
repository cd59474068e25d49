"""An app whose handlers run in child processes, or stand for those of a user, and make spans of their own."""

from __future__ import annotations

import os

from opentelemetry import trace

from packhorse import Context, Packhorse

app = Packhorse(os.environ.get("TRACED_URL", "memory://traced-processes"), name="shop")


def _own_span(name: str) -> None:
    with trace.get_tracer("mine").start_as_current_span(name):
        pass


@app.task
async def checkout(ctx: Context, card: str) -> str:
    """The first job: makes a span of its own, enqueues another job and has a follow-up."""
    _own_span("charge the card")
    await confirm.using(queue="mail").aenqueue(order=7)
    ctx.then(ship, {"order": 7}, queue="warehouse")
    return f"paid with {card}"


@app.task
def confirm(order: int) -> None:
    _own_span("render the mail")


@app.task(executor="process")
def ship(order: int) -> None:
    _own_span("weigh the parcel")
    ship_later.using(queue="later").enqueue(order=order)


@app.task
async def ship_later(order: int) -> None: ...


@app.task(max_attempts=3, backoff="10ms", backoff_max="10ms")
async def flaky(ctx: Context, password: str) -> None:
    local_secret = f"local {password}"
    if ctx.attempt < 3:
        raise ConnectionError(f"no answer, attempt {ctx.attempt}")
    assert local_secret


@app.task
async def nothing() -> None: ...
