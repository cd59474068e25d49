"""A case in real time fails for what the store did, and not for time that the machine did not have."""

from __future__ import annotations

import time

import pytest

from packhorse.backends.memory import MemoryBackend
from packhorse.testing.conformance.case import Broken, Case
from packhorse.testing.conformance.harness import Harness
from tests.real_time import SLOWER, run_in_real_time


def run(stands_still_s: float, fails: int) -> list[int]:
    """Run a case that fails so often; answers how long its steps were, ms."""
    steps: list[int] = []

    async def body(h: Harness) -> None:
        steps.append(h.step_ms)
        await h.advance(10)
        time.sleep(stands_still_s)
        if len(steps) <= fails:
            raise Broken("too late")

    case = Case(topic="tick", name="late", body=body)
    try:
        run_in_real_time(case, lambda: Harness(MemoryBackend))
    except Broken:
        steps.append(0)
    return steps


@pytest.mark.parametrize(
    ("stands_still_s", "fails", "wanted"),
    [
        (0, 0, [150]),
        (0, 1, [150, 0]),
        (0.2, 0, [150]),
        (0.2, 1, [150, 600]),
        (0.7, 2, [150, 600, 1_500]),
        (0.7, 9, [150, 600, 1_500, 0]),
    ],
)
def test_a_case_that_failed_for_want_of_time_is_given_more(
    stands_still_s: float, fails: int, wanted: list[int]
) -> None:
    assert run(stands_still_s, fails) == wanted
    assert len(SLOWER) == 3
