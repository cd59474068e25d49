"""Every rule of the contract, on every backend."""

from __future__ import annotations

import pytest

from packhorse.testing.conformance import Case, HarnessFactory, cases, run_case


@pytest.mark.parametrize("case", cases(), ids=str)
def test_contract(case: Case, make_harness: HarnessFactory) -> None:
    run_case(case, make_harness)
