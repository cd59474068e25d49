"""Whether this process could write to its store lately. A store may answer every question and take nothing in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, PackhorseError, StoreFull, Unavailable
from . import metrics

if TYPE_CHECKING:
    from .meters import Rise

#: The calls by which jobs live. What an operator does now and then is left out: he is told himself.
WRITES = frozenset({"enqueue", "claim", "settle", "heartbeat", "retire", "tick", "fire"})
#: For how long a failure is told, ms, unless a call shows before that it is over.
TOLD_MS = 30_000
#: A runner tells how often calls failed, and not why.
OF_A_RUNNER = "it has no room; the log of the runner process says where"


class Writing:
    """Which writing calls failed lately, and why. For any thread: an entry is put in or taken out as a whole.

    Instants are ms of the boot clock.
    """

    def __init__(self) -> None:
        self.failures: dict[str, tuple[int, bool, str]] = {}  # when, whether there was no room, its words

    def failed(self, operation: str, error: PackhorseError, now_ms: int) -> None:
        """Note a call that the store did not do. What is wrong with the call itself says nothing of the store."""
        if operation in WRITES and isinstance(error, Unavailable | ConfigurationError):
            self.failures[operation] = (now_ms, isinstance(error, StoreFull), str(error))

    def hear(self, rises: Iterable[Rise], now_ms: int) -> None:
        """Note from what another process of this worker counted that the store had no room for it."""
        for rise in rises:
            if rise.name == metrics.CALL_ERRORS.name and rise.labels[1:] == (StoreFull.__name__,):
                self.failures[f"{rise.labels[0]} of a runner"] = (now_ms, True, OF_A_RUNNER)

    def done(self, operation: str, answer: object) -> None:
        """Note a call that was done.

        So a store that was away, or let nobody write, is over it. Where there was no room, only the same call shows
        that there is again, and only if it did something: a claim that finds nothing needs none, and a heartbeat less
        than an enqueue.
        """
        if operation in WRITES:
            for name, (_, was_full, _) in list(self.failures.items()):
                if not was_full or (name == operation and answer):
                    self.failures.pop(name, None)

    @property
    def is_full(self) -> bool:
        """Whether any of the failures was for want of room."""
        return any(was_full for _, was_full, _ in self.failures.copy().values())

    def problems(self, now_ms: int) -> list[str]:
        """Answer why this process cannot write, a line for each reason; none where it can, as far as it knows."""
        calls: dict[str, list[str]] = {}
        for name, (at_ms, _, words) in sorted(self.failures.copy().items()):
            if now_ms - at_ms < TOLD_MS:
                calls.setdefault(words, []).append(name)
        return [f"the store does not do {', '.join(names)}: {words}" for words, names in calls.items()]
