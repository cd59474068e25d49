"""The promise of DESIGN section 1, kept by the real worker in every world: the seeds, and what they cover.

`PACKHORSE_SIM_SEEDS` says how many seeds (300; CI runs 1,000). A seed that fails is told with its trace; replay it
with `python -m packhorse.testing.simulator --seed N --trace`, and when it is mended add it to seeds.txt.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packhorse.testing.simulator import run_seed
from packhorse.testing.simulator.running import Summary, excerpt, run_many
from packhorse.testing.simulator.storm import KINDS as FAULTS
from packhorse.testing.simulator.work import KINDS, STEPS

SEEDS = int(os.environ.get("PACKHORSE_SIM_SEEDS", "300"))
ONCE_FAILED = [
    line.split(maxsplit=1)
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module")
def summary() -> Summary:
    *_, last = run_many(range(SEEDS))
    return last


@pytest.mark.timeout(900)
def test_the_promise_is_kept(summary):
    assert summary.seeds == SEEDS
    assert not summary.failed, "\n\n".join(excerpt(report) for report in summary.failed[:3])


@pytest.mark.parametrize(("seed", "why"), ONCE_FAILED, ids=[seed for seed, _ in ONCE_FAILED])
def test_seeds_that_once_failed(seed, why):
    report = run_seed(int(seed))
    assert report.violation is None, f"{why}\n{excerpt(report)}"


@pytest.mark.skipif(SEEDS < 200, reason="few seeds need not cover everything")
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "ambush"])
def test_every_fault_strikes(summary, fault):
    assert summary.counted[fault] >= SEEDS // 10


@pytest.mark.skipif(SEEDS < 200, reason="few seeds need not cover everything")
@pytest.mark.parametrize(
    "event",
    [
        "start", "lapsed", "stale settle", "snoozed", "released unstarted", "released after its start",
        "cancel: done", "cancel: requested", "cancel: ended", "cancelled instead of run again", "rerun: done",
        "rerun: live", "unique conflict", "pause", "resume", "request lost", "reply lost", "slow call", "bell missed",
        "ambush: claim sent", "ambush: claim done", "ambush: settle done", "ambush: retire sent",
        "ambush: heartbeat done",
        "freed by parents", "freed by a parent that failed", "cancelled by a parent", "revived with a parent",
        "rerun with another payload", "rerun: conflict", "delete: done", "delete: live",
        "dropped", "limit declared", "limit set", "limit changed",
        "start under a limit", "held back by rate", "held back by concurrency",
        "a turn of another key", "replaced", "refused: UniqueConflict", "refused: QueueFull",
        "left out for its key", "capacity set", "schedule defined", "schedule redefined", "schedule paused",
        "schedule removed", "slot fired", "slot skipped", "slots made good", "fire: stale",
        "step kept", "step kept again", "step answered",
    ],
)  # fmt: skip
def test_every_event_happens(summary, event):
    assert summary.counted.get(event, 0) > 0


@pytest.mark.skipif(SEEDS < 1_000, reason="about ten in 1,000 seeds")
@pytest.mark.parametrize("event", ["retired", "rerun waits for a parent", "refused: UnknownParent", "schedule resumed"])
def test_every_rare_event_happens(summary, event):
    assert summary.counted.get(event, 0) > 0


@pytest.mark.skipif(SEEDS < 200, reason="few seeds need not cover everything")
@pytest.mark.parametrize("kind", [*KINDS, STEPS])
def test_every_kind_of_handler_runs(summary, kind):
    assert summary.counted.get(f"handler: {kind}", 0) > 0
