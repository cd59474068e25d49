"""Counts of queues for those who listen: asked for when something moved, told when they are others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...clock import SYSTEM_CLOCK
from ...job import State
from .events import Filter, message

if TYPE_CHECKING:
    from ...backends.base import Backend
    from .listeners import Listener, Listeners

#: Counts are asked for at most so often, ms, and never for more than a twentieth of the time.
COUNTS_MS = 1_000
_REST_FACTOR = 20

#: Queues that are told of, by name; a store with more than that is looked at with filters.
QUEUES_MAX = 1_000

Counts = dict[str, int]


class Counting:
    """The counts that were told last."""

    def __init__(self) -> None:
        #: Something moved since the counts were asked for.
        self.is_due = True
        self._last: dict[str, Counts] = {}
        self._told: set[Listener] = set()  # who has been told all of `_last` that it wants
        self._next_ms = 0

    async def tell(self, backend: Backend, listeners: Listeners) -> None:
        """Tell the counts to those who want them: all of them at first, then those that changed. Raises Unavailable."""
        wanting = [listener for listener in listeners if listener.began and listener.wants_counts]
        self._told.intersection_update(wanting)
        changed: dict[str, Counts | None] = {}
        if wanting and self.is_due and SYSTEM_CLOCK.boot_ms() >= self._next_ms:
            changed = await self._ask(backend)
        messages: dict[tuple[Filter, bool], bytes | None] = {}
        for listener in wanting:
            is_new = listener not in self._told
            if is_new and self._next_ms == 0:
                continue  # nothing was asked for yet
            key = (listener.filter, is_new)
            if key not in messages:
                messages[key] = _message(dict(self._last) if is_new else changed, listener.filter, is_new)
            text = messages[key]
            if text is not None:
                listener.take_counts(text)
            self._told.add(listener)

    async def _ask(self, backend: Backend) -> dict[str, Counts | None]:
        """Ask for the counts and answer those that are others than before; None for a queue that is no more."""
        began_ms = SYSTEM_CLOCK.boot_ms()
        self.is_due = False
        try:
            found = await backend.counts()
        except BaseException:
            self.is_due = True
            raise
        now_ms = SYSTEM_CLOCK.boot_ms()
        self._next_ms = now_ms + max(COUNTS_MS, _REST_FACTOR * (now_ms - began_ms))
        names = sorted(found)[:QUEUES_MAX]
        counts = {name: {str(state): found[name].states.get(state, 0) for state in State} for name in names}
        changed: dict[str, Counts | None] = {name: now for name, now in counts.items() if now != self._last.get(name)}
        changed.update(dict.fromkeys(self._last.keys() - counts.keys()))
        self._last = counts
        return changed


def _message(counts: dict[str, Counts] | dict[str, Counts | None], wanted: Filter, is_new: bool) -> bytes | None:
    shown = {name: states for name, states in counts.items() if wanted.shows_queue(name)}
    return message("stats", {"queues": shown, "all": is_new}) if shown or is_new else None
