"""How the store does, for all who ask: one look answers everybody for a second, and no look takes longer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from ..admin import Admin, Health
from ..backends.base import Backend
from ..clock import Clock
from ..errors import PackhorseError
from ..observe.writing import Writing

log = logging.getLogger("packhorse.server")

#: How old an answer may be, ms.
FRESH_MS = 1_000
#: How long a look may take, ms: whoever asks for health gets an answer within a second.
LOOK_MS_MAX = 900


class Look:
    """Asks the store how it does, at most once a second, however many want to know (FAILURES C15)."""

    def __init__(
        self,
        backend: Callable[[], Awaitable[Backend]],
        clock: Clock,
        scrub: Callable[[str], str],
        writing: Writing,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._scrub = scrub
        self._writing = writing
        self._looking: asyncio.Task[Health] | None = None
        self._found: Health | None = None
        self._found_at_ms = 0

    async def health(self) -> Health:
        """Answer how the store does, as of at most a second ago, within a second. Never raises for the store.

        UNAVAILABLE, too, where it answers and this server cannot write to it.
        """
        if self._found is not None and self._clock.boot_ms() - self._found_at_ms < FRESH_MS:
            return self._found
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await asyncio.shield(self._looking)  # one that hangs up does not take the answer from the others

    async def _look(self) -> Health:
        try:
            found = await self._ask()
            self._found, self._found_at_ms = found, self._clock.boot_ms()
            return found
        finally:
            self._looking = None

    async def _ask(self) -> Health:
        try:
            async with asyncio.timeout(LOOK_MS_MAX / 1000):
                found = await Admin(await self._backend(), self._clock).health()
        except TimeoutError:
            problem = f"the store did not answer within {LOOK_MS_MAX / 1000:g} s"
            found = Health(status="UNAVAILABLE", problems=(problem,))
        except PackhorseError as error:
            found = Health(status="UNAVAILABLE", problems=(str(error),))
        if found.status == "OK" and (unwritten := self._writing.problems(self._clock.boot_ms())):
            found = msgspec.structs.replace(found, status="UNAVAILABLE", problems=(*unwritten, *found.problems))
        return msgspec.structs.replace(found, problems=tuple(map(self._scrub, found.problems)))

    async def close(self) -> None:
        """End a look that is under way. Idempotent."""
        looking = self._looking
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])
