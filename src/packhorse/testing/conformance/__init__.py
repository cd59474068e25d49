"""The contract of `packhorse.backends.base`, rule by rule, for any backend.

From a shell or a script: `print(check("sqlite://"))`. From pytest, in full:

    import pytest
    from packhorse.testing.conformance import Case, Harness, cases, run_case

    @pytest.mark.parametrize("case", cases(), ids=str)
    def test_contract(case: Case) -> None:
        run_case(case, lambda: Harness(lambda: MyBackend("…")))

A backend that reads the time from a `Clock` gives a `ManualClock` to both itself and the harness, and no
case then really waits.
"""

from __future__ import annotations

from .case import Broken, Case
from .harness import FOREVER, Harness, SharedHarness
from .running import HarnessFactory, Report, Result, cases, check, harness_factory, run_case

__all__ = [
    "FOREVER",
    "Broken",
    "Case",
    "Harness",
    "HarnessFactory",
    "Report",
    "Result",
    "SharedHarness",
    "cases",
    "check",
    "harness_factory",
    "run_case",
]
