"""The witness of lost time: what a process that stands still misses is no time of ours, and all else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.witness import PAUSE_S, Witness, at_most, boot_s

ROOT = Path(__file__).parents[2]

STANDS_STILL = """
import subprocess, sys, os
from tests.witness import Witness, boot_s

STOP = f"kill -STOP {os.getpid()}; sleep 2; kill -CONT {os.getpid()}"
with Witness() as witness:
    began = boot_s()
    subprocess.run(["sh", "-c", STOP], check=True)
    took = boot_s() - began
    print(took, witness.since_s(began), witness.stood_still_s())
"""


def test_a_process_that_stood_still_lost_that_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STANDS_STILL], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    took, ours, longest = map(float, done.stdout.split())
    assert took >= 2
    assert ours <= took - 2 + 3 * PAUSE_S
    assert longest >= 2 - PAUSE_S


def test_time_in_which_the_witness_took_its_steps_is_ours() -> None:
    witness = Witness()
    now = boot_s()
    witness._steps = [(now + number * PAUSE_S, now + (number + 1.5) * PAUSE_S) for number in range(20)]
    witness._steps.append((now + 2, now + 4))
    witness._steps.append((now + 4, now + 1_000))  # what is under way begins later than anybody asks for
    assert witness.lost_s(now, now + 2) == 0
    assert witness.lost_s(now, now + 4) == pytest.approx(2 - PAUSE_S)
    assert witness.lost_s(now + 3, now + 4) == pytest.approx(1)
    assert witness.lost_s(now - 1, now) == 0


def test_what_takes_too_long_fails() -> None:
    with pytest.raises(AssertionError), at_most(-1):
        pass
    with at_most(1000):
        pass
