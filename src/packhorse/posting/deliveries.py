"""What is on its way to one receiver: a bounded queue, a few who send, and further tries with growing pauses.

Nothing is written down: what still waits when its process stops is lost, and that is said.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .. import __version__
from ..clock import SYSTEM_CLOCK
from ..errors import ConfigurationError, PackhorseError
from ..wording import quantity
from .addresses import AddressRefused, Allowed

if TYPE_CHECKING:
    from ..chance import Chance
    from .poster import Poster

#: Deliveries that wait for one receiver; those that come on top are dropped.
HELD_MAX = 1_000
#: How often a delivery is tried, over about ten minutes, and how long one waits for the next try, ms: from nothing to
#: twice as long each time, by chance, so that many do not come at once.
TRIES_MAX = 10
BACKOFF_MS = 1_000
BACKOFF_MS_MAX = 300_000
#: One line of log at most for what is dropped in so long, ms.
_TELL_MS = 10_000


def signature(secret: str, at_s: int, body: bytes) -> str:
    """Answer the header `Packhorse-Signature` of a body that is sent at `at_s`, s since 1970."""
    text = str(at_s).encode() + b"." + body
    return f"t={at_s},v1={hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()}"


class Receiver:
    """Whom to send to. `place` is how its URL is shown, `secret` signs, `concurrency` posts go at once."""

    __slots__ = ("concurrency", "place", "secret", "url")

    def __init__(self, url: str, secret: str, place: str, concurrency: int) -> None:
        self.url = url
        self.secret = secret
        self.place = place
        self.concurrency = concurrency


class Delivery:
    """One thing to tell one receiver. Its id is the same however often it is sent."""

    __slots__ = ("body", "id", "tries")

    def __init__(self, delivery_id: str, body: bytes) -> None:
        self.id = delivery_id
        self.body = body
        self.tries = 0


class Outbox:
    """The queue of one receiver, and those who work on it, in one event loop."""

    def __init__(self, to: Receiver, poster: Poster, chance: Chance, log: logging.Logger) -> None:
        self._to = to
        self._poster = poster
        self._chance = chance
        self._log = log
        self._due: deque[Delivery] = deque()
        self._later: dict[Delivery, asyncio.TimerHandle] = {}
        self._under_way = 0
        self._ready = asyncio.Event()
        self._tried = asyncio.Event()  # nothing is due or under way
        self._tried.set()
        self._slots: list[asyncio.Task[None]] = []
        self._told_ms = -_TELL_MS
        self._untold = 0
        #: What became of deliveries, since the start.
        self.delivered = 0
        self.dropped = 0

    @property
    def held(self) -> int:
        """How many deliveries wait or are under way."""
        return len(self._due) + len(self._later) + self._under_way

    @property
    def is_full(self) -> bool:
        """Whether the next one would be dropped."""
        return self.held >= HELD_MAX

    def start(self) -> None:
        """Begin to send."""
        loop = asyncio.get_running_loop()
        self._slots = [loop.create_task(self._work()) for _ in range(self._to.concurrency)]

    async def close(self) -> None:
        """Stop sending; what waits and what is under way is lost."""
        lost = self.held
        for task in self._slots:
            task.cancel()
        if self._slots:
            await asyncio.wait(self._slots)
        for timer in self._later.values():
            timer.cancel()
        if lost:
            self._log.warning(
                "webhook %s: %s lost with this stop", self._to.place, quantity(lost, "delivery is", "deliveries are")
            )
        if self._untold:
            self._log.warning(
                "webhook %s: %s dropped before",
                self._to.place,
                quantity(self._untold, "more delivery", "more deliveries"),
            )
        self._slots.clear()
        self._due.clear()
        self._later.clear()

    def add(self, delivery: Delivery) -> None:
        """Take one to be sent, or drop it where too many wait already (`is_full`)."""
        if self.is_full:
            self.refuse()
        else:
            self._due.append(delivery)
            self._tried.clear()
            self._ready.set()

    async def tried(self) -> None:
        """Wait until all that is due was tried; what nobody took may wait for another try."""
        await self._tried.wait()

    def refuse(self) -> None:
        """Drop one that was not even made, since too many wait."""
        self._drop(f"{HELD_MAX} wait for this receiver already")

    async def _work(self) -> None:
        while True:
            while not self._due:
                self._ready.clear()
                await self._ready.wait()
            delivery = self._due.popleft()
            self._under_way += 1
            try:
                await self._try(delivery)
            except Exception as error:
                # A slot must not end with one delivery. Its message may quote what was sent, so only its kind is told.
                self._log.error("sending a webhook failed, this is a bug: %s", type(error).__name__)
                self._drop("this process failed")
            finally:
                self._under_way -= 1
                if not self._due and not self._under_way:
                    self._tried.set()

    async def _try(self, delivery: Delivery) -> None:
        """Send a delivery once; what nobody took comes to its turn again, after a while."""
        delivery.tries += 1
        at_s = SYSTEM_CLOCK.now_ms() // 1_000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"packhorse/{__version__}",
            "Packhorse-Delivery": delivery.id,
            "Packhorse-Signature": signature(self._to.secret, at_s, delivery.body),
        }
        try:
            status = await self._poster.post(self._to.url, delivery.body, headers)
        except AddressRefused as error:
            self._drop(str(error))
            return
        except PackhorseError as error:
            why = str(error)
        else:
            if 200 <= status < 300:
                self.delivered += 1
                return
            why = f"it answered {status}"
        if delivery.tries >= TRIES_MAX:
            self._drop(f"tried {quantity(delivery.tries, 'time')}, at last: {why}")
            return
        self._log.debug("webhook %s: delivery %s, try %d: %s", self._to.place, delivery.id, delivery.tries, why)
        most_ms = min(BACKOFF_MS_MAX, BACKOFF_MS << delivery.tries)
        loop = asyncio.get_running_loop()
        delay_s = self._chance.uniform(0, most_ms) / 1_000
        self._later[delivery] = loop.call_later(delay_s, self._again, delivery)

    def _again(self, delivery: Delivery) -> None:
        del self._later[delivery]
        self._due.append(delivery)
        self._tried.clear()
        self._ready.set()

    def _drop(self, why: str) -> None:
        """Count a delivery as lost, and say so, though not for each of many."""
        self.dropped += 1
        self._untold += 1
        now_ms = SYSTEM_CLOCK.boot_ms()
        if now_ms - self._told_ms >= _TELL_MS:
            self._log.warning(
                "webhook %s: %s dropped: %s", self._to.place, quantity(self._untold, "delivery", "deliveries"), why
            )
            self._told_ms = now_ms
            self._untold = 0


def check_address(url: str, place: str, allowed: Allowed) -> None:
    """Refuse at once what would be refused for ever: an address in the URL that is not public."""
    host = urlsplit(url).hostname or ""
    if ":" in host or host.rpartition(".")[2].isdigit():
        try:
            allowed.check(host)
        except AddressRefused as error:
            raise ConfigurationError(f"webhook {place}: {error}") from None


def check_aiohttp() -> None:
    """Refuse at once where what sends is not installed."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise ConfigurationError("webhooks need aiohttp; run: pip install 'packhorse[http]'") from None
