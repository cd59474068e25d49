"""What all routes share: the app with its store, and whether the server is about to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..admin import Admin
from ..backends.measured import MeasuredBackend
from ..backends.opening import scrub, secrets_of, store_url
from ..backends.scoped import ScopedBackend
from ..observe.exposition import Scrapes
from ..observe.runs import Runs
from ..observe.store_gauges import StoreGauges
from ..redaction import words_with
from .access import LOCAL, Caller, Permission
from .claiming import KnownWorkers
from .door.entry import Door
from .feed.following import Feed
from .handed import Handed
from .health import Look
from .hooks.webhooks import Webhooks
from .portioning import Portioning
from .recent import Recent
from .showing import RedactedBackend
from .ticking import Ticking
from .watching import Watching

if TYPE_CHECKING:
    from ..app import Packhorse
    from ..backends.base import Backend
    from ..settings import Settings


class Service:
    """One server's view of the world. `app` may have no tasks: then jobs of any type are taken as they are.

    The store is opened by the first request that needs it, and again after it was away: the server runs without it.
    """

    def __init__(self, app: Packhorse) -> None:
        self.app = app
        #: Who comes in: tokens, sessions, throttle. Raises ConfigurationError where the tokens cannot be read.
        self.door = Door.of(app.settings, app.clock)
        self._secret_words = words_with(app.settings.redact)
        self._secrets = secrets_of(store_url(app.settings))
        #: Set when the server begins to stop: long polls and event streams end at once.
        self.stopping = asyncio.Event()
        self.look = Look(app.backend, app.clock, self.scrub, app.meters.writing)
        self.known_workers = KnownWorkers()
        #: Jobs in the hands of workers that speak HTTP.
        self.handed = Handed(Runs(app.meters.sheet()), app.clock)
        #: What happens to jobs, for event streams and webhooks.
        self.feed = Feed(app.backend, self.stopping, app.chance)
        self.webhooks = Webhooks(app.settings, self.feed, app.chance)
        #: For backends at the other end of a network: how much goes into an answer, and who hears what rings.
        self.portioning = Portioning()
        self.watching = Watching(self.stopping)
        #: Failed jobs by what went wrong, as each kind of caller may see them.
        self.groups: Recent[dict[str, Any]] = Recent(app.clock)
        self._ticking = Ticking(app)
        #: What this server counts of its requests.
        self.sheet = app.meters.sheet()
        self.scrapes = Scrapes(app.meters, StoreGauges(app.backend, app.clock, app.meters))

    def start(self) -> None:
        """Begin what goes on beside the requests: ticks. In the event loop that serves; `close` ends it. Idempotent."""
        self._ticking.start()
        self.webhooks.start()

    @property
    def settings(self) -> Settings:
        """The settings of the app."""
        return self.app.settings

    def scrub(self, text: str) -> str:
        """Answer what an error or a store says, without the password or token of the store's URL (FAILURES C20)."""
        return scrub(text, self._secrets)

    async def backend(self, caller: Caller, *, counted_elsewhere: bool = False) -> Backend:
        """Answer the store as `caller` may see it. Raises Unavailable, ConfigurationError.

        `counted_elsewhere`: what is done with it is counted by the caller, and here only how long it took.
        """
        backend: Backend = await self.app.backend()
        if counted_elsewhere and isinstance(backend, MeasuredBackend):
            backend = backend.calls_only()
        if caller.queues is None:
            return backend
        return ScopedBackend(backend, caller.queues, self._ticking.take_lapses if counted_elsewhere else None)

    def note_owner(self, caller: Caller, worker: str) -> None:
        """Note who holds a worker: what the workers of one token name takes a part of the metrics' labels only."""
        if caller is not LOCAL:
            self.app.meters.bounds.owned(worker, caller.name)

    async def shown_backend(self, caller: Caller, *, counted_elsewhere: bool = False) -> Backend:
        """Answer the store as it is shown to `caller`: what looks secret is hidden from who may not steer."""
        backend = await self.backend(caller, counted_elsewhere=counted_elsewhere)
        return backend if caller.may(Permission.STEER) else RedactedBackend(backend, self._secret_words)

    async def admin(self, caller: Caller) -> Admin:
        """Answer the operator's verbs on the store as it is shown to `caller`."""
        return Admin(await self.shown_backend(caller), self.app.clock)

    async def close(self) -> None:
        """Let the store go. Idempotent."""
        self.stopping.set()
        await self.groups.close()
        await self.webhooks.close()
        await self.feed.close()
        await self._ticking.stop()
        await self.look.close()
        await self.scrapes.close()
        self.app.meters.fold(self.sheet)
        await self.app.aclose()
