"""Five workers tick the same schedules while one after the other is killed or stopped (FAILURES B27, B28)."""

import os
import random
import signal
import time

import pytest

from packhorse import Packhorse
from packhorse.backends.base import Query
from packhorse.job import JobRecord
from tests.witness import Witness, boot_s

from .harness import Lab, Worker

FULL = os.environ.get("PACKHORSE_FULL") == "1"

#: Of a slot: how long after its instant it may become a job.
LATE_MS = 1_000
POLICIES = ("all", "latest", "skip")
#: The lease is longer than a machine stands still: that nothing ran twice is part of it.
OPTIONS = ("-c", "10", "--lease", "6s")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def jobs_of(lab: Lab, schedule: str) -> list[JobRecord]:
    """The jobs of a schedule by slot; it has a tag of its own name."""

    async def look(backend) -> list[JobRecord]:
        found, cursor = [], None
        while True:
            page = await backend.find(Query(tag=schedule, limit=1000, cursor=cursor))
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return found

    return sorted(lab.do(look), key=lambda job: job.slot_at_ms)


def define(lab: Lab) -> None:
    with Packhorse(lab.url) as app:
        for missed in POLICIES:
            app.define_schedule("work", {"ms": 1}, name=missed, every="1s", missed=missed, tags=[missed])


class Trouble:
    """When workers were stopped: one that is stopped while it writes holds all the others up until it goes on."""

    def __init__(self, witness: Witness) -> None:
        self.windows: list[tuple[int, int]] = []
        self._witness = witness

    def stop_for(self, worker: Worker, seconds: float) -> None:
        begin = now_ms()
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(seconds)  # how long it is stopped, not a wait for something
        os.kill(worker.pid, signal.SIGCONT)
        self.windows.append((begin, now_ms()))

    def covers(self, slot_ms: int) -> bool:
        if self.lost_ms(slot_ms - LATE_MS, slot_ms + 2 * LATE_MS) > LATE_MS / 4:
            return True
        return any(begin - LATE_MS <= slot_ms <= end for begin, end in self.windows)

    def lost_ms(self, begin_ms: int, end_ms: int) -> float:
        """How much of the time between two instants the machine did not have for us."""
        since_boot_ms = now_ms() - 1000 * boot_s()
        return 1000 * self._witness.lost_s((begin_ms - since_boot_ms) / 1000, (end_ms - since_boot_ms) / 1000)


def check(lab: Lab, first_ms: int, last_ms: int, trouble: Trouble) -> None:
    expected = list(range(-(-first_ms // 1000) * 1000, last_ms + 1, 1000))
    for missed in POLICIES:
        jobs = jobs_of(lab, missed)
        slots = [job.slot_at_ms for job in jobs]
        assert len(slots) == len(set(slots)), f"{missed}: a slot became two jobs"
        lost = sorted(set(expected) - set(slots))
        if missed == "all":
            assert not lost, f"slots were lost: {lost}"
        assert not [slot for slot in lost if not trouble.covers(slot)], (
            f"{missed}: slots were lost for no reason: {lost}"
        )
        late = {job.slot_at_ms: job.created_at_ms - job.slot_at_ms for job in jobs}
        assert min(late.values()) >= 0, f"{missed}: a slot became a job before its time"
        worst = {
            slot: ms
            for slot, ms in late.items()
            if ms > LATE_MS + trouble.lost_ms(slot, slot + ms) and not trouble.covers(slot) and slot in expected
        }
        assert not worst, f"{missed}: slots were late, ms: {worst}"


@pytest.mark.timeout(400)
def test_every_slot_once_and_on_time_while_workers_are_killed_and_stopped(lab: Lab, witness: Witness) -> None:
    rounds = 36 if FULL else 2
    chance = random.Random(20261122)
    trouble = Trouble(witness)
    workers = [lab.worker(*OPTIONS) for _ in range(5)]
    lab.until(lambda: len(lab.live_workers()) == 5, 60, "five workers are there")
    define(lab)
    first_ms = now_ms() + LATE_MS
    killed: set[int] = set()
    for number in range(rounds):
        index = chance.randrange(5)
        if number % 2:
            trouble.stop_for(workers[index], 2.5)
            time.sleep(2.5)  # the rhythm of the storm
        else:
            killed.update(workers[index].kill_all())
            time.sleep(1)
            workers[index] = lab.worker(*OPTIONS)
            time.sleep(4)
    last_ms = now_ms() - 2 * LATE_MS
    lab.until(lambda: jobs_of(lab, "all")[-1].slot_at_ms >= last_ms, 60, "the last slots")
    check(lab, first_ms, last_ms, trouble)
    again = {start.job: start.attempt for start in lab.lines() if start.attempt > 1}
    assert not [
        start for start in lab.lines() if start.attempt < again.get(start.job, 0) and start.pid not in killed
    ], "ran again although nobody was killed"


@pytest.mark.of_workers
def test_what_was_missed_while_no_worker_ran_comes_as_the_policy_says(lab: Lab) -> None:
    worker = lab.worker(*OPTIONS)
    lab.until(lambda: len(lab.live_workers()) == 1, 60, "the worker is there")
    define(lab)
    lab.until(lambda: all(jobs_of(lab, missed) for missed in POLICIES), 60, "the first slots")
    worker.kill_all()
    gone_ms = now_ms()
    time.sleep(3.5)  # while nobody ticks
    back_ms = now_ms()
    lab.worker(*OPTIONS)
    lab.until(lambda: jobs_of(lab, "all")[-1].slot_at_ms > back_ms + 2_000, 60, "slots go on")
    between = {
        missed: [job.slot_at_ms for job in jobs_of(lab, missed) if gone_ms + 100 < job.slot_at_ms <= back_ms]
        for missed in POLICIES
    }
    assert between["all"] == list(range(between["all"][0], between["all"][-1] + 1, 1000))
    assert len(between["all"]) >= 3
    # of several that are due at once the latest is still current: the others were missed
    assert len(between["latest"]) <= 1
    assert len(between["skip"]) <= 1
    slots = [job.slot_at_ms for job in jobs_of(lab, "all")]
    assert slots == list(range(slots[0], slots[-1] + 1, 1000))
