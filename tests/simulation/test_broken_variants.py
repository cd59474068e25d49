"""Tests of the test: each store and worker of broken*.py must be caught within the stated number of seeds.

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
    "gives_back_what_still_runs": (20_000, 240),
    "forgets_orphans_at_a_stop": (0, 1_100),
    "beats_too_seldom": (0, 160),
    "RetiresWithoutAName": (300, 80),
    "LeaksASlotOnLapse": (0, 250),
    "GivesASlotBackTwice": (0, 250),
    "ForgetsLimitsAtARestart": (0, 350),
    "LooksAtTheTypeAlone": (0, 400),
    "CountsTheBucketTwice": (0, 80),
    "EmptiesAnotherBucket": (31_400, 120),
    "RefillsBucketsWhenSetAgain": (0, 250),
    "LosesStepsOnLapse": (0, 200),
    "KeepsStepsOfOldRuns": (0, 250),
    "KeepsStepsAfterANewPayload": (0, 250),
    "FreesByCounting": (0, 300),
    "FreesAChildTwice": (0, 150),
    "RevivesNobody": (0, 80),
    "RevivesWhatWasCancelledOnPurpose": (20_300, 200),
    "RerunsChildrenBeforeTheirParents": (0, 600),
    "JudgesLimitsByWorker": (0, 250),
    "JudgesRatesByWorker": (0, 250),
    "FiresWithoutItsRevision": (0, 200),
    "FiresWhilePaused": (0, 80),
    "ResumesWhereItStopped": (0, 420),
    "FiresRemovedSchedules": (0, 350),
    "serves_keys_in_the_order_they_came": (0, 320),
    "claims_before_its_limits_are_known": (20_000, 120),
    "gives_up_to_declare": (0, 750),
    "takes_every_new_job_for_a_holder": (0, 200),
    "fires_again_with_fresh_ids": (0, 150),
}

#: What each must be caught by, where more than one rule could: the words of the rule.
WORDS = {
    "SettlesByIdAlone": "an old run decided the outcome",
    "LapsesFromASnapshot": "lapsed though",
    "NamesALapseTwice": "a tick named the lapses",
    "RetiresWithoutAName": "named the lapses []",
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
    "LeaksASlotOnRelease": "was left by a claim that had room",
    "GivesASlotBackTwice": "the limit is",
    "JudgesLimitsByWorker": "running jobs of",
    "JudgesRatesByWorker": "one start too many",
    "ForgetsLimitsAtARestart": "the limit is",
    "LooksAtTheTypeAlone": "the limit is",
    "CountsTheBucketTwice": "the limit is",
    "EmptiesAnotherBucket": "one start too many",
    "RefillsBucketsWhenSetAgain": "one start too many",
    "StopsTheQueue": "was left by a claim that had room",
    "TakesAFullClaimOrNone": "was left by a claim that had room",
    "CountsRoomForEachJobAlone": "jobs were let into",
    "CountsDelayedJobs": "there was room",
    "HoldsKeysWhileTheyLiveOnly": "unique key",
    "RefusesNobody": "should have been refused",
    "LosesStepsOnLapse": "keeps the steps",
    "LosesStepsOnRetry": "keeps the steps",
    "KeepsStepsOfOldRuns": "keeps the steps",
    "KeepsStepsAfterANewPayload": "keeps the steps",
    "DropsParentsOfLiveChildren": "was dropped while its child",
    "DropsTooEarly": "is gone from the store",
    "FiresWithoutAGuard": "it stands: False",
    "FiresWithoutItsRevision": "it stands: False",
    "FiresWhilePaused": "it stands: False",
    "LetsSlotsOverlap": "holds its unique key schedule:",
    "FiresRemovedSchedules": "was stale, and its jobs were stored",
    "serves_keys_in_the_order_they_came": "waits for its turn",
    "claims_before_its_limits_are_known": "the limit is",
    "gives_up_to_declare": "the limit is",
    "takes_every_new_job_for_a_holder": "were let into",
    "fires_again_with_fresh_ids": "the slot (",
    "fires_one_slot_of_many": "by its policy",
    "makes_good_what_it_should_skip": "by its policy",
    "looks_at_schedules_once": "late, and all is calm",
    "answers_a_step_before_it_is_kept": "which is not kept",
    "takes_a_lost_call_for_done": "which is not kept",
    "does_kept_steps_again": "though it is kept",
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
