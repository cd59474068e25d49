"""Tests of the tests: a backend that breaks one rule is caught by the suite, the unbroken one passes all.

Each class of the two `broken_…` modules breaks exactly one rule of the contract in the way a real backend could.
"""

from __future__ import annotations

import pytest

from packhorse.backends.base import add_error
from packhorse.backends.memory import MemoryBackend
from packhorse.job import JobError
from packhorse.testing.conformance import check
from packhorse.testing.conformance.stores import MemoryHarness

from . import broken_keeping  # noqa: F401  # registers its variants
from .broken_on_the_way import BROKEN


@pytest.mark.parametrize("variant", BROKEN, ids=lambda variant: variant.__name__)
def test_the_suite_catches(variant: type[MemoryBackend]) -> None:
    def make_harness() -> MemoryHarness:
        harness = MemoryHarness(variant)
        harness.ring_ms = 100
        return harness

    report = check(make_harness, stop=True)
    assert report.failed, f"no case noticed: {variant.__doc__}"


def test_the_suite_passes_the_unbroken() -> None:
    report = check(MemoryHarness)
    assert report.ok, str(report)


def test_the_helper_of_the_contract_keeps_the_first_and_latest_errors() -> None:
    errors: tuple[JobError, ...] = ()
    for attempt in range(1, 61):
        errors = add_error(errors, JobError(attempt=attempt, at_ms=0, kind="", message=""))
    assert [error.attempt for error in errors] == [1, *range(12, 61)]
