"""`sentry_failures` with a real `sentry_sdk`, whose transport keeps what would be sent."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from working import new_app, until, work

from packhorse import ConfigurationError, Context, Packhorse, Retry, sentry_failures
from packhorse.worker import telling


class Kept(Transport):
    """Sends nothing, keeps all."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.flushed: list[float] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(event)

    def flush(self, timeout: float, callback: Any = None) -> None:
        self.flushed.append(timeout)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    transport = Kept()
    monkeypatch.setattr(telling, "HOOKS_MS_MAX", 60_000)  # a stop waits for what a slow machine has not told yet
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(dsn="http://public@sentry.invalid/1", transport=transport)
        try:
            yield transport
        finally:
            sentry_sdk.get_client().close(timeout=0)
            sentry_sdk.get_global_scope().set_client(None)


def broken_app(**choice: Any) -> Packhorse:
    app = new_app()
    app.on_failure(sentry_failures(), **choice)

    @app.task("broken", max_attempts=2, backoff="1ms")
    async def broken(password: str = "") -> None:
        held = f"locals of {password}"
        raise ValueError(f"it broke with {len(held)}")

    @app.task("gives_up", max_attempts=2)
    async def gives_up(ctx: Context) -> None:
        raise Retry(0, "not yet")

    @app.task("away", max_attempts=1)
    async def away(url: str) -> None:
        try:
            raise OSError(f"no route to {url}")
        except OSError as error:
            raise ConnectionError(f"{url} does not answer") from error

    @app.task("slow", max_attempts=1, timeout="50ms")
    async def slow() -> None:
        await asyncio.sleep(30)

    @app.task("crumbs", max_attempts=1)
    async def crumbs(name: str) -> None:
        sentry_sdk.add_breadcrumb(message=f"crumb of {name}")
        await asyncio.sleep(0.01)
        raise LookupError(name)

    @app.task("threaded_crumbs", max_attempts=1)
    def threaded_crumbs(name: str) -> None:
        sentry_sdk.add_breadcrumb(message=f"crumb of {name}")
        raise LookupError(name)

    return app


def run(app: Packhorse, *jobs: Any, until_ended: int = 0) -> list[str]:
    async def scenario() -> list[str]:
        async with app:
            stored = await app.aenqueue_many(jobs)
            async with app.worker() as worker:
                await until(lambda: worker.engine.runner.ended >= (until_ended or len(jobs)))
            return [job.id for job in stored]

    answer: list[str] = work(scenario)
    return answer


def test_the_exception_is_captured_with_its_job_and_without_payload_or_locals(sent: Kept) -> None:
    """C20: neither the payload nor a frame's local variables leave the process."""
    (job_id,) = run(broken_app(), ("broken", {"password": "canary-of-payload"}), until_ended=2)
    first, last = sorted(sent.events, key=lambda event: event["tags"]["packhorse.attempt"])
    (value,) = last["exception"]["values"]
    assert (value["type"], value["value"]) == ("ValueError", "it broke with 27")
    assert value["stacktrace"]["frames"][-1]["function"] == "broken"
    assert value["mechanism"] == {"type": "packhorse", "handled": False}
    assert (first["level"], last["level"]) == ("warning", "error")
    assert last["transaction"] == "broken"
    assert last["tags"]["packhorse.type"] == "broken"
    assert last["tags"]["packhorse.queue"] == "default"
    assert (first["tags"]["packhorse.attempt"], last["tags"]["packhorse.attempt"]) == ("1", "2")
    assert (first["tags"]["packhorse.final"], last["tags"]["packhorse.final"]) == ("no", "yes")
    assert last["tags"]["packhorse.worker"]
    assert last["contexts"]["packhorse"]["job"] == job_id
    assert "canary" not in repr(sent.events)
    assert sent.flushed == [1.5], "the process of a worker ends without waiting for threads"


def test_c20_passwords_of_urls_in_exceptions_are_not_sent(sent: Kept) -> None:
    run(broken_app(), ("away", {"url": "postgresql://shop:canary@db.example/shop"}))
    (event,) = sent.events
    said = [each["value"] for each in event["exception"]["values"]]
    assert sorted(said) == [
        "no route to postgresql://shop:***@db.example/shop",
        "postgresql://shop:***@db.example/shop does not answer",
    ]
    assert "canary" not in repr(event)


def test_one_failure_is_one_event_though_the_worker_logs_it_too(sent: Kept) -> None:
    run(broken_app(final=True), ("broken", {}), until_ended=2)
    assert len(sent.events) == 1


def test_a_time_out_is_captured_under_its_fingerprint(sent: Kept) -> None:
    run(broken_app(), ("slow", {}), ("slow", {}))
    assert [event["exception"]["values"][0]["type"] for event in sent.events] == ["TimedOut", "TimedOut"]
    one, two = (event["fingerprint"] for event in sent.events)
    assert one == two
    assert one[:2] == ["packhorse", "slow"]


def test_a_retry_that_was_asked_for_is_captured_only_when_it_was_the_last(sent: Kept) -> None:
    run(broken_app(), ("gives_up", {}), until_ended=2)
    (event,) = sent.events
    assert event["tags"]["packhorse.attempt"] == "2"


@pytest.mark.parametrize("kind", ["crumbs", "threaded_crumbs"])
def test_breadcrumbs_of_jobs_that_run_at_once_are_not_mixed(sent: Kept, kind: str) -> None:
    names = [f"job {n}" for n in range(20)]
    run(broken_app(), *[(kind, {"name": name}) for name in names])
    assert len(sent.events) == 20
    for event in sent.events:
        name = event["exception"]["values"][0]["value"]
        messages = [crumb["message"] for crumb in event["breadcrumbs"]["values"] if crumb.get("message")]
        assert [text for text in messages if text.startswith("crumb of")] == [f"crumb of {name}"]


def test_without_a_client_that_is_said_once_and_nothing_else_happens(caplog) -> None:
    sentry_sdk.get_global_scope().set_client(None)
    with caplog.at_level(logging.WARNING, "packhorse.failures"):
        run(broken_app(), ("broken", {}), ("broken", {}), until_ended=4)
    assert caplog.text.count("sentry_sdk.init") == 1


def test_without_the_package_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(ConfigurationError, match=r"packhorse\[sentry\]"):
        sentry_failures()
