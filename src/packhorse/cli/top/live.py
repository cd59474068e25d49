"""`top` as it runs on a terminal: one task asks the store, another draws what is known, keys change what is shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import Forbidden, OutOfScope, PackhorseError
from . import choices as chosen
from .drawing import Scene, frame
from .history import History
from .terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Console

    from ...clock import Clock
    from .lines import Paint
    from .sampling import Sampler

#: How often seconds are counted on the screen while no answer comes, s.
_TICK_S = 1.0

#: The exit code after SIGTERM, as shells count.
ENDED = 128 + 15


class LiveTop:
    """The dashboard: from its start until `q`, SIGTERM, Ctrl+C, or until the store refuses."""

    def __init__(
        self,
        sampler: Sampler,
        console: Console,
        paint: Paint,
        clock: Clock,
        *,
        interval_ms: int,
        store: str,
        queue: str | None,
        scrub: Callable[[str], str],
    ) -> None:
        self._sampler = sampler
        self._console = console
        self._paint = paint
        self._clock = clock
        self._store = store
        self._queue = queue
        self._scrub = scrub
        self._history = History()
        self._choices = chosen.Choices(interval_ms=interval_ms)
        self._last = 0
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = False

    async def run(self) -> int:
        """Show what the store does; answers the exit code. Raises what the first look raises, and Forbidden."""
        self._history.add(await self._sampler.look())  # an error now is one line, not a screen
        logging.getLogger().addHandler(logging.NullHandler())  # what libraries say must not be written over the frame
        asking = asyncio.create_task(self._ask())
        asking.add_done_callback(lambda _: self._changed.set())
        try:
            with Terminal(self._console, self._press, self._changed.set, self._end) as terminal:
                while not (self._choices.quit or self._ended or asking.done()):
                    self._changed.clear()
                    self._draw(terminal)
                    await self._wait()
            if asking.done():
                asking.result()
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            await self._sampler.close()
        return ENDED if self._ended else 0

    # ---- asking ------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while True:
            await self._pause()
            try:
                self._history.add(await self._sampler.look())
            except (Forbidden, OutOfScope):
                raise
            except PackhorseError as error:
                self._history.away(self._scrub(str(error)), self._clock.boot_ms())
            self._changed.set()

    async def _pause(self) -> None:
        """Wait until the store may be asked again; whoever changes the interval or goes on is heard at once."""
        since_ms = self._clock.boot_ms()
        while True:
            left_ms = since_ms + self._sampler.pause_ms(self._choices.interval_ms) - self._clock.boot_ms()
            if left_ms <= 0 and not self._choices.paused:
                return
            self._hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._choices.paused else left_ms / 1000):
                    await self._hurry.wait()

    # ---- drawing -----------------------------------------------------------------------------------------

    def _draw(self, terminal: Terminal) -> None:
        scene = Scene(
            store=self._store,
            at_ms=self._clock.boot_ms(),
            asking_since_ms=self._sampler.asking_since_ms,
            pause_ms=self._sampler.pause_ms(self._choices.interval_ms),
            queue=self._queue,
        )
        width, height = terminal.measure()
        drawn = frame(self._history, self._choices, scene, width, height, self._paint)
        self._last = drawn.last
        terminal.show(drawn)

    async def _wait(self) -> None:
        """Wait for something else to show; while seconds are counted, a second."""
        while not self._changed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._changed.wait()
            if self._history.trouble or self._choices.paused or self._sampler.asking_since_ms is not None:
                return

    def _press(self, key: str) -> None:
        self._choices = chosen.press(self._choices, key, self._last)
        self._changed.set()
        self._hurry.set()

    def _end(self) -> None:
        self._ended = True
        self._changed.set()
