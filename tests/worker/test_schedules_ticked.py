"""Slots become jobs: by any number of tickers, by the store's clock, whatever one schedule among them is like."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from working import ended, faulty_app, new_app, until, work

from packhorse import State
from packhorse.backends.base import Firing, Keep, Query, Schedule, ScheduleChange, Verdict
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.errors import Unavailable
from packhorse.job import JobRecord, JobSpec
from packhorse.schedule import make_schedule
from packhorse.worker.ticker import Ticker
from tests.witness import Witness, boot_s

NOON = 1_700_000_000_000 // 3_600_000 * 3_600_000
SPEC = JobSpec(id="", type="t")


class Line:
    """One store by its own clock, and tickers at it, each with a clock of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOON)
        self.store = MemoryStore(self.clock)
        self.backend = MemoryBackend(self.store)
        self.firings: list[Firing] = []

    def ticker(self, skew_ms: int = 0) -> Ticker:
        line = self

        class Watched(MemoryBackend):
            async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
                line.firings += firings
                await asyncio.sleep(0)  # others plan the same meanwhile
                assert sum(len(firing.specs) for firing in firings) <= 1000
                return await super().fire(firings)

        return Ticker(Watched(self.store), Keep(), Chance(1), ManualClock(NOON + skew_ms))

    async def define(self, name: str = "s", **fields: Any) -> Schedule:
        fields = {"every": "1h", **fields} if "cron" not in fields else fields
        definition = make_schedule(name, fields.pop("spec", SPEC), **fields)
        return await self.put(definition)

    async def put(self, definition: Schedule) -> Schedule:
        made = await self.backend.schedules([ScheduleChange(name=definition.name, define=definition)])
        return next(one for one in made if one.name == definition.name)

    async def jobs(self) -> list[JobRecord]:
        return (await self.backend.find(Query(limit=1000, oldest_first=True))).jobs

    async def slots(self) -> list[int]:
        return sorted(job.slot_at_ms or 0 for job in await self.jobs())


def test_a_slot_becomes_one_job_when_it_is_due() -> None:
    async def main() -> None:
        line = Line()
        await line.define(spec=replace(SPEC, payload=b'{"a":1}', queue="q"))
        ticker = line.ticker()
        await ticker.tick()  # works the next slot out
        assert await ticker.tick() == 1_000
        line.clock.advance(3_600_000 - 400)
        assert await ticker.tick() == 400  # wakes when it is due, not when the second is over
        assert await line.jobs() == []
        line.clock.advance(400)
        await ticker.tick()
        (job,) = await line.jobs()
        assert (job.type, job.payload, job.queue, job.schedule, job.slot_at_ms, job.state) == (
            *("t", b'{"a":1}', "q", "s", NOON + 3_600_000, State.PENDING),
        )
        await ticker.tick()
        assert len(await line.jobs()) == 1

    work(main)


def test_five_tickers_make_each_slot_once() -> None:
    """FAILURES B28: all of them think that it is their turn."""

    async def main() -> None:
        line = Line()
        await line.define(every="1s", missed="all")
        tickers = [line.ticker() for _ in range(5)]
        await asyncio.gather(*(ticker.tick() for ticker in tickers))
        for _ in range(50):
            line.clock.advance(1_000)
            await asyncio.gather(*(ticker.tick() for ticker in tickers))
        assert await line.slots() == [NOON + 1_000 * count for count in range(1, 51)]
        assert len(line.firings) > 51  # several did try

    work(main)


@pytest.mark.parametrize("skew_ms", [3_600_000, -3_600_000])
def test_a_workers_clock_decides_nothing(skew_ms: int) -> None:
    """FAILURES B36: a worker whose clock is an hour off ticks as the others do."""

    async def main() -> None:
        line = Line()
        await line.define(every="1m", missed="all")
        right, wrong = line.ticker(), line.ticker(skew_ms)
        for count in range(1, 31):
            await asyncio.gather(wrong.tick(), right.tick())
            line.clock.advance(60_000)
            await wrong.tick()
            assert await line.slots() == [NOON + 60_000 * minute for minute in range(1, count + 1)]

    work(main)


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_a_jump_of_the_stores_clock_repeats_no_slot(jump_ms: int) -> None:
    async def main() -> None:
        line = Line()
        await line.define(every="1m")
        ticker = line.ticker()
        await ticker.tick()
        for jump in (0, jump_ms, -jump_ms, 0):
            line.clock.jump(jump)
            for _ in range(10):
                line.clock.advance(60_000)
                await ticker.tick()
        slots = await line.slots()
        assert len(slots) == len(set(slots)) >= 11

    work(main)


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("latest", [10]), ("all", list(range(1, 11)))])
def test_slots_while_no_worker_ran(missed: str, expected: list[int]) -> None:
    async def main() -> None:
        line = Line()
        await line.define(missed=missed)
        await line.ticker().tick()
        line.clock.advance(10 * 3_600_000 + 120_000)
        later = line.ticker()
        await later.tick()
        await later.tick()
        assert await line.slots() == [NOON + hours * 3_600_000 for hours in expected]
        line.clock.advance(3_600_000 - 120_000)
        await later.tick()
        assert (await line.slots())[-1] == NOON + 11 * 3_600_000

    work(main)


def test_many_missed_slots_come_a_thousand_at_a_time() -> None:
    async def main() -> None:
        line = Line()
        for name in ("a", "b"):
            await line.define(name, every="1s", missed="all")
        ticker = line.ticker()
        await ticker.tick()
        line.clock.advance(2_500_000)
        gaps = [await ticker.tick() for _ in range(4)]
        assert gaps[:3] == [20, 20, 20]  # more is waiting: soon, and not at once for ever
        counts = await line.backend.counts()
        assert counts["default"].states[State.PENDING] == 5_000

    work(main)


