"""However a handler ends, its job gets one outcome with a reason, and the jobs beside it go on (row 15)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from process_jobs import Silent
from process_jobs import app as process_app
from process_jobs import end as end_in_process
from working import ended, new_app, work

from packhorse import Cancel, Context, Fail, Retry, Snooze, State
from packhorse.testing import ajobs


def end(how: str) -> Any:
    """End in one of many ways."""
    match how:
        case "value":
            return "fine"
        case "error":
            raise ValueError("boom")
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "stop iteration":
            raise StopIteration("done")
        case "stop async iteration":
            raise StopAsyncIteration
        case "generator exit":
            raise GeneratorExit
        case "cancelled":
            raise asyncio.CancelledError
        case "group":
            raise ExceptionGroup("many", [ValueError("first of many"), KeyError("second")])
        case "huge text":
            raise ValueError("x" * 10_000_000)
        case "bad str":
            raise Silent
        case "worse str":
            raise Worse
        case "nul and surrogate":
            raise ValueError("a\0b\ud800c")
        case "not json":
            return object()
        case "a set of things":
            return {1}
        case "too large":
            return "x" * (1 << 20)
        case "nan":
            return float("nan")
        case "cycle":
            cycle: list[Any] = []
            cycle.append(cycle)
            return cycle
        case "bad dump":
            return BadDump()
        case "recursion":
            return end("recursion")
        case "chained":
            try:
                raise KeyError("the first")
            except KeyError as error:
                raise ValueError("the second") from error
        case "control as a value":
            return Retry(1)
    raise AssertionError(how)


class Worse(Exception):
    """Ends the process of whoever asks for its text."""

    def __str__(self) -> str:
        raise SystemExit(9)


class BadDump:
    """Raises what is no Exception while it is written."""

    def model_dump(self, mode: str) -> Any:
        raise SystemExit


#: how → (state after one attempt of one, error kind, part of the message)
ENDINGS: dict[str, tuple[State, str, str]] = {
    "value": (State.SUCCEEDED, "", ""),
    "a set of things": (State.SUCCEEDED, "", ""),
    "error": (State.FAILED, "ValueError", "boom"),
    "exit": (State.FAILED, "SystemExit", "3"),
    "interrupt": (State.FAILED, "KeyboardInterrupt", ""),
    "stop iteration": (State.FAILED, "", "StopIteration"),
    "stop async iteration": (State.FAILED, "", ""),
    "generator exit": (State.FAILED, "GeneratorExit", ""),
    "cancelled": (State.FAILED, "CancelledError", ""),
    "group": (State.FAILED, "ExceptionGroup", "many"),
    "huge text": (State.FAILED, "ValueError", "characters left out"),
    "bad str": (State.FAILED, "Silent", "whose text raised RuntimeError"),
    "worse str": (State.FAILED, "Worse", "whose text raised SystemExit"),
    "nul and surrogate": (State.FAILED, "ValueError", "a\\0b\\ud800c"),
    "not json": (State.FAILED, "InvalidResult", "object cannot be written as JSON"),
    "too large": (State.FAILED, "InvalidResult", "at most"),
    "nan": (State.FAILED, "InvalidResult", "NaN"),
    "cycle": (State.FAILED, "InvalidResult", "nested deeper"),
    "bad dump": (State.FAILED, "InvalidResult", "cannot be stored"),
    "recursion": (State.FAILED, "RecursionError", "maximum recursion"),
    "chained": (State.FAILED, "ValueError", "the second"),
    "control as a value": (State.FAILED, "InvalidResult", "Retry cannot be written"),
}


@pytest.mark.parametrize("kind", ["async", "async, later", "thread", "async with context"])
def test_every_ending_is_an_outcome_and_harms_nobody(kind):
    app = new_app()

    if kind == "async":

        @app.task(max_attempts=1)
        async def handler(how: str) -> Any:
            return end(how)
    elif kind == "async, later":

        @app.task(max_attempts=1)
        async def handler(how: str) -> Any:
            await asyncio.sleep(0)
            return end(how)
    elif kind == "thread":

        @app.task(max_attempts=1)
        def handler(how: str) -> Any:
            return end(how)
    else:

        @app.task(max_attempts=1)
        async def handler(ctx: Context, how: str) -> Any:
            await asyncio.sleep(0)
            return end(how)

    started, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def neighbour() -> str:
        started.set()
        await release.wait()
        return "unharmed"

    async def scenario():
        async with app.worker(concurrency=3):
            beside = await neighbour.aenqueue()
            await started.wait()
            jobs = {how: await app.aenqueue(handler, {"how": how}) for how in ENDINGS}
            records = {how: await ended(app, job) for how, job in jobs.items()}
            release.set()
            assert await beside.aresult(60) == "unharmed"
            after = await app.aenqueue(handler, {"how": "value"})
            assert await after.aresult(60) == "fine"
        await app.aclose()
        return records

    records = work(scenario)
    for how, (state, error, message) in ENDINGS.items():
        record = records[how]
        assert record.state is state, how
        assert record.attempt == 1
        if state is State.FAILED:
            (only,) = record.errors
            assert not error or only.kind == error, how
            assert message in only.message or message in only.kind, how
            assert len(only.message) < 5_000
            assert len(only.traceback) < 17_000


@pytest.mark.parametrize(
    ("how", "state", "error", "message"),
    [
        ("value", State.SUCCEEDED, "", ""),
        ("error", State.FAILED, "ValueError", "from the child"),
        ("exit", State.FAILED, "SystemExit", "3"),
        ("interrupt", State.FAILED, "KeyboardInterrupt", ""),
        ("stop iteration", State.FAILED, "", ""),
        ("generator exit", State.FAILED, "GeneratorExit", ""),
        ("cancelled", State.FAILED, "CancelledError", ""),
        ("fork", State.SUCCEEDED, "", ""),
        ("huge text", State.FAILED, "ValueError", "characters left out"),
        ("bad str", State.FAILED, "Silent", "whose text raised RuntimeError"),
        ("not json", State.FAILED, "InvalidResult", "object cannot be written"),
        ("too large", State.FAILED, "InvalidResult", "at most"),
        ("nan", State.FAILED, "InvalidResult", "NaN"),
        ("recursion", State.FAILED, "RecursionError", "maximum recursion"),
        ("os._exit", State.FAILED, "ProcessDied", "exit code 7"),
        ("segfault", State.FAILED, "ProcessDied", "SIGSEGV"),
        ("kill", State.FAILED, "ProcessDied", "SIGKILL"),
        ("fail", State.FAILED, "Fail", "for good"),
        ("cancel", State.CANCELLED, "Cancel", "not needed"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_the_same_in_a_child_process(process_worker, how, state, error, message):
    """B3, B4: a child that dies counts as an attempt, ends after the last, and takes nobody with it."""
    record = process_worker(how, 1)
    assert record.state is state
    assert record.attempt == 1
    if state is not State.SUCCEEDED:
        assert not error or record.errors[0].kind == error
        assert message in record.errors[0].message


@pytest.fixture(scope="module")
def process_worker():
    """One worker for all of these, since a process takes its time to start; the children live on between jobs."""
    import threading

    ready = threading.Event()
    stop: dict[str, Any] = {}

    async def serve():
        stop["loop"], stop["event"] = asyncio.get_running_loop(), asyncio.Event()
        async with process_app.worker(concurrency=2):
            ready.set()
            await stop["event"].wait()
        await process_app.aclose()

    async def one(how: str, max_attempts: int):
        job = await end_in_process.using(max_attempts=max_attempts).aenqueue(how=how)
        return await ended(process_app, job, limit_s=60)

    thread = threading.Thread(target=lambda: work(serve, limit_s=3_600))  # for as long as the tests take
    thread.start()
    assert ready.wait(60)
    yield lambda how, attempts: asyncio.run_coroutine_threadsafe(one(how, attempts), stop["loop"]).result(100)
    stop["loop"].call_soon_threadsafe(stop["event"].set)
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["os._exit", "segfault"])
def test_a_job_that_kills_its_process_ends_after_its_attempts(process_worker, how):
    """B3: no loop without end."""
    record = process_worker(how, 3)
    assert (record.state, record.attempt, len(record.errors)) == (State.FAILED, 3, 3)


def test_a_traceback_tells_where_without_secrets_and_without_our_own_frames():
    """C20: no locals. A chain of causes is kept; a group tells its parts."""
    app = new_app()

    @app.task(max_attempts=1)
    async def handler(how: str) -> None:
        password = "hunter2-canary"  # noqa: F841
        await asyncio.sleep(0)
        end(how)

    async def scenario():
        jobs = [await app.aenqueue(handler, {"how": how}) for how in ("error", "chained", "group", "recursion")]
        await app.worker(burst=True).run()
        records = [await job.arecord() for job in jobs]
        await app.aclose()
        return [record.errors[0].traceback for record in records]

    plain, chained, group, recursion = work(scenario)
    for text in (plain, chained, group, recursion):
        assert "hunter2-canary" not in text.replace('password = "hunter2-canary"', "")
        assert text.startswith(("Traceback", "KeyError"))
        assert f"packhorse{os.sep}worker" not in text
    assert 'raise ValueError("boom")' in plain
    assert plain.endswith("ValueError: boom")
    assert "'the first'" in chained
    assert "first of many" in group
    assert "second" in group


def test_a_module_that_is_only_called_alike_is_not_ours():
    """Frames of `packhorse` are left out of tracebacks; those of `my_packhorse_jobs` are the user's."""
    app = new_app()
    names = {"__name__": "my_packhorse_jobs"}
    exec("async def handler():\n    inner()\ndef inner():\n    raise ValueError('x')", names)
    task = app.task(max_attempts=1)(names["handler"])

    async def scenario():
        job = await task.aenqueue()
        await app.worker(burst=True).run()
        record = await job.arecord()
        await app.aclose()
        return record.errors[0].traceback

    text = work(scenario)
    assert "in handler" in text
    assert "in inner" in text


