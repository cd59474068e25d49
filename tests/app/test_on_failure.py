"""`app.on_failure`: what may be registered, what a hook hears of and what it is told."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from typing import Any

import pytest

import packhorse
from packhorse import Cancel, ConfigurationError, Fail, Failure, InvalidName, Packhorse, Retry, Snooze
from packhorse.observe.current import CURRENT_JOB
from packhorse.testing import drain, inline, stored


@pytest.fixture
def told(app: Packhorse) -> list[Failure]:
    """What a hook of the app is told, of jobs that fail in each way."""
    heard: list[Failure] = []

    @app.on_failure
    async def hear(failure: Failure) -> None:
        heard.append(failure)

    @app.task("broken", max_attempts=3, backoff="1s")
    async def broken(how: str = "", password: str = "") -> Any:
        raise ValueError(f"it broke {how}".strip())

    @app.task("ends")
    async def ends(how: str) -> Any:
        match how:
            case "fail":
                raise Fail("no use")
            case "cancel":
                raise Cancel
            case "snooze":
                raise Snooze("1h")
            case "retry":
                raise Retry("5s", "not yet")
            case "result":
                return object()
        return None

    return heard


def test_each_failed_attempt_is_told_and_the_last_one_is_final(app, told):
    with stored(app):
        job = app.enqueue("broken", {"how": "here"}, key="tenant", tags=["red"])
        drain(app)
    assert [failure.attempt for failure in told] == [1, 2, 3]
    assert [failure.final for failure in told] == [False, False, True]
    first, last = told[0], told[-1]
    assert (last.id, last.type, last.queue, last.key, last.tags) == (job.id, "broken", "default", "tenant", ("red",))
    assert (last.error_kind, last.message, last.max_attempts) == ("ValueError", "it broke here", 3)
    assert 'raise ValueError(f"it broke {how}".strip())' in last.traceback
    assert isinstance(last.error, ValueError)
    assert first.retry_in_ms is not None
    assert 0 <= first.retry_in_ms <= 1_000
    assert last.retry_in_ms is None
    assert last.duration_ms is not None
    assert last.worker
    assert not last.lapsed


@pytest.mark.parametrize(
    ("how", "kind", "final"), [("fail", "Fail", True), ("retry", "Retry", False), ("result", "InvalidResult", True)]
)
def test_what_a_handler_says_is_a_failure_is_told(app, told, how, kind, final):
    with inline(app):
        app.enqueue("ends", {"how": how})
    (failure,) = told
    assert (failure.error_kind, failure.final) == (kind, final)


@pytest.mark.parametrize("how", ["cancel", "snooze", "well"])
def test_what_is_no_failure_is_not_told(app, told, how):
    with inline(app):
        app.enqueue("ends", {"how": how})
    assert told == []


def test_a_job_of_no_known_type_or_with_a_damaged_payload_is_told_when_it_fails_for_good(told, app):
    with stored(app):
        app.enqueue("nobody_knows", {"a": 1})
        app._backends  # noqa: B018
        app.enqueue_specs([app.make_spec("ends", b'{"how": 3, "what": []}', {})])
        drain(app)
    assert {(failure.type, failure.error_kind, failure.final) for failure in told} == {
        ("nobody_knows", "UnknownType", True),
        ("ends", "InvalidPayload", True),
    }


def test_the_payload_is_not_shown_and_its_secrets_are_hidden_when_asked_for(app, told):
    """C20: a hook that prints what it is told prints no payload."""
    with inline(app):
        app.enqueue("broken", {"how": "x", "password": "canary"})
    failure = told[0]
    assert failure.payload() == {"how": "x", "password": "***"}
    assert "canary" not in repr(failure)
    assert "x" not in repr(failure).split(failure.id)[0]


def test_final_and_types_choose(app):
    heard: list[tuple[str, str, int]] = []

    @app.task("one", max_attempts=2, backoff="1ms")
    def one() -> None:
        raise ValueError

    @app.task("two", max_attempts=2, backoff="1ms")
    def two() -> None:
        raise ValueError

    app.on_failure(lambda failure: heard.append(("last", failure.type, failure.attempt)), final=True)
    app.on_failure(lambda failure: heard.append(("two", failure.type, failure.attempt)), types=[two])

    @app.on_failure(final=True, types=["one"])
    def both(failure: Failure) -> None:
        heard.append(("both", failure.type, failure.attempt))

    with stored(app):
        one.enqueue()
        two.enqueue()
        drain(app)
    assert sorted(heard) == [
        ("both", "one", 2),
        ("last", "one", 2),
        ("last", "two", 2),
        ("two", "two", 1),
        ("two", "two", 2),
    ]


def test_a_hook_may_be_any_callable_and_runs_in_no_job_of_its_own(app, told):
    where: list[tuple[str, bool, object]] = []

    def note(name: str, failure: Failure) -> None:
        on_loop = threading.current_thread().name != "packhorse-failure-hook"
        where.append((name, on_loop, CURRENT_JOB.get()))

    class Callable:
        async def __call__(self, failure: Failure) -> None:
            await asyncio.sleep(0)
            note("object", failure)

    app.on_failure(Callable())
    app.on_failure(functools.partial(note, "partial"))
    with inline(app):
        app.enqueue("ends", {"how": "fail"})
    assert sorted(where) == [("object", True, None), ("partial", False, None)]


@pytest.mark.parametrize("hook", [3, "name", lambda: None, lambda a, b: None])
def test_what_cannot_take_a_failure_is_refused_at_once(app, hook):
    with pytest.raises(ConfigurationError, match="on_failure"):
        app.on_failure(hook)
    assert app.failure_hooks == []


def test_names_of_types_are_checked(app):
    with pytest.raises(InvalidName):
        app.on_failure(print, types=["no such name!"])
    with pytest.raises(ConfigurationError, match="list"):
        app.on_failure(print, types="email")


def test_a_hook_that_fails_changes_nothing_and_is_said_once_with_its_stack(app, told, caplog):
    def breaks(failure: Failure) -> None:
        raise RuntimeError("the hook broke")

    async def exits(failure: Failure) -> None:
        raise SystemExit(3)

    app.on_failure(breaks)
    app.on_failure(exits)
    with caplog.at_level(logging.ERROR, "packhorse.failures"), stored(app):
        job = app.enqueue("broken", {})
        drain(app)
        assert app.job(job.id).state == "failed"
    assert len(told) == 3, "others hear of it all the same"
    lines = [record for record in caplog.records if "breaks" in record.getMessage()]
    assert lines
    assert "the hook broke" in caplog.text
    assert "exits failed: SystemExit" in caplog.text


def test_without_hooks_nothing_is_built(app):
    @app.task("broken", max_attempts=1)
    def broken() -> None:
        raise ValueError

    async def look() -> None:
        async with app.worker() as worker:
            assert worker.engine is not None
            assert worker.engine.failures is None
            assert worker.engine.settler.on_settled is None

    asyncio.run(look())


def test_the_public_names_are_there():
    assert packhorse.Failure is Failure
    assert {"Failure", "post_failures", "sentry_failures"} <= set(packhorse.__all__)
