"""Failures posted to a URL, signed as the server's webhooks are: `app.on_failure(post_failures(url, secret=…))`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import msgspec

from ..chance import CHANCE
from ..clock import SYSTEM_CLOCK
from ..errors import ConfigurationError
from ..shapes import instant_json
from ..webhook import CONCURRENCY_MAX, SECRET_CHARS_MAX, SECRET_CHARS_MIN, check_url, read_networks
from .addresses import Allowed
from .deliveries import Delivery, Outbox, Receiver, check_address, check_aiohttp

if TYPE_CHECKING:
    from ..observe.failures import Failure
    from .poster import Poster

log = logging.getLogger("packhorse.failures")

#: At the stop of a worker, what was not tried yet may take so long, s.
_LAST_S = 1.5


class PostFailures:
    """A failure hook that posts; in each event loop it has a queue of its own."""

    def __init__(self, receiver: Receiver, allowed: Allowed, *, traceback: bool) -> None:
        self._receiver = receiver
        self._allowed = allowed
        self._traceback = traceback
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Outbox, Poster]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<post_failures {self._receiver.place}>"

    async def __call__(self, failure: Failure) -> None:
        """Put a failure into the queue; it is sent as soon as the receiver takes it."""
        outbox = self._outbox()
        if outbox.is_full:
            outbox.refuse()
            return
        now_ms = SYSTEM_CLOCK.now_ms()
        delivery_id = CHANCE.id(now_ms)
        body = {"delivery": delivery_id, "at": instant_json(now_ms), "failure": self._json(failure)}
        outbox.add(Delivery(delivery_id, msgspec.json.encode(body)))

    def _outbox(self) -> Outbox:
        loop = asyncio.get_running_loop()
        found = self._open.get(loop)
        if found is None:
            from .poster import Poster

            poster = Poster(self._allowed)
            outbox = Outbox(self._receiver, poster, CHANCE, log)
            outbox.start()
            found = self._open[loop] = outbox, poster
        return found[0]

    def _json(self, failure: Failure) -> dict[str, Any]:
        error = {"kind": failure.error_kind, "message": failure.message}
        if self._traceback:
            error["traceback"] = failure.traceback
        return {
            "id": failure.id,
            "type": failure.type,
            "queue": failure.queue,
            "attempt": failure.attempt,
            "max_attempts": failure.max_attempts,
            "final": failure.final,
            "retry_in_ms": failure.retry_in_ms,
            "error": error,
            "key": failure.key,
            "tags": failure.tags,
            "workflow": failure.workflow,
            "worker": failure.worker,
            "duration_ms": None if failure.duration_ms is None else round(failure.duration_ms, 3),
            "failed_at": instant_json(failure.at_ms),
            "trace_id": failure.trace_id,
        }

    async def close(self) -> None:
        """Send what was not tried yet, for a moment; what waits for another try is lost, and that is said."""
        outbox, poster = self._open.pop(asyncio.get_running_loop(), (None, None))
        if outbox is None or poster is None:
            return
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await outbox.tried()
        finally:
            await outbox.close()
            await poster.close()


def post_failures(
    url: str, *, secret: str, concurrency: int = 2, allow: Iterable[str] = (), traceback: bool = False
) -> PostFailures:
    """Make a failure hook that posts each failure to `url`, signed with `secret`, as webhooks are.

    Tried ten times over about ten minutes while the worker lives; at most 1,000 wait. Public addresses only, and those
    of `allow` ("10.1.0.0/16"). With `traceback` what is sent has that too. Raises ConfigurationError.
    """
    what = "post_failures"
    url = check_url(url, what)
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc}/…"  # paths and queries of such URLs are often secrets themselves
    if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX:
        raise ConfigurationError(
            f"{what}: the secret must be text of {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} characters; "
            "`openssl rand -hex 32` makes one"
        )
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise ConfigurationError(f"{what}: concurrency must be a whole number from 1 to {CONCURRENCY_MAX}")
    allowed = Allowed(
        read_networks(allow if isinstance(allow, str) else tuple(allow), f"{what}: allow"), f"{what}(allow=…)"
    )
    check_address(url, place, allowed)
    check_aiohttp()
    return PostFailures(Receiver(url, secret, place, concurrency), allowed, traceback=traceback)