# ---- what a handler may ask for ------------------------------------------------------------------------------

CONTROLS: dict[str, tuple[Any, State, int, bool]] = {
    # how: (raised, state, attempt afterwards, whether an error is recorded)
    "retry later": (lambda: Retry("1h", reason="busy"), State.SCHEDULED, 1, True),
    "retry by backoff": (Retry, State.SCHEDULED, 1, True),
    "snooze": (lambda: Snooze("1h"), State.SCHEDULED, 0, False),
    "fail": (lambda: Fail("for good"), State.FAILED, 1, True),
    "cancel": (lambda: Cancel("not needed"), State.CANCELLED, 1, True),
    "fail_on": (lambda: PermissionError("never"), State.FAILED, 1, True),
    "error": (lambda: ValueError("again"), State.SCHEDULED, 1, True),
    "bad retry": (lambda: Retry("soonish"), State.SCHEDULED, 1, True),
}


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_what_a_handler_raises_steers_its_job(executor):
    app = new_app()
    options: dict[str, Any] = {"backoff": "1h", "fail_on": (PermissionError,)}

    if executor == "async":

        @app.task(**options)
        async def handler(how: str) -> None:
            raise CONTROLS[how][0]()
    else:

        @app.task(**options)
        def handler(how: str) -> None:
            raise CONTROLS[how][0]()

    async def scenario():
        for how in CONTROLS:
            await app.aenqueue(handler, {"how": how}, tags=[how.replace(" ", ".")])
        await app.worker(burst=True).run()
        records = {how: (await ajobs(app, tag=how.replace(" ", ".")))[0] for how in CONTROLS}
        await app.aclose()
        return records

    records = work(scenario)
    for how, (_, state, attempt, has_error) in CONTROLS.items():
        record = records[how]
        assert (record.state, record.attempt, len(record.errors)) == (state, attempt, int(has_error)), how
    assert records["retry later"].errors[0].message == "busy"
    assert 3_599_000 <= records["retry later"].due_at_ms - records["retry later"].errors[0].at_ms <= 3_601_000
    assert 0 <= records["error"].due_at_ms - records["error"].errors[0].at_ms <= 3_601_000
    assert "soonish" in records["bad retry"].errors[0].message


