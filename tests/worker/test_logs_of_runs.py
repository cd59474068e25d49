"""The worker's lines about ends of runs: what they say, and how many there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from working import ended, new_app, until, work

from packhorse import Cancel, Fail, Retry, Snooze
from packhorse.backends.base import Settlement
from packhorse.clock import ManualClock
from packhorse.job import Claimed, JobError, State
from packhorse.observe.job_lines import LINES_MAX, JobLines
from packhorse.observe.labels import LabelBounds
from packhorse.observe.meters import Meters
from packhorse.observe.runs import Ended, Runs
from packhorse.outcome import SUCCEEDED, Kind, Outcome


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, log = Lines(), logging.getLogger("packhorse.jobs")
    log.addHandler(handler)
    log.setLevel("INFO")
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


# ---- what they say -----------------------------------------------------------------------------------------


def _fail() -> None:
    raise Fail("no such user\n2026 INFO paid")


def _retry() -> None:
    raise Retry("90s", "later")


def _snooze() -> None:
    raise Snooze("3s", "too early")


def _cancel() -> None:
    raise Cancel("not needed")


def _error() -> None:
    raise ValueError("broken")


async def _slow() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("handler", "options", "level", "text", "error"),
    [
        (lambda: None, {}, "INFO", "job succeeded", None),
        (_fail, {}, "ERROR", "job failed for good, attempt 1 of 4", "Fail: no such user\n2026 INFO paid"),
        (_error, {"max_attempts": 1}, "ERROR", "job failed for good, its only attempt", "ValueError: broken"),
        (
            _error,
            {"backoff": 0},
            "WARNING",
            "job failed and is tried again at once, attempt 2 of 4",
            "ValueError: broken",
        ),
        (_retry, {}, "WARNING", "job failed and is tried again in 1m30s, attempt 2 of 4", "Retry: later"),
        (_snooze, {}, "INFO", "job is put off by its handler for 3.0 s, it costs no attempt", "too early"),
        (_cancel, {}, "WARNING", "job is cancelled", "Cancel: not needed"),
        (
            _slow,
            {"timeout": "50ms", "max_attempts": 1},
            "ERROR",
            "job timed out for good, its only attempt",
            "TimedOut: still running after 0.05 s, its time-out",
        ),
    ],
    ids=["success", "fail", "last", "retry", "asked", "snooze", "cancel", "timeout"],
)
def test_an_end_is_one_line_with_its_fields(
    lines: Lines, handler: Callable[[], Any], options: dict[str, Any], level: str, text: str, error: str | None
) -> None:
    app = new_app()
    app.task("talk", **options)(handler)

    async def scenario() -> str:
        async with app.worker() as worker:
            job = await app.aenqueue("talk")
            await until(lambda: lines.records)
            id_of_worker = worker.engine.info.id
        await app.aclose()
        first = lines.records[0]
        assert (first.levelname, first.getMessage()) == (level, text)
        found = first.__dict__
        assert (found["job_id"], found["job_type"], found["queue"], found["attempt"]) == (job.id, "talk", "default", 1)
        assert found["worker"] == id_of_worker
        assert found.get("error") == error
        assert 0 <= found["duration_ms"] < 10_000

    work(scenario)


def test_a_job_that_nobody_knows_is_parked(lines: Lines) -> None:
    app = new_app()
    app.task("known")(lambda: None)

    async def scenario() -> None:
        async with app.worker():
            await app.aenqueue("unknown", {})
            await until(lambda: lines.records)
        await app.aclose()

    work(scenario)
    assert lines.texts[0] == "job is parked for a worker that can run it"


@pytest.mark.parametrize(("setting", "written"), [("some", LINES_MAX), ("all", 300), ("none", 0)])
def test_successes_under_load(lines: Lines, setting: str, written: int) -> None:
    app = new_app(log_jobs=setting)
    app.task("quick")(lambda: None)

    async def quick() -> None:
        return None

    app.task("quicker")(quick)

    async def scenario() -> None:
        jobs = await app.aenqueue_many([("quicker", {})] * 300)
        async with app.worker():
            for job in jobs:
                await ended(app, job)
        await app.aclose()

    work(scenario)
    singly = [text for text in lines.texts if text == "job succeeded"]
    sums = [text for text in lines.texts if "more jobs succeeded in the last" in text]
    told = sum(int(text.partition(" ")[0]) for text in sums)
    assert len(singly) >= written
    assert len(singly) + told == (0 if setting == "none" else 300)
    if setting == "some":
        assert len(singly) < 300
        assert sums[0].endswith(f": quicker {sums[0].partition(' ')[0]}")


# ---- how many there are ------------------------------------------------------------------------------------


class World:
    """A runner's runs, told by hand, and seconds that end when the test says so."""

    def __init__(self, log_jobs: str, types: list[str]) -> None:
        self.clock = ManualClock()
        self.runs = Runs(Meters(LabelBounds(types)).sheet())
        self.job_lines = JobLines(self.runs, "w1", self.clock, log_jobs)

    def succeed(self, job_type: str = "email", count: int = 1) -> None:
        """What the runner does for a plain success."""
        for _ in range(count):
            self.runs.cells("q", job_type).successes_ns.append(1_000_000)
            if self.runs.success_listeners:
                self.runs.tell_success(self._end(job_type, SUCCEEDED, State.SUCCEEDED))

    def fail(self, job_type: str = "email", count: int = 1, *, final: bool = False) -> None:
        for _ in range(count):
            state = State.FAILED if final else State.SCHEDULED
            self.runs.ended(self._end(job_type, Outcome(Kind.ERROR, error_kind="E", message="m"), state))

    def _end(self, job_type: str, outcome: Outcome, state: State) -> Ended:
        job = Claimed("j", "t", job_type, b"{}", 1, 4, 0, "q", 5, 0, 0)
        error = None if outcome is SUCCEEDED else JobError(attempt=1, at_ms=0, kind="E", message="m")
        settlement = Settlement(id="j", token="t", state=state, delay_ms=1_200, error=error)
        return Ended(job, outcome, settlement, 0, 1_000_000)

    @property
    def listens(self) -> bool:
        return bool(self.runs.success_listeners)

    def end_second(self) -> None:
        self.clock.advance(1_000)
        if self.job_lines._window is not None:
            self.job_lines._window.cancel()
            self.job_lines._end_window()


