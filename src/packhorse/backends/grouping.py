"""Many small calls become one: what callers ask while a call is under way goes out together with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .messages import BATCH_MAX

#: Bytes of payloads or results in one call, about; what is more travels in the next.
GROUP_BYTES_MAX = 4 * 1024 * 1024


class Group:
    """Calls of one verb. `send` makes one call of several, and answers an outcome for each: a value or an exception.

    `bytes_of` answers how large an item is, about.
    """

    def __init__(
        self, send: Callable[[list[Sequence[Any]]], Awaitable[list[Any]]], bytes_of: Callable[[Any], int]
    ) -> None:
        self._send = send
        self._bytes_of = bytes_of
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[Any]) -> Any:
        """Ask for `items`; answers what `send` found out for them. A cancelled call may have been sent."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if self._task is None or self._task.done():  # a task that begins at once may be done before it is noted here
            self._task = asyncio.get_running_loop().create_task(self._work())
        return await future

    async def finish(self) -> None:
        """Wait until all that was asked is answered."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._waiting:
                calls = self._next()
                if not calls:
                    continue
                try:
                    outcomes = await self._send([items for items, _ in calls])
                except Exception as error:
                    outcomes = [error for _ in calls]
                except BaseException:
                    for _, future in calls:
                        future.cancel()
                    raise
                for (_, future), outcome in zip(calls, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        except BaseException:
            waiting, self._waiting = self._waiting, []
            for _, future in waiting:
                future.cancel()
            raise
        finally:
            self._task = None

    def _next(self) -> list[tuple[Sequence[Any], asyncio.Future[Any]]]:
        """Take calls of `BATCH_MAX` items in all from the front, at least one; cancelled ones are left out."""
        size = count = weight = 0
        for items, _ in self._waiting:
            size += max(1, len(items))
            weight += sum(map(self._bytes_of, items))
            if count and (size > BATCH_MAX or weight > GROUP_BYTES_MAX):
                break
            count += 1
        calls, self._waiting = self._waiting[:count], self._waiting[count:]
        return [call for call in calls if not call[1].cancelled()]
