"""How long this worker may still believe that its jobs are its own."""

from __future__ import annotations

from collections.abc import Callable

from ..clock import Clock


class Lease:
    """A worker's lease, measured from *before* each renewal was sent, on a clock that counts suspend.

    So it never looks longer here than it is in the store (DESIGN section 5, rule 3).
    """

    def __init__(self, clock: Clock, lease_ms: int, renewed_elsewhere: Callable[[], int] | None = None) -> None:
        self.lease_ms = lease_ms
        self._clock = clock
        self._from_ms = -lease_ms
        self._renewed_elsewhere = renewed_elsewhere  # the keeper renews too and tells when
        #: The renewal that revived it after it had run out, as far as is known here (boot clock before it was sent).
        #: What was claimed before may be somebody else's, whatever renewed the lease since (simulator seed 34310).
        self.unbroken_since_ms = 0
        #: Until then, boot clock, it is fresh in any case: one comparison, for who would ask before each job.
        self.fresh_until_ns = 0

    def renewed(self, sent_ms: int) -> None:
        """Note a renewal that was acknowledged; `sent_ms` is the boot clock before it was sent."""
        if self._clock.boot_ms() - self._from_ms >= self.lease_ms:
            self.unbroken_since_ms = max(self.unbroken_since_ms, sent_ms)
        self._from_ms = max(self._from_ms, sent_ms)
        self.fresh_until_ns = (self._from_ms + self.lease_ms // 3) * 1_000_000

    def age_ms(self) -> int:
        """Answer how much of the lease is used up, ms. Above `lease_ms` it may be lost."""
        now_ms = self._clock.boot_ms()
        age_ms = now_ms - self._from_ms
        if age_ms * 3 > self.lease_ms and self._renewed_elsewhere is not None:
            self.renewed(self._renewed_elsewhere())
            age_ms = now_ms - self._from_ms
        return age_ms

    def fresh(self) -> bool:
        """Answer whether a handler may start now: less than a third of the lease is gone."""
        return self.age_ms() * 3 <= self.lease_ms

    def live(self) -> bool:
        """Answer whether the lease can still be ours."""
        return self.age_ms() < self.lease_ms
