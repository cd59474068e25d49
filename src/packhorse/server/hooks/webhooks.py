"""Webhooks: the end of a job told to a URL, signed, at least once while this server runs.

Each webhook has a queue and slots of its own, so a receiver that is dead or slow hurts no other. Nothing is written
down: a stop in order tells what has ended by then, but what ends while no server runs, what a receiver did not take
until the stop, and what waits in a server that is killed, is not told.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from ...chance import named_id
from ...clock import SYSTEM_CLOCK
from ...posting.addresses import Allowed
from ...posting.deliveries import Delivery, Outbox, Receiver, check_address, check_aiohttp
from ...shapes import instant_json
from ..feed.events import Batch, Filter, Told
from ..feed.listeners import Listener

if TYPE_CHECKING:
    from ...chance import Chance
    from ...posting.poster import Poster
    from ...settings import Settings
    from ...webhook import Webhook
    from ..feed.following import Feed

log = logging.getLogger("packhorse.server")

#: How long a stop waits for the store's last changes and for receivers to take what is due.
_LAST_TRY_S = 3.0


def _delivery(hook: Webhook, told: Told) -> Delivery:
    """Make the delivery of an event. Its id is the same whichever server sends it."""
    event = told.event
    delivery_id = named_id("webhook", hook.url, event.id, str(event.state), str(told.change.at_ms))
    at = instant_json(SYSTEM_CLOCK.now_ms())
    return Delivery(delivery_id, msgspec.json.encode({"delivery": delivery_id, "at": at, "event": event}))


class Deliveries(Listener):
    """One webhook: what it wants to hear of the feed goes into its outbox."""

    def __init__(self, hook: Webhook, poster: Poster, chance: Chance) -> None:
        wanted = Filter(
            states=frozenset(hook.states),
            queues=frozenset(hook.queues) or None,
            types=frozenset(hook.types) or None,
        )
        super().__init__(wanted)
        self._hook = hook
        self.outbox = Outbox(Receiver(hook.url, hook.secret, hook.place, hook.concurrency), poster, chance, log)

    def take(self, batch: Batch) -> None:
        for told in batch.events:
            if self.outbox.is_full:
                self.outbox.refuse()
            else:
                self.outbox.add(_delivery(self._hook, told))

    def take_counts(self, text: bytes) -> None:
        return

    def gap(self, reason: str, mark: str | None) -> None:
        log.warning("webhook %s: some ends of jobs were missed: %s", self._hook.place, reason)

    def end(self) -> None:
        return  # `Webhooks.close` ends it, with the server


class Webhooks:
    """All webhooks of a server. Without any in the settings this does nothing, and aiohttp is not needed."""

    def __init__(self, settings: Settings, feed: Feed, chance: Chance) -> None:
        """Check the settings. Raises ConfigurationError where a webhook cannot work as it is configured."""
        self._hooks = settings.webhooks
        self._allowed = Allowed(settings.webhooks_allow)
        self._feed = feed
        self._chance = chance
        self._poster: Poster | None = None
        self.queues: list[Deliveries] = []
        for hook in self._hooks:
            check_address(hook.url, hook.place, self._allowed)
        if self._hooks:
            check_aiohttp()

    def start(self) -> None:
        """Begin to send, in the running event loop. Idempotent."""
        if not self._hooks or self.queues:
            return
        from ...posting.poster import Poster

        poster = self._poster = Poster(self._allowed)
        for hook in self._hooks:
            queue = Deliveries(hook, poster, self._chance)
            queue.outbox.start()
            self.queues.append(queue)
            self._feed.add(queue)
        log.info("webhooks: %s", ", ".join(hook.place for hook in self._hooks))

    async def close(self) -> None:
        """Tell what has ended by now, once and within a bounded time; then stop sending. Idempotent."""
        queues, self.queues = self.queues, []
        if queues:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_TRY_S):
                    await self._feed.catch_up()
                    await asyncio.gather(*[queue.outbox.tried() for queue in queues])
        for queue in queues:
            self._feed.remove(queue)
        await asyncio.gather(*[queue.outbox.close() for queue in queues])
        if self._poster is not None:
            await self._poster.close()
            self._poster = None
