"""What log lines carry while a job runs, and what is kept of them with the job."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import logging_jobs
import msgspec
import pytest
from logging_jobs import app as process_app
from working import ended, faulty_app, new_app, until, work

from packhorse import Context, Packhorse, Unavailable
from packhorse.backends.base import Rerun
from packhorse.backends.opening import open_backend
from packhorse.job import LOG_BYTES_MAX, STEPS_BYTES_MAX, Claimed, State
from packhorse.observe.job_log import LINES_MAX, AttemptLog, RunLogs, read_logs
from packhorse.observe.logs import stamp_records
from packhorse.worker import logkeeper
from tests.http.kit import served
from tests.owning import own
from tests.witness import at_most

shop = logging.getLogger("shop")


class Kept(logging.Handler):
    """Keeps records, as a handler of the program's own would get them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, *loggers: str) -> list[logging.LogRecord]:
        return [record for record in self.records if record.name in loggers]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A program that has configured its loggers: INFO and above, with a handler of its own."""
    handler = Kept()
    loggers = [logging.getLogger(name) for name in ("shop", "library", "packhorse")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("INFO")
    yield handler
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


async def run_one(app: Packhorse, task: Any, payload: Any = None, **options: Any) -> Any:
    """Run one job to its end; answers its record."""
    async with app.worker(lease="2s", queues=["default", "q1"]):
        return await ended(app, await app.aenqueue(task, payload, **options))


def once(app: Packhorse, task: Any, payload: Any = None, **options: Any) -> Any:
    async def scenario() -> Any:
        try:
            return await run_one(app, task, payload, **options)
        finally:
            await app.aclose()

    return work(scenario)


def messages(log: AttemptLog) -> list[str]:
    return [line.message for line in log.lines]


# ---- what records carry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_every_line_of_a_run_carries_its_job(kept: Kept, executor: str) -> None:
    app = new_app()

    def speak(ctx: Context) -> None:
        shop.info("from the handler")
        logging.getLogger("library").warning("from a library")
        ctx.log.info("from the context")

    async def on_loop(ctx: Context) -> None:
        await asyncio.sleep(0.001)
        speak(ctx)
        await asyncio.create_task(asyncio.to_thread(speak, ctx))

    task = app.task("talk", queue="q1")(on_loop if executor == "async" else speak)
    record = once(app, task)
    lines = kept.of("shop", "library", "packhorse.job")
    assert len(lines) == (6 if executor == "async" else 3)
    for line in lines:
        found = line.__dict__
        assert (found["job_id"], found["job_type"], found["queue"], found["attempt"]) == (record.id, "talk", "q1", 1)
        assert found["worker"] == lines[0].__dict__["worker"] != ""
        assert logging.Formatter("%(job_id)s %(message)s").format(line).startswith(record.id)


def test_jobs_at_once_do_not_mix_up(kept: Kept) -> None:
    app = new_app()

    @app.task
    async def talk(n: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0.001)
            shop.info("%d", n)

    async def scenario() -> None:
        jobs = [await talk.aenqueue(n=n) for n in range(10)]
        async with app.worker():
            for job in jobs:
                await ended(app, job)
        by_id = {job.id: str(n) for n, job in enumerate(jobs)}
        assert len(kept.of("shop")) == 30
        assert all(by_id[line.__dict__["job_id"]] == line.getMessage() for line in kept.of("shop"))
        for job in jobs:
            (log,) = read_logs((await job.arecord()).steps)
            assert messages(log) == [by_id[job.id]] * 3
        await app.aclose()

    work(scenario)


def test_lines_outside_of_runs_carry_none(kept: Kept) -> None:
    app = new_app()
    app.task("talk")(lambda: shop.info("inside"))

    async def scenario() -> None:
        await run_one(app, "talk")
        shop.info("outside")
        await app.aclose()

    work(scenario)
    inside, outside = kept.of("shop")
    assert hasattr(inside, "job_id")
    assert not hasattr(outside, "job_id")


@pytest.mark.parametrize("how", ["async", "blocking"])
def test_a_connection_that_a_job_was_the_first_to_ask_for_is_not_of_that_job(kept: Kept, how: str) -> None:
    """It lives on, and so do the tasks that its driver starts when it is opened."""
    app = new_app()
    other, backend = faulty_app()
    opening = backend.open

    async def open_and_say() -> None:
        logging.getLogger("library").info("connected")
        await opening()

    backend.open = open_and_say  # type: ignore[method-assign]

    async def in_loop() -> None:
        shop.info("inside")
        await other.aenqueue("there")
        await other.aclose()

    def in_thread() -> None:
        shop.info("inside")
        other.enqueue("there")
        other.close()

    app.task("ask")(in_loop if how == "async" else in_thread)
    record = once(app, "ask")
    assert record.state is State.SUCCEEDED, record.errors
    inside, connected = kept.of("shop", "library")
    assert inside.job_id == record.id
    assert not hasattr(connected, "job_id")


def test_extra_may_use_the_same_names(kept: Kept) -> None:
    """`logging` raises for an `extra` that is there already: a handler must not fail because packhorse runs it."""
    app = new_app()

    @app.task("talk")
    async def talk() -> None:
        shop.info("mine", extra={"queue": "rabbit", "worker": 3, "job_id": "x", "own": 1})

    assert once(app, talk).state is State.SUCCEEDED
    (line,) = kept.of("shop")
    assert (line.__dict__["queue"], line.__dict__["worker"], line.__dict__["own"]) == ("rabbit", 3, 1)


def test_records_travel_to_other_processes_and_queues(kept: Kept) -> None:
    app = new_app()
    app.task("talk")(lambda: shop.info("inside"))
    record = once(app, "talk")
    (line,) = kept.of("shop")
    for copied in (copy.copy(line), pickle.loads(pickle.dumps(line))):
        assert copied.__dict__["job_id"] == record.id


def test_a_factory_that_uses_the_same_names_costs_no_job_its_end(kept: Kept) -> None:
    """logging refuses `extra=` with what a record has already: our line about an end must not raise in the runner."""
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.queue, record.worker, record.trace_id = "theirs", "theirs", "theirs"
        return record

    app = new_app()

    @app.task(max_attempts=1)
    async def broken() -> None:
        raise ValueError

    try:
        logging.setLogRecordFactory(make)
        record = once(app, broken)
        # One that was set after ours cannot be kept from it: the line is lost, the job is not.
        stamping = logging.getLogRecordFactory()

        def make_later(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = stamping(*args, **kwargs)
            record.__dict__ = dict(record.__dict__, queue="theirs")
            return record

        @app.task
        async def breaks_logging() -> None:
            logging.setLogRecordFactory(make_later)
            raise ValueError

        later = once(app, breaks_logging, max_attempts=1)
    finally:
        logging.setLogRecordFactory(before)
    assert (record.state, later.state) == (State.FAILED, State.FAILED)
    (line,) = [one for one in kept.of("packhorse.jobs") if one.job_id == record.id]
    assert (line.queue, line.trace_id) == ("default", "theirs")
    assert not [one for one in kept.of("packhorse.runner") if one.levelname == "CRITICAL"]


def test_the_record_factory_is_wrapped_once_and_keeps_the_one_that_was_there() -> None:
    before = logging.getLogRecordFactory()
    made: list[str] = []

    def own(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        made.append(name)
        return logging.LogRecord(name, *args, **kwargs)

    try:
        logging.setLogRecordFactory(own)
        stamp_records()
        wrapped = logging.getLogRecordFactory()
        stamp_records()
        assert logging.getLogRecordFactory() is wrapped
        shop.warning("x")
        assert made == ["shop"]
    finally:
        logging.setLogRecordFactory(before)


def test_a_worker_in_a_program_leaves_its_logging_as_it_is() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, list(logging.getLogger("packhorse").handlers))
    app = new_app()
    app.task("talk")(lambda: None)
    once(app, "talk")
    assert (list(root.handlers), root.level, list(logging.getLogger("packhorse").handlers)) == before


# ---- what is kept with the job -----------------------------------------------------------------------------


@asynccontextmanager
async def store_at(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    match request.param:
        case "memory":
            yield "memory://kept-logs"
        case "sqlite":
            yield f"sqlite:///{tmp_path}/jobs.db"
        case "http":
            async with served() as url:
                yield url
        case server:
            yield request.getfixturevalue(f"{server}_url")


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param in {"postgres", "redis"}:
        request.getfixturevalue(f"{request.param}_url")
    return lambda: store_at(request, tmp_path)


def test_a_log_is_kept_on_every_store_for_each_attempt(kept: Kept, store: Any) -> None:
    async def scenario() -> None:
        async with store() as url:
            app = Packhorse(url)
            if url.startswith("sqlite"):
                await open_backend(url).migrate()

            @app.task("talk", max_attempts=2, backoff=0)
            async def talk(ctx: Context) -> None:
                shop.info("attempt %d\nof \x1b[31mred\u202e", ctx.attempt)
                if ctx.attempt == 1:
                    raise ValueError("not yet")
                try:
                    raise KeyError("inner")
                except KeyError:
                    shop.exception("it broke")

            record = await run_one(app, talk)
            assert record.state is State.SUCCEEDED
            first, second = read_logs(record.steps)
            assert (first.attempt, messages(first)) == (1, ["attempt 1\nof \x1b[31mred\u202e"])
            assert (second.attempt, messages(second)) == (
                2,
                ["attempt 2\nof \x1b[31mred\u202e", "it broke (KeyError: 'inner')"],
            )
            assert [(line.level, line.logger) for line in second.lines] == [("info", "shop"), ("error", "shop")]
            assert abs(second.lines[0].at_ms - record.started_at_ms) < 60_000  # the same clock
            await app.aclose()

    work(scenario)


def test_what_a_running_job_logs_is_kept_about_a_second_later(kept: Kept) -> None:
    app = new_app()
    go_on = asyncio.Event()

    @app.task
    async def talk() -> None:
        shop.info("begun")
        await go_on.wait()

    async def scenario() -> None:
        async with app.worker():
            job = await talk.aenqueue()

            async def is_kept() -> bool:
                logs = read_logs((await job.arecord()).steps)
                return bool(logs) and messages(logs[0]) == ["begun"]

            with at_most(5):
                await until(is_kept)
            assert (await job.arecord()).state is State.RUNNING
            go_on.set()
            await ended(app, job)
        await app.aclose()

    work(scenario)


@pytest.mark.parametrize(("count", "left_out"), [(LINES_MAX, 0), (LINES_MAX + 1, 1)])
def test_the_latest_200_lines_are_kept(kept: Kept, count: int, left_out: int) -> None:
    app = new_app()

    @app.task
    def talk() -> None:
        for number in range(count):
            shop.info("%d", number)

    (log,) = read_logs(once(app, talk).steps)
    assert log.left_out == left_out
    assert messages(log) == [str(number) for number in range(left_out, count)]


@pytest.mark.parametrize("text", ["x" * 5_000, "\x01" * 1_500], ids=["long", "escapes"])
def test_a_log_has_at_most_32_kib_and_a_line_2000_characters(kept: Kept, text: str) -> None:
    app = new_app()

    @app.task
    def talk() -> None:
        for number in range(60):
            shop.info("%d %s %d", number, text, number)

    record = once(app, talk)
    ((name, data),) = record.steps.items()
    assert name == "~log.1"
    assert LOG_BYTES_MAX - 13_000 < len(data) <= LOG_BYTES_MAX
    (log,) = read_logs(record.steps)
    assert log.left_out + len(log.lines) == 60
    assert all(1_000 < len(line.message) <= 2_000 for line in log.lines)
    assert log.lines[-1].message.startswith("59 ")
    assert log.lines[-1].message.endswith(" 59")


def test_the_latest_eight_attempts_are_kept(kept: Kept) -> None:
    app = new_app()

    @app.task(max_attempts=10, backoff=0)
    async def talk(ctx: Context) -> None:
        shop.info("attempt %d", ctx.attempt)
        raise ValueError("again")

    record = once(app, talk)
    assert [log.attempt for log in read_logs(record.steps)] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert len(record.steps) == 8


def test_levels_below_the_setting_are_not_kept_and_off_keeps_none(kept: Kept) -> None:
    for setting, found in (("warning", ["loud"]), ("off", [])):
        app = new_app(keep_log=setting)

        @app.task("talk")
        def talk() -> None:
            shop.info("quiet")
            shop.warning("loud")

        logs = read_logs(once(app, talk).steps)
        assert [line for log in logs for line in messages(log)] == found


def test_a_job_that_logs_nothing_keeps_nothing_and_costs_no_call(kept: Kept) -> None:
    app, backend = faulty_app()
    app.task("quiet")(lambda: None)
    assert once(app, "quiet").steps is None
    notes = [size for verb, size in backend.calls if verb == "settle"]
    assert notes == [1]


def test_what_a_collection_ends_may_log_while_a_line_is_kept() -> None:
    """asyncio itself logs from `__del__`: the same thread comes back while it holds the lock of the logs."""

    class Dying:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            logs.add(job, [b'"from the collector"'])

    def boot_ms() -> int:
        gc.collect()  # as any allocation may
        return 0

    logs = RunLogs(logging.INFO, boot_ms, lambda: None)
    job = Claimed("j", "t", "talk", b"null", 1, 1, 0, "default", 0, 0, 0)
    Dying()
    adding = threading.Thread(target=logs.add, args=(job, [b'"first"']), daemon=True)
    adding.start()
    adding.join(60)
    assert not adding.is_alive()
    (note,) = logs.notes(10, 10_000)
    assert b'"from the collector","first"' in note.result


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_copy_that_a_handler_forks_logs_without_the_locks_of_its_parent(executor: str) -> None:
    """What held a lock when it was forked is not there to let go of it."""
    app = process_app if executor == "process" else new_app()
    if executor == "thread":
        app.task("fork", executor="thread")(logging_jobs.fork)
    record = once(app, "fork", max_attempts=1)
    assert record.result == b"0", record.errors
    (log,) = read_logs(record.steps)
    assert messages(log) == ["before", "after"]


def test_progress_is_told_though_who_sent_it_along_gave_up(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that takes too long is given up with the heartbeat that carries it; others' progress was in that too."""
    monkeypatch.setattr(logkeeper, "_ENDED_S_MAX", 0.1)
    app, backend = faulty_app()
    go_on = asyncio.Event()
    heartbeat = backend.heartbeat
    waiting: list[Any] = []

    async def slow_for_logs(worker: Any, lease_ms: int, notes: Any = ()) -> Any:
        if any(note.step for note in notes) and not waiting:
            waiting.append(notes)
            await asyncio.sleep(60)
        return await heartbeat(worker, lease_ms, notes)

    running: list[Context] = []

    @app.task
    async def long(ctx: Context) -> None:
        running.append(ctx)
        await go_on.wait()

    @app.task
    async def talk() -> None:
        running[0].progress(0.5)
        shop.info("x")

    async def scenario() -> None:
        async with app.worker(lease="30s"):
            job = await long.aenqueue()
            await until(lambda: running)
            backend.heartbeat = slow_for_logs  # type: ignore[method-assign]
            await ended(app, await talk.aenqueue())
            assert waiting

            async def progress() -> Any:
                return (await job.arecord()).progress

            assert await until(progress) == 0.5
            go_on.set()
            await ended(app, job)
        await app.aclose()

    work(scenario)


