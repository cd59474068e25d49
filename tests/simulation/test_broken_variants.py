"""Tests of the test: each store and worker of broken.py must be caught within the stated number of seeds.

`SEEDS` says from which seed and how many are tried: at least twice what was needed on 2026-11-22 at three places.
Most need fewer than ten.
"""

from __future__ import annotations

import pytest

from packhorse.testing.simulator.running import first_failing

from . import broken
from .broken_flow import FLOW_STORES, FLOW_WORKERS
from .broken_structure import STRUCTURE_STORES, STRUCTURE_WORKERS

STORES = [*broken.STORES, *FLOW_STORES, *STRUCTURE_STORES]
WORKERS = [*broken.WORKERS, *FLOW_WORKERS, *STRUCTURE_WORKERS]

FEW = (0, 60)
SEEDS = {
    "FreesKeysOnRetry": (0, 80),
    "RunsCancelledJobsAgain": (0, 80),
    "StoresFollowUpsOfStaleRuns": (0, 200),
    "measures_the_lease_from_the_reply": (0, 100),
    "does_not_release_at_a_stop": (0, 200),
    "drops_a_claim_at_a_stop": (0, 400),
    "gives_back_what_still_runs": (0, 300),
    "forgets_orphans_at_a_stop": (0, 1_100),
    "beats_too_seldom": (0, 160),
}

#: What each must be caught by, where more than one rule could: the words of the rule.
WORDS = {
    "SettlesByIdAlone": "an old run decided the outcome",
    "LapsesFromASnapshot": "lapsed though",
    "AcknowledgesBeforeCommit": "gone from the store",
    "ClaimsInTwoSteps": "was claimed by",
    "ForgetsPausesAtOnce": "which is paused",
    "FreesKeysOnRetry": "unique key",
    "EnqueuesTwice": "created twice",
    "starts_after_the_lease_lapsed": "after its lease had lapsed",
    "measures_the_lease_from_the_reply": "after its lease had lapsed",
    "forgets_claims_whose_reply_is_lost": "have not ended",
    "does_not_release_at_a_stop": "cost",
    "drops_a_claim_at_a_stop": "cost",
    "forgets_orphans_at_a_stop": "cost",
    "relies_on_bells": "have not ended",
    "beats_too_seldom": "nothing kept",
    "parks_by_its_own_clock": "it was to be offered around",
    "gives_back_what_still_runs": "while its handler still runs",
    "leaks_a_task_for_each_stop": "left 1 tasks",
}


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
def test_a_broken_store_is_caught(store):
    start, count = SEEDS.get(store.__name__, FEW)
    report = first_failing(range(start, start + count), store)
    assert report is not None, f"{count} seeds did not notice: {store.__doc__}"
    assert WORDS.get(store.__name__, "") in report.violation


@pytest.mark.parametrize("breaks", WORKERS, ids=lambda breaks: breaks.__name__)
def test_a_broken_worker_is_caught(breaks, monkeypatch):
    breaks(monkeypatch)
    start, count = SEEDS.get(breaks.__name__, FEW)
    report = first_failing(range(start, start + count))
    assert report is not None, f"{count} seeds did not notice: {breaks.__doc__}"
    assert WORDS.get(breaks.__name__, "") in report.violation


def test_a_broken_world_fails_the_same_way_each_time():
    store = STORES[0]
    first, again = (first_failing(range(60), store) for _ in range(2))
    assert first is not None
    assert (first.seed, first.violation, first.digest) == (again.seed, again.violation, again.digest)