@pytest.mark.parametrize(("how", "state"), [("retry", State.SCHEDULED), ("snooze", State.SCHEDULED)])
def test_controls_cross_from_a_child_process(process_worker, how, state):
    async def one():
        job = await end_in_process.using(queue=how).aenqueue(how=how)
        await process_app.worker(burst=True, queues=[how]).run()
        record = await job.arecord()
        await process_app.aclose()
        return record

    record = work(one)
    assert (record.state, record.attempt) == (state, 1 if how == "retry" else 0)


def test_retries_end_with_the_last_attempt():
    app = new_app()
    attempts = []

    @app.task(max_attempts=3, backoff=0)
    async def handler(ctx: Context, ask: bool) -> None:
        attempts.append(ctx.attempt)
        if ask:
            raise Retry(0)
        raise ValueError("again")

    async def scenario():
        for ask in (False, True):
            job = await handler.aenqueue(ask=ask)
            async with app.worker():
                record = await ended(app, job)
            assert (record.state, record.attempt, len(record.errors)) == (State.FAILED, 3, 3)
            assert [error.attempt for error in record.errors] == [1, 2, 3]
        await app.aclose()

    work(scenario)
    assert attempts == [1, 2, 3] * 2


def test_a_snoozed_job_keeps_its_attempts_however_often():
    app = new_app()
    runs = []

    @app.task(max_attempts=1)
    async def handler(ctx: Context) -> str:
        runs.append(ctx.attempt)
        if len(runs) < 5:
            raise Snooze(0)
        return "at last"

    async def scenario():
        job = await handler.aenqueue()
        async with app.worker():
            assert await job.aresult(60) == "at last"
        await app.aclose()

    work(scenario)
    assert runs == [1] * 5