def test_a_pause_and_a_resume() -> None:
    async def main() -> None:
        line = Line()
        await line.define(missed="all")
        ticker = line.ticker()
        await ticker.tick()
        await line.backend.schedules([ScheduleChange(name="s", paused=True)])
        line.clock.advance(5 * 3_600_000)
        await ticker.tick()
        assert await line.jobs() == []
        await line.backend.schedules([ScheduleChange(name="s", paused=False)])
        line.clock.advance(3_600_000)
        await ticker.tick()
        await ticker.tick()
        assert await line.slots() == [NOON + 6 * 3_600_000]

    work(main)


def test_overlap_skip_leaves_out_slots_while_the_one_before_lives() -> None:
    async def main() -> None:
        line = Line()
        await line.define(overlap="skip")
        ticker = line.ticker()
        await ticker.tick()
        for _ in range(3):
            line.clock.advance(3_600_000)
            await ticker.tick()
        assert await line.slots() == [NOON + 3_600_000]
        (job,) = await line.jobs()
        await line.backend.cancel([job.id])
        line.clock.advance(3_600_000)
        await ticker.tick()
        assert await line.slots() == [NOON + 3_600_000, NOON + 4 * 3_600_000]

    work(main)


def test_jitter_delays_a_job_within_its_bounds() -> None:
    async def main() -> None:
        line = Line()
        await line.define(every="1m", jitter="30s")
        ticker = line.ticker()
        await ticker.tick()
        for _ in range(20):
            line.clock.advance(60_000)
            await ticker.tick()
        late = [job.due_at_ms - (job.slot_at_ms or 0) for job in await line.jobs()]
        assert len(late) == 20
        assert all(0 <= one <= 30_000 for one in late)
        assert len(set(late)) > 10

    work(main)


# ---- schedules that cannot be planned --------------------------------------------------------------------


def broken(name: str = "broken") -> Schedule:
    return Schedule(name=name, spec=SPEC, cron="@hourly", tz="Europe/Atlantis")


def test_one_that_cannot_be_planned_stops_no_other_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        line = Line()
        await line.put(broken())
        await line.put(Schedule(name="nonsense", spec=SPEC, cron="every now and then"))
        await line.define()
        ticker = line.ticker()
        for _ in range(5):
            await ticker.tick()
        line.clock.advance(3_600_000)
        for _ in range(5):
            await ticker.tick()
        assert await line.slots() == [NOON + 3_600_000]
        assert await ticker.tick() >= 250  # it does not look all the time for what it cannot do
        assert len(caplog.records) == 2
        assert "install tzdata" in caplog.text
        await line.put(replace(broken(), tz="UTC"))
        await ticker.tick()
        assert "can be planned again" in caplog.text

    with caplog.at_level(logging.INFO, "packhorse.ticker"):
        work(main)


def test_a_hundred_that_cannot_be_planned_let_others_through() -> None:
    async def main() -> None:
        line = Line()
        for number in range(250):
            await line.put(broken(f"a-broken-{number}"))
        await line.define("z-good")
        ticker = line.ticker()
        for _ in range(6):
            await ticker.tick()
        line.clock.advance(3_600_000)
        for _ in range(6):
            await ticker.tick()
        assert await line.slots() == [NOON + 3_600_000]
        left = {one.name: one for one in await line.backend.schedules()}
        assert {left[f"a-broken-{number}"].done_ms for number in range(250)} == {NOON}  # no slot of them is lost

    work(main)


# ---- in a worker -----------------------------------------------------------------------------------------


def test_a_worker_runs_slots_on_time(witness: Witness) -> None:
    app = new_app()
    starts: list[tuple[int, float]] = []

    @app.schedule(every="1s")
    @app.task
    async def often() -> None:
        starts.append((app.clock.now_ms(), boot_s()))

    async def main() -> None:
        async with app.worker():
            await until(lambda: len(starts) >= 3)
        late_s = [now_ms % 1_000 / 1_000 for now_ms, _ in starts]
        assert all(late < 0.5 + witness.lost_s(at - late, at) for late, (_, at) in zip(late_s, starts, strict=True)), (
            late_s
        )
        await app.aclose()

    work(main)


def test_a_store_that_is_away_delays_the_definitions_and_no_job() -> None:
    app, backend = faulty_app()
    done: list[int] = []

    @app.schedule(every="1h")
    @app.task
    async def often() -> None:
        done.append(1)

    away = [3]
    found = backend.schedules

    async def schedules(*args: Any) -> list[Schedule]:
        if away[0] > 0:
            away[0] -= 1
            raise Unavailable("away")
        return await found(*args)

    backend.schedules = schedules

    async def main() -> None:
        async with app.worker():
            await ended(app, await often.aenqueue())
            assert away[0] > 0
            await until(lambda: away[0] == 0)
            await until(lambda: backend.store.schedules)
        await app.aclose()

    work(main)
    assert done == [1]


def test_a_definition_that_the_store_refuses_stops_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    from packhorse.errors import InvalidOption

    app, backend = faulty_app()

    @app.schedule(every="1h")
    @app.task
    async def often() -> int:
        return 1

    async def schedules(*args: Any) -> list[Schedule]:
        raise InvalidOption("no room")

    backend.schedules = schedules

    async def main() -> None:
        async with app.worker():
            await ended(app, await often.aenqueue())
        await app.aclose()

    work(main)
    assert "no room" in caplog.text
