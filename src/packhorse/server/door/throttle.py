"""Wrong tokens, counted by address: who tries too many waits, and the log says so once a minute (FAILURES C18).

What is decided here: a throttled address gets 429 with `Retry-After` for every token that is new from there, right or
wrong, and nothing is looked up: so the rate of tries falls. A token that was right from that very address before is
still let in: somebody who guesses behind the same proxy or NAT locks nobody out who is at work. Sessions are never
throttled: their ids are 256 random bits of our own making.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from functools import lru_cache

import msgspec

from ...clock import SYSTEM_CLOCK, Clock

log = logging.getLogger("packhorse.server")

#: Wrong tokens that an address has free, and how long each takes to be forgotten, ms: then 12 a minute.
FAILURES_MAX = 20
FORGET_MS = 5_000

#: Addresses that are remembered, those heard of last; and pairs of address and token that were right.
ADDRESSES_MAX = 10_000
RIGHT_MAX = 10_000

#: Between two log lines about one address, ms.
LOG_EVERY_MS = 60_000


class _Failures(msgspec.Struct, gc=False):
    """What is remembered of an address. `debt_ms` is the boot time at which all is forgotten."""

    debt_ms: int
    unlogged: int = 0
    logged_at_ms: int | None = None


class Throttle:
    """Remembers wrong tokens by address, in bounded memory."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait_ms(self, address: str) -> int:
        """Answer how long an address has to wait before it may try again; 0: it may now."""
        failures = self._failures.get(address)
        if failures is None:
            return 0
        return max(0, failures.debt_ms - (FAILURES_MAX - 1) * FORGET_MS - self._clock.boot_ms())

    def was_right(self, address: str, digest: bytes) -> bool:
        """Answer whether this token was right from this address before."""
        return (address, digest) in self._right

    def right(self, address: str, digest: bytes) -> None:
        """Remember that a token was right from an address."""
        pair = (address, digest)
        if pair not in self._right:
            self._right[pair] = None
            if len(self._right) > RIGHT_MAX:
                self._right.popitem(last=False)

    def wrong(self, address: str) -> None:
        """Count a wrong token of an address, or a try while it had to wait (which makes the wait no longer)."""
        now_ms = self._clock.boot_ms()
        failures = self._failures.get(address)
        if failures is None:
            failures = self._failures[address] = _Failures(debt_ms=now_ms)
            if len(self._failures) > ADDRESSES_MAX:
                self._failures.popitem(last=False)
        else:
            self._failures.move_to_end(address)
        if self.wait_ms(address) == 0:
            failures.debt_ms = max(failures.debt_ms, now_ms) + FORGET_MS
        failures.unlogged += 1
        if failures.logged_at_ms is None or now_ms - failures.logged_at_ms >= LOG_EVERY_MS:
            log.warning("wrong tokens from %s: %d since the last such line", address, failures.unlogged)
            failures.logged_at_ms, failures.unlogged = now_ms, 0


@lru_cache(1_024)
def address_of(host: str) -> str:
    """Answer under what a client is counted: its IPv4 address, its IPv6 /64, or `local` where it has none."""
    host = host.partition("%")[0]
    if ":" not in host:
        return host if host.isascii() and host.isprintable() and 0 < len(host) <= 64 else "local"
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return "local"
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
