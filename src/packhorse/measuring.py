"""The app's own metrics as text, for programs that answer Prometheus themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .backends.base import Backend
    from .clock import Clock
    from .observe.meters import Meters
    from .observe.store_gauges import Gauge, StoreGauges
    from .sync import Portal


class Measuring:
    """The part of `Packhorse` that says what was counted."""

    if TYPE_CHECKING:
        meters: Meters
        portal: Portal
        clock: Clock

        async def backend(self) -> Backend: ...

    #: One for each event loop that asks.
    _store_gauges: WeakKeyDictionary[asyncio.AbstractEventLoop, StoreGauges] | None = None

    async def ametrics(self, *, store: bool = False) -> str:
        """Answer what this process counted, in Prometheus's text format (`text/plain; version=0.0.4`).

        With `store` also what the store says of queues and workers: one process of your program is enough for that. It
        is asked at most once a second; one that does not answer within 2 s, or does not take writes,
        is `packhorse_store_up 0`.
        """
        from .observe.exposition import expose

        gauges = await self.astore_gauges() if store else ()
        return (await asyncio.to_thread(expose, self.meters, gauges)).content.decode()

    def metrics(self, *, store: bool = False) -> str:
        """Answer what this process counted, in Prometheus's text format; blocks. See `ametrics`."""
        from .observe.exposition import expose

        gauges = self.portal.call(self.astore_gauges()) if store else ()
        return expose(self.meters, gauges).content.decode()

    async def astore_gauges(self) -> Sequence[Gauge]:
        """Answer what the store says of queues and workers, for metrics."""
        from .observe.store_gauges import StoreGauges

        loop = asyncio.get_running_loop()
        if self._store_gauges is None:
            self._store_gauges = WeakKeyDictionary()
        gauges = self._store_gauges.get(loop)
        if gauges is None:
            gauges = self._store_gauges[loop] = StoreGauges(self.backend, self.clock, self.meters)
        return await gauges.read()
