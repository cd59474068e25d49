"""Knows when the machine had no time for us, so that a promise about time is only asked for the time there was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Self

import pytest

#: Between two of its steps, s.
PAUSE_S = 0.05
#: Turns of the loop that a step computes: about a millisecond.
_TURNS = 20_000


def boot_s() -> float:
    """Answer the clock of all times here: it is the same in every process, and no change of the date moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Witness:
    """Computes a little, syncs a small file (where it is given a directory) and pauses, again and again.

    What a step takes longer than it need is lost.

    A machine that stands still, shares its processors among many or waits for its disk shows in it as in any process.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._file = None if directory is None else directory / "witness"
        self._steps: list[tuple[float, float]] = []
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._began = boot_s()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(60)

    def lost_s(self, begin: float, end: float) -> float:
        """Answer how much of the time between two instants was lost; also of what is under way."""
        steps = list(self._steps)
        steps.append(self._under_way(steps))
        lost = 0.0
        for before, after in steps:
            overlap = min(after, end) - max(before, begin)
            late = after - before - PAUSE_S
            if late > PAUSE_S:  # less is how any machine is
                lost += max(0.0, min(overlap, late))
        return lost

    def since_s(self, begin: float) -> float:
        """Answer how much time has passed since `boot_s()` answered `begin`, without what was lost."""
        end = boot_s()
        return end - begin - self.lost_s(begin, end)

    def stood_still_s(self) -> float:
        """Answer the longest time without a step: as long as any lease may have gone without its heartbeat."""
        steps = list(self._steps)
        return max(after - before for before, after in [*steps, self._under_way(steps)])

    def _under_way(self, steps: list[tuple[float, float]]) -> tuple[float, float]:
        before = steps[-1][1] if steps else self._began
        return before, max(before, boot_s())

    def _work(self) -> None:
        with nullcontext() if self._file is None else self._file.open("wb", buffering=0) as file:
            before = boot_s()
            while not self._over.wait(PAUSE_S):
                sum(range(_TURNS))
                if file is not None:
                    file.seek(0)
                    file.write(b"x")
                    os.fsync(file.fileno())
                after = boot_s()
                self._steps.append((before, after))
                before = after


@contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """Check that what is done takes no longer, not counting what was lost. It is not ended: the test has a time-out."""
    with Witness() as witness:
        began = boot_s()
        yield
        took_s = witness.since_s(began)
    assert took_s < limit_s


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    """Says how much time the machine did not have for us."""
    with Witness(tmp_path) as witness:
        yield witness
