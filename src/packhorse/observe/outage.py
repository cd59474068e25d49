"""What goes wrong again and again is said once, not at every try; and it is said when it is over."""

from __future__ import annotations

import logging

from ..clock import Clock

#: The same words are said again when they are as old as this, ms.
AGAIN_MS = 60_000
#: Different words that are said within that time; a store whose every error reads differently floods nothing either.
TEXTS_MAX = 8


class Outage:
    """The log lines of one thing that is tried until it works, as "renew the lease".

    A reason is said when it is new, and once a minute while it lasts; the end is said if the beginning was. One that
    comes and goes (each second call fails) is an outage after the other, and still no more than that a minute.
    `of` is whose outage it is.
    """

    def __init__(self, log: logging.Logger, clock: Clock, doing: str, of: str = "the store") -> None:
        self._log = log
        self._clock = clock
        self._doing = doing
        self._of = of
        self._said_ms: dict[str, int] = {}  # by text, boot clock; at most TEXTS_MAX
        self._since_ms: int | None = None  # None: it works
        self._told = False  # somebody was told of this outage

    def failed(self, error: Exception | str) -> None:
        """Say why it failed, unless that was said within the last minute."""
        now_ms = self._clock.boot_ms()
        if self._since_ms is None:
            self._since_ms = now_ms
        self._said_ms = {text: said_ms for text, said_ms in self._said_ms.items() if now_ms - said_ms < AGAIN_MS}
        text = str(error)
        if text in self._said_ms or len(self._said_ms) >= TEXTS_MAX:
            return
        self._said_ms[text] = now_ms
        self._told = True
        lasted_ms = now_ms - self._since_ms
        so_far = f" (for {lasted_ms // 1_000} s now)" if lasted_ms >= AGAIN_MS else ""
        self._log.warning("cannot %s%s, trying again: %s", self._doing, so_far, text)

    def over(self) -> None:
        """Say that it works again and how long it did not, if anybody was told. Costs nothing while all is well."""
        if self._since_ms is None:
            return
        lasted_s = (self._clock.boot_ms() - self._since_ms) / 1_000
        if self._told:
            shown = f"{lasted_s:.1f}" if lasted_s < 10 else f"{lasted_s:.0f}"
            self._log.info("%s answers again after %s s: can %s again", self._of, shown, self._doing)
        self._since_ms, self._told = None, False
