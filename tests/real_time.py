"""Cases of the contract on a store that goes by its own clock: durations are short, and pass in reality."""

from __future__ import annotations

import time
import unittest
from collections.abc import Callable

from packhorse.testing.conformance import Case, run_case
from packhorse.testing.conformance.harness import Harness

#: How much longer all durations are, one try after another.
SLOWER = (1, 4, 10)


def run_in_real_time(case: Case, make: Callable[[], Harness]) -> None:
    """Run a case, and again with longer durations where it failed and more time passed than it asked for.

    A case says "before it was time", and can say so only if calls take little beside its steps of 150 ms. On a machine,
    or a server, that stands still for longer, it has asked for what nobody promised.
    """
    for slower in SLOWER:
        asked_ms = 0
        harness = make()
        harness.step_ms *= slower
        harness.lease_ms *= slower
        advance = harness.advance

        async def counted(ms: int, advance=advance) -> None:
            nonlocal asked_ms
            asked_ms += ms
            await advance(ms)

        harness.advance = counted  # type: ignore[method-assign]
        began_s = time.monotonic()
        try:
            run_case(case, lambda harness=harness: harness)
            return
        except unittest.SkipTest:
            raise
        except Exception:
            beside_ms = (time.monotonic() - began_s) * 1000 - asked_ms
            if slower == SLOWER[-1] or beside_ms < harness.step_ms:
                raise
