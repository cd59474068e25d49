"""The contract with time as the server tells it: durations are short and pass in reality.

By a clock of its own the same backend is asked in tests/conformance. PACKHORSE_FULL=1 asks every case, else those
that are about time.
"""

from __future__ import annotations

import os

import pytest

from packhorse.testing.conformance import Case, cases
from packhorse.testing.conformance.stores import PostgresHarness
from tests.real_time import run_in_real_time

FULL = os.environ.get("PACKHORSE_FULL") == "1"
TOPICS = {"claim", "lease", "wake"}


@pytest.mark.parametrize("case", [case for case in cases() if FULL or case.topic in TOPICS], ids=str)
def test_contract_by_the_servers_clock(case: Case, postgres_url: str) -> None:
    run_in_real_time(case, lambda: PostgresHarness(postgres_url, manual_clock=False))
