"""Before a worker starts: whether the store lets it work at all. One that may not is to end, not to try for ever."""

from __future__ import annotations

from ..backends.base import Backend
from ..errors import ConfigurationError, OutOfScope, Refused
from .options import WorkerOptions


async def check_admitted(backend: Backend, options: WorkerOptions, worker: str) -> None:
    """Refuse to start a worker whose claims the store refuses; takes no job.

    Raises ConfigurationError; Unavailable where the store does not answer. Only for the start: while a worker runs,
    rights that were taken away are for somebody to give back, and no outcome of a job may depend on it.
    """
    try:
        await backend.claim(options.queues, 0, options.lease_ms, worker)
    except Refused as error:
        remedy = "; a worker needs a token of role work that is for all its queues"
        raise ConfigurationError(
            f"the store refuses claims from {', '.join(options.queues)}: {error}"
            f"{remedy if isinstance(error, OutOfScope) else ''}"
        ) from error
