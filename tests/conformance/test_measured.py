"""What measures a backend changes nothing of it: every rule of the contract holds for it too."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.backends.measured import MeasuredBackend
from packhorse.clock import SYSTEM_CLOCK
from packhorse.observe.exposition import expose
from packhorse.observe.meters import Meters
from packhorse.testing.conformance import Case, Harness, cases, harness_factory, run_case


def measured(url: str, directory: Path, meters: Meters) -> Harness:
    """A harness whose connections are all measured."""
    harness = harness_factory(url, directory)()
    make = harness._make
    harness._make = lambda: MeasuredBackend(make(), meters, harness.clock or SYSTEM_CLOCK)
    return harness


@pytest.mark.parametrize("case", cases(), ids=str)
def test_contract(case: Case, directory: Path) -> None:
    meters = Meters()
    run_case(case, lambda: measured("memory://", directory, meters))
    assert expose(meters).content


@pytest.mark.parametrize("case", [case for case in cases() if "bind" in str(case)], ids=str)
def test_contract_of_transactions(case: Case, directory: Path) -> None:
    meters = Meters()
    run_case(case, lambda: measured("sqlite://", directory, meters))
    assert expose(meters).content
