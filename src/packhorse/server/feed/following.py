"""The feed: one follower of the store's changes for all who listen to this server, and none while nobody does.

A round asks the store what changed, looks up what an event says of the jobs, and hands each listener what its filter
lets through: filtered once for all that ask for the same, encoded once for all. Who comes with a place to go on from
is told what it missed, and joins the others without a gap or an event twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ...backends.base import CHANGES_MAX
from ...clock import SYSTEM_CLOCK
from ...errors import PackhorseError, Unsupported
from .counts import Counting
from .events import Batch, Filter, Position, Told, add_to_sum, read_position
from .known import KnownJobs
from .listeners import Listener, Listeners

if TYPE_CHECKING:
    from ...backends.base import Backend, Change, Changes
    from ...chance import Chance

log = logging.getLogger("packhorse.server")

#: How long a round waits for the next, ms. Sooner is pointless, for a person as for the store.
ROUND_MS = 100
#: A round that took long is followed by a pause of that many times as long: the feed takes a part of a core.
#: But never one in which the store, at its present pace, would have more to tell than it tells at once.
_PAUSE_FACTOR = 3
_PAUSE_MS_MAX = 500
_CHANGES_A_PAUSE = CHANGES_MAX // 4

#: Changes that are looked up and told at once.
CHUNK_MAX = 500
#: Changes that a returning listener is told, and bytes of them; who missed more that it may want looks anew.
CATCH_UP_MAX = 1_000
CATCH_UP_BYTES_MAX = 1 << 20
#: Listeners that join in one round, and how long others are waited for.
_JOINS_A_ROUND = 16
_GATHER_S = 0.01

#: How long the feed waits for a store that does not answer, ms: at first, and at most. Both by chance, from half on.
_AWAY_MS = 200
_AWAY_MS_MAX = 5_000


class Feed:
    """What happens to the jobs of one store, for any number of listeners of one event loop."""

    def __init__(self, store: Callable[[], Awaitable[Backend]], stopping: asyncio.Event, chance: Chance) -> None:
        self._store = store
        self._stopping = stopping
        self._chance = chance
        self._known = KnownJobs()
        self._counting = Counting()
        self.listeners = Listeners()
        self._joining: list[Listener] = []
        self._position: Position | None = None
        self._rest: Changes | None = None  # the answer that `_position` is amidst of
        self._lost = ""  # why events are lost that came before `_position`, if it is not known yet
        self._wake = asyncio.Event()
        self._rounds = 0  # that have ended
        self._round_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ender: asyncio.Task[None] | None = None

    @property
    def is_following(self) -> bool:
        """Tell whether the store is being asked."""
        return self._task is not None

    @property
    def mark(self) -> str | None:
        """The place up to which everything was told."""
        return None if self._position is None else str(self._position)

    # ---- listening ---------------------------------------------------------------------------------------

    def add(self, listener: Listener) -> None:
        """Let a listener join: it is told all that happens from about now on, or from the place it gave.

        Ended at once where the server is stopping. Raises Problem (429, 503) where too many listen.
        """
        if self._stopping.is_set():
            listener.end()
            return
        self.listeners.admit(listener)
        self._joining.append(listener)
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._follow())
            self._ender = loop.create_task(self._end_when_stopping())
        self._wake.set()

    def remove(self, listener: Listener) -> None:
        """Tell a listener nothing more. Idempotent."""
        self.listeners.remove(listener)
        if listener in self._joining:
            self._joining.remove(listener)
        if not self.listeners:
            self._wake.set()

    async def catch_up(self) -> None:
        """Wait until all is told that has happened by now; while the store does not answer, that takes as long."""
        told_at = self._rounds + 2  # the round under way may have asked the store already
        while self.is_following and self._rounds < told_at:
            await self._round_ended.wait()

    async def close(self) -> None:
        """End the feed and all who listen. Idempotent."""
        tasks = [task for task in (self._task, self._ender) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._end_all()
        self._reset()

    async def _end_when_stopping(self) -> None:
        await self._stopping.wait()
        self._end_all()

    def _end_all(self) -> None:
        for listener in list(self.listeners):
            listener.end()

    def _reset(self) -> None:
        self._task = self._ender = None
        self._position = self._rest = None
        self._known = KnownJobs()
        self._counting = Counting()

    # ---- rounds ------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        failures = 0
        said = ""
        began_ms = SYSTEM_CLOCK.boot_ms()
        while self.listeners:
            self._wake.clear()
            last_ms, began_ms = began_ms, SYSTEM_CLOCK.boot_ms()
            try:
                changes = await self._round()
                self._rounds += 1
                self._round_ended.set()
                self._round_ended = asyncio.Event()
                if failures:
                    log.info("events: the store answers again")
                failures, said = 0, ""
                await self._pause(_pause_ms(SYSTEM_CLOCK.boot_ms() - began_ms, changes, began_ms - last_ms))
            except Unsupported as error:
                log.warning("events: %s", error)
                self._end_all()
                break
            except PackhorseError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("events: the store cannot be asked, trying again: %s", said)
                await self._wait_for_store(failures)
                failures += 1
            except Exception:
                # Whatever it was must not end the feed; who listens is told that something may be missing.
                log.exception("following the store failed; this is a bug")
                self._position = self._rest = None
                self._lost = "the server failed to follow the store"
                await self._wait_for_store(failures=10)
        if self._ender is not None:
            self._ender.cancel()
        self._reset()

    async def _wait_for_store(self, failures: int) -> None:
        """Wait before a store that failed is asked again; who joins meanwhile waits too."""
        most_ms = min(_AWAY_MS_MAX, _AWAY_MS << min(failures, 10))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(most_ms / 2, most_ms) / 1000):
                while self.listeners:
                    await self._wake.wait()
                    self._wake.clear()

    async def _pause(self, pause_ms: float) -> None:
        """Wait for the next round; somebody who joins need not wait that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_ms / 1000):
                while self.listeners and not self._joining:
                    await self._wake.wait()
                    self._wake.clear()
                if self.listeners:
                    await asyncio.sleep(_GATHER_S)  # many that join at once share a round

    async def _round(self) -> int:
        """Tell what changed, let others join, tell counts; answers how many changes there were. Raises Unavailable."""
        backend = await self._store()
        await self._tell_rest(backend)
        position = self._position
        found = await backend.changes(None if position is None else position.cursor)
        self._position = Position(found.cursor)
        if position is None:
            if self._lost:
                self._gap(self._lost)
                self._lost = ""
        elif found.gap:
            self._gap("more happened than could be followed, or the store was away for too long")
        elif found.changes:
            self._position, self._rest = position, found
            self._counting.is_due = True
            await self._tell_rest(backend)
        self.listeners.round_is_over()
        for listener in self._joining[:_JOINS_A_ROUND]:
            await self._join(backend, listener)
            if listener in self._joining:  # it may have left meanwhile
                self._joining.remove(listener)
        await self._counting.tell(backend, self.listeners)
        return len(found.changes)

    async def _tell_rest(self, backend: Backend) -> None:
        """Tell what is left of an answer, in chunks. Raises Unavailable; then the rest of it is told by the next round.

        It is not asked for again: another answer may have the same changes in another order.
        """
        while self._rest is not None and self._position is not None:
            found, position = self._rest, self._position
            chunk = found.changes[position.told : position.told + CHUNK_MAX]
            events, end = await self._events(backend, position, chunk, found, self.listeners.filters())
            self.listeners.tell(events)
            self._position = end
            if end.told == 0:
                self._rest = None
            await asyncio.sleep(0)  # those who write to clients take their turn: a chunk fits into what each may hold

    async def _events(
        self, backend: Backend, position: Position, chunk: Sequence[Change], found: Changes, filters: set[Filter]
    ) -> tuple[list[Told], Position]:
        """Make events of those in a chunk of an answer that `filters` may want, and answer where that leads to.

        Each has a place of its own to go on from; that of the last change of an answer is what follows it.
        """
        wanted: list[tuple[Change, Position]] = []
        for change in chunk:
            position = Position(position.cursor, position.told + 1, add_to_sum(position.sum, change))
            if position.told == len(found.changes):
                position = Position(found.cursor)
            if any(wish.may_admit(change) for wish in filters):
                wanted.append((change, position))
        events = await self._known.tell(backend, [change for change, _ in wanted])
        return [
            Told(change, event, str(place)) for (change, place), event in zip(wanted, events, strict=True)
        ], position

    def _gap(self, reason: str) -> None:
        self._counting.is_due = True
        for listener in list(self.listeners):
            if listener not in self._joining:
                listener.gap(reason, self.mark)

    # ---- joining -----------------------------------------------------------------------------------------

    async def _join(self, backend: Backend, listener: Listener) -> None:
        """Begin to tell a listener, after what it missed since its place.

        The feed stands at M; the store, asked for what comes after the listener's place, answers up to some J later
        than M. What lies between is told again by the next round, so the listener leaves out there what it has.
        """
        if listener.after is None or not listener.wants_jobs:
            listener.begin(self.mark, resumed=False)
            return
        missed = await self._missed(backend, listener.filter, read_position(listener.after))
        if missed is None:
            listener.begin(self.mark, resumed=False)
            listener.gap("more happened meanwhile than can be told", self.mark)
            return
        batch, changes, end = missed
        listener.begin(listener.after, resumed=True)
        listener.take(batch)
        listener.has(frozenset(changes), str(end))

    async def _missed(
        self, backend: Backend, wanted: Filter, place: Position
    ) -> tuple[Batch, Sequence[Change], Position] | None:
        """Answer what happened since a place, with the changes it is of and where that leads to; None: too much."""
        found = await backend.changes(place.cursor)
        rest = None if found.gap else place.rest(found.changes)
        if rest is None or sum(map(wanted.may_admit, rest)) > CATCH_UP_MAX:
            return None
        events, end = await self._events(backend, place, rest, found, {wanted})
        batch = Batch([told for told in events if wanted.admits(told.event)])
        return (batch, found.changes, end) if len(batch.frames) <= CATCH_UP_BYTES_MAX else None


def _pause_ms(took_ms: int, changes: int, since_ms: int) -> float:
    """Answer how long to wait after a round that took so long and had so many changes, of so long a time."""
    pause_ms = min(_PAUSE_MS_MAX, _PAUSE_FACTOR * took_ms)
    if changes:
        pause_ms = min(pause_ms, _CHANGES_A_PAUSE * max(since_ms, 1) // changes)
    return max(ROUND_MS, pause_ms)
