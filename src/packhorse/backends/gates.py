"""What limits let start in one claim, as values: for the backends that keep limits in tables. No I/O."""

from __future__ import annotations

import msgspec

from ..limits import opens_at_ms, take, tokens
from .messages import Limit

_NO_LIMIT = 1 << 30


class Rule(msgspec.Struct, array_like=True):
    """A limit and how much of it is used; a limit that does not exist has neither rate nor concurrency."""

    rate: int | None
    period_ms: int | None
    burst: int | None
    concurrency: int | None
    full_at_ns: int | None

    def limit(self, job_type: str) -> Limit | None:
        """Answer the limit; None: there is none."""
        if self.rate is None and self.concurrency is None:
            return None
        return Limit(
            type=job_type,
            rate=self.rate,
            period_ms=self.period_ms or 1_000,
            burst=self.burst,
            concurrency=self.concurrency,
        )


class Gate:
    """What one limit lets start in this claim."""

    def __init__(self, name: tuple[str, str], rule: Rule, running: int, now_ms: int) -> None:
        self.name = name
        self.now_ms = now_ms
        self.limit = rule.limit(name[0])
        self.full_at_ns = rule.full_at_ns or 0
        self.room = _NO_LIMIT
        self.used = 0
        if self.limit is not None:
            if self.limit.concurrency is not None:
                self.room = self.limit.concurrency - running
            if self.limit.rate is not None:
                self.room = min(self.room, tokens(self.limit, self.full_at_ns, now_ms))

    def bucket(self) -> tuple[str, str, int] | None:
        """Answer the bucket as it is now; None if it did not change."""
        if self.limit is None or self.limit.rate is None or not self.used:
            return None
        return (*self.name, take(self.limit, self.full_at_ns, self.now_ms, self.used))

    def opens_at_ms(self) -> int | None:
        """Answer when its rate lets one more start; None where no rate holds it back."""
        if self.limit is None or self.limit.rate is None:
            return None
        full_at_ns = take(self.limit, self.full_at_ns, self.now_ms, self.used) if self.used else self.full_at_ns
        at_ms = opens_at_ms(self.limit, full_at_ns, self.now_ms)
        return at_ms if at_ms > self.now_ms else None