def in_world(
    test: Callable[[World], None], log_jobs: str = "some", types: tuple[str, ...] = ("email", "report")
) -> None:
    async def scenario() -> None:
        world = World(log_jobs, list(types))
        test(world)
        world.job_lines.close()

    work(scenario)


def test_of_a_seconds_successes_20_are_written_and_the_rest_is_one_line(lines: Lines) -> None:
    def test(world: World) -> None:
        world.succeed("email", 1_120)
        world.succeed("report", 104)
        assert not world.listens
        assert lines.texts == ["job succeeded"] * LINES_MAX
        world.end_second()
        assert lines.texts[LINES_MAX:] == ["1,204 more jobs succeeded in the last second: email 1,100, report 104"]

    in_world(test)


@pytest.mark.parametrize(("count", "sums"), [(LINES_MAX, 0), (LINES_MAX + 1, 1)])
def test_the_bound_itself(lines: Lines, count: int, sums: int) -> None:
    def test(world: World) -> None:
        for _ in range(2):
            before = len(lines.texts)
            world.succeed(count=count)
            world.end_second()
            assert len(lines.texts) - before == LINES_MAX + sums
            world.end_second()
            assert world.listens

    in_world(test)


def test_nobody_listens_while_the_seconds_lines_are_spent_and_no_timer_runs_when_idle(lines: Lines) -> None:
    def test(world: World) -> None:
        assert world.listens
        assert world.job_lines._window is None
        world.succeed(count=LINES_MAX)
        assert not world.listens
        world.end_second()
        assert world.listens
        world.end_second()
        assert world.job_lines._window is None

    in_world(test)


def test_failures_have_lines_of_their_own_and_those_for_good_too(lines: Lines) -> None:
    def test(world: World) -> None:
        world.succeed(count=100)
        world.fail(count=50)
        world.fail("report", count=2)
        world.fail(count=30, final=True)
        by_level = [record.levelname for record in lines.records]
        assert [by_level.count(level) for level in ("INFO", "WARNING", "ERROR")] == [LINES_MAX] * 3
        del lines.records[:]
        world.end_second()
        assert [(record.levelname, record.getMessage()) for record in lines.records] == [
            ("WARNING", "32 more jobs failed and are tried again in the last second: email 30, report 2"),
            ("ERROR", "10 more jobs failed for good in the last second: email 10"),
            ("INFO", "80 more jobs succeeded in the last second: email 80"),
        ]

    in_world(test)


def test_a_sum_names_five_types_and_unknown_ones_together(lines: Lines) -> None:
    types = tuple(f"t{n}" for n in range(8))

    def test(world: World) -> None:
        world.fail("t0", LINES_MAX)
        for number in range(8):
            world.fail(f"t{number}", 10 - number)
        world.fail("stranger\n1", 3)
        world.fail("stranger\n2", 3)
        world.end_second()
        assert lines.texts[-1] == (
            "58 more jobs failed and are tried again in the last second: t0 10, t1 9, t2 8, t3 7, t4 6, 4 other types"
        )

    in_world(test, types=types)


def test_all_writes_each_and_none_only_failures_for_good(lines: Lines) -> None:
    def all_of_them(world: World) -> None:
        world.succeed(count=100)
        world.fail(count=100)

    in_world(all_of_them, "all")
    assert len(lines.texts) == 200
    del lines.records[:]

    def none_of_them(world: World) -> None:
        assert not world.listens
        world.succeed(count=5)
        world.fail(count=5)
        world.fail(count=2, final=True)
        world.end_second()
        assert not world.listens

    in_world(none_of_them, "none")
    assert lines.texts == ["job failed for good, attempt 1 of 4"] * 2


def test_where_info_is_not_read_a_success_costs_nothing(lines: Lines) -> None:
    logging.getLogger("packhorse.jobs").setLevel("WARNING")

    def test(world: World) -> None:
        world.succeed(count=2)
        assert not world.listens
        world.end_second()
        assert lines.texts == []

    in_world(test)


def test_what_is_left_is_said_at_the_end(lines: Lines) -> None:
    in_world(lambda world: world.succeed(count=25))
    assert lines.texts[-1] == "5 more jobs succeeded in the last second: email 5"


def test_a_late_second_says_how_long_it_was(lines: Lines) -> None:
    def test(world: World) -> None:
        world.succeed(count=25)
        world.clock.advance(4_000)
        world.end_second()
        assert lines.texts[-1] == "5 more jobs succeeded in the last 5s: email 5"

    in_world(test)