def test_steps_and_logs_of_a_job_do_not_meet(kept: Kept) -> None:
    """A log is no step: it takes none of their room, and no step can have its name."""
    app = new_app()
    done: list[str] = []

    @app.task(max_attempts=2, backoff=0)
    async def talk(ctx: Context) -> None:
        shop.info("x" * 1_900)
        for number in range(4):
            await ctx.step(f"s{number}", lambda n=number: done.append(str(n)) or "y" * (STEPS_BYTES_MAX // 4 - 2))
        if ctx.attempt == 1:
            raise ValueError("again")

    record = once(app, talk)
    assert record.state is State.SUCCEEDED, record.errors
    assert done == ["0", "1", "2", "3"]
    assert set(record.steps) == {"s0", "s1", "s2", "s3", "~log.1", "~log.2"}


def test_a_rerun_with_the_same_payload_keeps_the_log_and_another_payload_drops_it(kept: Kept) -> None:
    app = new_app()

    @app.task("talk", max_attempts=1)
    async def talk(n: int = 1) -> None:
        shop.info("n=%d", n)

    async def scenario() -> None:
        record = await run_one(app, talk)
        backend = await app.backend()
        await backend.rerun([Rerun(id=record.id)])
        (again,) = await backend.get([record.id])
        assert again.steps == record.steps
        async with app.worker():
            await ended(app, record)
        await backend.rerun([Rerun(id=record.id, payload=b'{"n":2}')])
        (edited,) = await backend.get([record.id])
        assert edited.steps is None
        await app.aclose()

    work(scenario)


def test_what_is_logged_after_the_end_of_a_run_does_not_reach_its_log(kept: Kept) -> None:
    app = new_app()
    late = asyncio.Event()

    async def linger() -> None:
        await late.wait()
        shop.info("too late")

    lingering: list[asyncio.Task[None]] = []

    @app.task
    async def talk() -> None:
        shop.info("in time")
        lingering.append(asyncio.get_running_loop().create_task(linger()))

    async def scenario() -> None:
        async with app.worker(lease="1s") as worker:
            job = await talk.aenqueue()
            await ended(app, job)
            late.set()
            await asyncio.gather(*lingering)
            logs = worker.engine.logs.logs
            assert len(logs) == 1  # for now
            await until(lambda: len(logs) == 0)
            (log,) = read_logs((await job.arecord()).steps)
            assert messages(log) == ["in time"]
        await app.aclose()

    work(scenario)


def test_a_store_that_is_away_holds_up_no_handler_and_no_log(kept: Kept) -> None:
    """A wedged store does not block logging; what was logged is there when it answers again."""
    app, backend = faulty_app()
    said = asyncio.Event()
    go_on = asyncio.Event()

    @app.task
    async def talk() -> None:
        for number in range(50):
            shop.info("%d", number)
        said.set()
        await go_on.wait()

    def away() -> None:
        raise Unavailable("away")

    async def scenario() -> None:
        async with app.worker(lease="30s"):
            job = await talk.aenqueue()
            backend.fail["heartbeat"] = away
            await said.wait()
            tries = len([verb for verb, _ in backend.calls if verb == "heartbeat"])
            await until(lambda: len([verb for verb, _ in backend.calls if verb == "heartbeat"]) >= tries + 2)
            del backend.fail["heartbeat"]
            go_on.set()
            record = await ended(app, job)
            (log,) = read_logs(record.steps)
            assert messages(log) == [str(number) for number in range(50)]
        await app.aclose()

    work(scenario)


def test_a_log_that_cannot_be_kept_does_not_hold_up_the_end(kept: Kept) -> None:
    app, backend = faulty_app()
    app.task("talk")(lambda: shop.info("x"))

    def away() -> None:
        raise Unavailable("away")

    async def scenario() -> None:
        async with app.worker(lease="30s"):
            await until(lambda: ("heartbeat", 0) in backend.calls or True)
            backend.fail["heartbeat"] = away
            record = await ended(app, await app.aenqueue("talk"))
            assert record.state is State.SUCCEEDED
            del backend.fail["heartbeat"]
        await app.aclose()

    work(scenario)


def test_a_transaction_left_open_by_one_job_keeps_no_other_log_waiting(kept: Kept, postgres_url: str) -> None:
    app = Packhorse(postgres_url)
    go_on = asyncio.Event()

    @app.task
    async def hold(ctx: Context) -> None:
        shop.info("before")
        async with own("asyncpg", postgres_url) as one:
            await ctx.settle_in(one.raw)
            shop.info("after")
            await go_on.wait()
            await one.commit()

    @app.task
    async def talk() -> None:
        shop.info("beside it")
        await go_on.wait()

    @app.task
    async def quick() -> None:
        shop.info("quick")

    async def scenario() -> None:
        async with app.worker():
            holding = await hold.aenqueue()
            await until(lambda: "after" in [record.getMessage() for record in kept.of("shop")])
            beside = await talk.aenqueue()
            with at_most(4):  # less than the server waits for a lock
                record = await ended(app, await quick.aenqueue())
            assert [messages(log) for log in read_logs(record.steps)] == [["quick"]]

            async def is_kept() -> bool:
                return bool(read_logs((await beside.arecord()).steps))

            with at_most(4):
                await until(is_kept)
            go_on.set()
            assert (await ended(app, holding)).state is State.SUCCEEDED
            await ended(app, beside)
        await app.aclose()

    work(scenario)


def test_a_message_that_cannot_be_written_harms_nothing(kept: Kept) -> None:
    app = new_app()

    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no text for you")

    @app.task
    async def talk() -> None:
        logging.raiseExceptions = False
        shop.info("%s", Rude())
        shop.info("%d and %d", 1)

    try:
        record = once(app, talk)
    finally:
        logging.raiseExceptions = True
    assert record.state is State.SUCCEEDED
    assert messages(read_logs(record.steps)[0]) == [
        "%s (RuntimeError while this was written)",
        "%d and %d (TypeError while this was written)",
    ]


def test_c20_passwords_in_urls_are_not_kept(kept: Kept) -> None:
    app = new_app()
    app.task("talk")(lambda: shop.info("calling https://user:canary-1@example.com/x?token=canary-2&n=1"))
    record = once(app, "talk")
    assert b"canary" not in b"".join(record.steps.values())
    assert messages(read_logs(record.steps)[0]) == ["calling https://user:***@example.com/x?token=***&n=1"]


def test_strange_values_under_the_names_of_logs_are_no_logs() -> None:
    assert read_logs(None) == []
    assert read_logs({"~log.1": b"null", "~log.2": b"{", "~log.3": b'{"attempt":"x"}', "step": b"{}"}) == []
    log = AttemptLog(3, 1, [])
    assert read_logs({"~log.3": msgspec.json.encode(log), "~log.4": b"[" * 200_000}) == [log]


# ---- child processes ---------------------------------------------------------------------------------------


def test_what_a_child_process_logs_is_kept_with_the_job() -> None:
    record = once(process_app, "sell", {"times": 2})
    assert record.state is State.SUCCEEDED, record.errors
    (log,) = read_logs(record.steps)
    assert [(line.logger, line.level) for line in log.lines] == [
        ("shop", "info"),
        ("shop", "info"),
        ("library.inner", "warning"),
        ("packhorse.job", "error"),
    ]
    pid = messages(log)[0].rpartition(" ")[2]
    assert pid != str(os.getpid())
    assert messages(log) == [f"sold 0 in {pid}", f"sold 1 in {pid}", "low stock", "gone"]


def test_the_bounds_hold_for_a_child_process() -> None:
    (log,) = read_logs(once(process_app, "sell", {"times": 1_000}).steps)
    assert len(log.lines) == LINES_MAX
    assert log.left_out == 1_002 - LINES_MAX
    assert messages(log)[-1] == "gone"


def test_the_last_words_of_a_child_that_dies_are_kept() -> None:
    record = once(process_app, "die_talking", {"marks": ""})
    assert record.state is State.FAILED
    assert messages(read_logs(record.steps)[0]) == ["last words"]


# ---- the lines of a real worker ----------------------------------------------------------------------------

_PROGRAM = """
import logging
{configured}
from packhorse import Packhorse
app = Packhorse()
log = logging.getLogger("shop")

@app.task(max_attempts=1)
def talk():
    log.info("inside\\n2026 INFO paid")
    raise ValueError("canary-secret is fine here")

@app.task(executor="process")
def child():
    log.info("in a child")
"""


@pytest.mark.parametrize("configured", ["", "logging.basicConfig(level='INFO', format='OWN %(job_id)s %(message)s')"])
def test_a_worker_process_writes_each_line_once(tmp_path: Path, configured: str) -> None:
    (tmp_path / "shop_app.py").write_text(_PROGRAM.format(configured=configured))
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Packhorse(url) as app:
        ids = [app.enqueue("talk", {}, max_attempts=1).id, app.enqueue("child", {}).id]
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", "worker", "shop_app", "--burst", "--log-format", "json"],
        cwd=tmp_path,
        env={**os.environ, "PACKHORSE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [msgspec.json.decode(line) for line in done.stderr.splitlines() if line.startswith("{")]
    inside = [line for line in lines if line["logger"] == "shop"]
    if configured:
        assert inside == []
        assert done.stderr.count(f"OWN {ids[0]} inside") == 1
        assert done.stderr.count(f"OWN {ids[1]} in a child") == 1
    else:
        assert {(line["message"], line["job_id"]) for line in inside} == {
            ("inside\n2026 INFO paid", ids[0]),
            ("in a child", ids[1]),
        }
        assert len({line["worker"] for line in inside}) == 1
    (failed,) = [line for line in lines if line["logger"] == "packhorse.jobs" and line["level"] == "error"]
    assert failed["job_id"] == ids[0]
    assert failed["message"] == "job failed for good, its only attempt"
    assert failed["error"] == "ValueError: canary-secret is fine here"
    assert failed["duration_ms"] > 0
    assert failed["traceback"].endswith("ValueError: canary-secret is fine here")
