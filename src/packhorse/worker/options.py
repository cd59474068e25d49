"""How a worker is to behave, as one value that can cross to another process."""

from __future__ import annotations

import msgspec

from ..backends.base import Keep
from ..errors import ConfigurationError
from ..job import check_name
from ..settings import Settings
from .weights import read_queues

#: How long settling may go on after the grace time of a shutdown.
SETTLE_MS_MAX = 5_000
#: And after that, how long the app's failure hooks may take for what waits, and to send off the rest.
HOOKS_MS_MAX, HOOKS_CLOSE_MS_MAX = 3_000, 2_000


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one runner. Durations in ms."""

    queues: tuple[str, ...] = ("default",)
    weights: tuple[int, ...] = ()  # of the queues; none: they are taken from strictly in order
    concurrency: int = 100
    lease_ms: int = 30_000
    shutdown_timeout_ms: int = 30_000
    poll_interval_ms: int = 1_000
    park_ms: int = 600_000
    # How long a run that was told to stop may take before its slot is taken back.
    stop_grace_ms: int = 5_000
    burst: bool = False
    define_schedules: bool = True  # bring the store's schedules in step with the app's code at the start
    jobs_max: int = 0  # recycle a runner process after so many jobs; 0: never
    memory_bytes_max: int = 0  # recycle a runner process above this size; 0: never
    blocked_ms: int = 500  # warn of an event loop that does not turn for so long; 0: never
    keep_succeeded_ms: int = 86_400_000
    keep_failed_ms: int = 30 * 86_400_000
    keep_cancelled_ms: int = 86_400_000

    def __post_init__(self) -> None:
        for queue in self.queues:
            check_name(queue, "queue")
        if self.weights and len(self.weights) != len(self.queues):
            raise ConfigurationError("queues: give each a weight, as a=6,b=1, or none")
        if not 1 <= self.concurrency <= 100_000:
            raise ConfigurationError(f"concurrency {self.concurrency} must be from 1 to 100000")
        if not 1_000 <= self.lease_ms <= 86_400_000:
            raise ConfigurationError(f"a lease of {self.lease_ms} ms must be from 1s to 1d; 30s is the default")

    @classmethod
    def of(cls, settings: Settings, **overrides: object) -> WorkerOptions:
        """Take the worker's part of the settings; `overrides` that are None count as not given.

        Queues may come with weights, see `read_queues`.
        """
        shared = {name: getattr(settings, name) for name in cls.__struct_fields__ if hasattr(settings, name)}
        given = {name: value for name, value in overrides.items() if value is not None}
        fields = {**shared, **given}
        fields["queues"], fields["weights"] = read_queues(fields["queues"])
        return cls(**fields)


def keep_times(options: WorkerOptions) -> Keep:
    """Answer how long ended jobs are kept."""
    return Keep(
        succeeded_ms=options.keep_succeeded_ms,
        failed_ms=options.keep_failed_ms,
        cancelled_ms=options.keep_cancelled_ms,
    )
