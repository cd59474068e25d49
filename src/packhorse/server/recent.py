"""Answers that cost much and that many ask for: made once for all who ask meanwhile, and kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from ..clock import Clock

T = TypeVar("T")

#: How long an answer is kept, ms: at least, and as many times as long as it took. So it takes a tenth of the time.
FRESH_MS = 1_000
_REST_FACTOR = 10
#: Answers that are kept or being made.
_KEPT_MAX = 32


class _Kept(Generic[T]):
    """One answer: good until it is over, which nobody knows while it is being made."""

    __slots__ = ("over_ms", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[T]
        self.over_ms: int | None = None


class Recent(Generic[T]):
    """Answers by key. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[Hashable, _Kept[T]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Answer what is kept under `key`, or what `make` answers. What it raises is for all who wait, and not kept.

        `make` goes on when the first who asked goes away.
        """
        kept = self._kept.get(key)
        if kept is None or (kept.over_ms is not None and self._clock.boot_ms() >= kept.over_ms):
            self._kept.pop(key, None)
            while len(self._kept) >= _KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[key] = _Kept()
            kept.task = asyncio.get_running_loop().create_task(self._make(kept, make))
            kept.task.add_done_callback(_heard)
        return await asyncio.shield(kept.task)

    async def _make(self, kept: _Kept[T], make: Callable[[], Awaitable[T]]) -> T:
        began_ms = self._clock.boot_ms()
        try:
            answer = await make()
        except BaseException:
            kept.over_ms = began_ms
            raise
        now_ms = self._clock.boot_ms()
        kept.over_ms = now_ms + max(FRESH_MS, _REST_FACTOR * (now_ms - began_ms))
        return answer

    async def close(self) -> None:
        """End what is being made. Idempotent."""
        kept, self._kept = self._kept, {}
        for one in kept.values():
            one.task.cancel()
        await asyncio.gather(*[one.task for one in kept.values()], return_exceptions=True)


def _heard(task: asyncio.Task[T]) -> None:
    """Take note of an error that nobody waits for any more: asyncio would complain."""
    if not task.cancelled():
        task.exception()
