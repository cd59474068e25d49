"""The app's words for limits and for the capacity of queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .backends.base import Limit, QueueChange
from .errors import InvalidOption, Unsupported
from .job import check_name

if TYPE_CHECKING:
    from .backends.base import Backend
    from .sync import Portal

#: The most jobs a queue may be told to hold.
CAPACITY_MAX = 1_000_000_000


class Limiting:
    """The part of an app that has to do with limits. What is set here is an operator's: no code overrides it."""

    portal: Portal

    if TYPE_CHECKING:

        async def backend(self) -> Backend: ...

    async def aset_limit(
        self,
        job_type: str,
        key: str | None = None,
        *,
        rate: str | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
    ) -> Limit:
        """Limit the starts of a type, over all workers, from the next claim on; answers the limit as it is now.

        `rate` as "100/m", with `burst` at once after a pause (unless given: what 100 ms give, at least 1);
        `concurrency` at once. `key` is one key of the type, or `EACH_KEY` ("*") each for itself. What is not given
        stays as it is. Raises InvalidOption, Unsupported.
        """
        from .rates import make_limit

        change = make_limit(job_type, key, rate=rate, burst=burst, concurrency=concurrency)
        return await set_limit(await self.backend(), change)

    def set_limit(
        self,
        job_type: str,
        key: str | None = None,
        *,
        rate: str | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
    ) -> Limit:
        """Limit the starts of a type, over all workers; blocks. See `aset_limit`."""
        return self.portal.call(self.aset_limit(job_type, key, rate=rate, burst=burst, concurrency=concurrency))

    async def alimits(self, job_type: str | None = None, key: str | None = None) -> list[Limit]:
        """Answer all limits; with a type, those that a job of it (and of `key`) must pass, with their state now."""
        about = None if job_type is None else (check_name(job_type, "job type"), key)
        return await (await self.backend()).limits(about=about)

    def limits(self, job_type: str | None = None, key: str | None = None) -> list[Limit]:
        """Answer all limits, or those of a type with their state; blocks. See `alimits`."""
        return self.portal.call(self.alimits(job_type, key))

    async def aclear_limit(self, job_type: str, key: str | None = None) -> bool:
        """Remove a limit; answers whether there was one. One that the code declares comes back with the next worker."""
        return await clear_limit(await self.backend(), job_type, key)

    def clear_limit(self, job_type: str, key: str | None = None) -> bool:
        """Remove a limit; answers whether there was one. See `aclear_limit`."""
        return self.portal.call(self.aclear_limit(job_type, key))

    async def aset_capacity(self, queue: str, capacity: int) -> None:
        """Let a queue hold at most so many pending jobs; 0 lifts it. An enqueue into a full queue waits for room."""
        await set_capacity(await self.backend(), queue, capacity)

    def set_capacity(self, queue: str, capacity: int) -> None:
        """Let a queue hold at most so many pending jobs; 0 lifts it. An enqueue into a full queue waits for room."""
        self.portal.call(self.aset_capacity(queue, capacity))


async def set_limit(backend: Backend, change: Limit) -> Limit:
    """Change a limit and answer what it is now. Raises InvalidOption for a burst without a rate, Unsupported."""
    check_capable(backend)
    if change.burst is not None and change.rate is None:
        held = _named(await backend.limits(), change)
        if held is None or held.rate is None:
            raise InvalidOption("burst: there is no rate that it belongs to; give a rate too, as 50/s")
    found = _named(await backend.limits([change]), change)
    return found if found is not None else change  # cleared by another in the meantime


async def clear_limit(backend: Backend, job_type: str, key: str | None) -> bool:
    """Remove a limit; answers whether there was one."""
    check_capable(backend)
    change = Limit(type=check_name(job_type, "job type"), key=key, cleared=True)
    there = _named(await backend.limits(), change) is not None
    await backend.limits([change])
    return there


async def set_capacity(backend: Backend, queue: str, capacity: int) -> None:
    """Let a queue hold at most so many pending jobs; 0 lifts it."""
    given: object = capacity
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= CAPACITY_MAX:
        raise InvalidOption(f"capacity: must be a whole number from 1 to {CAPACITY_MAX:,}, or 0 to lift it")
    if not backend.capabilities.capacity:
        raise Unsupported("capacity")
    await backend.queues([QueueChange(queue=check_name(queue, "queue"), capacity=capacity)])


def check_capable(backend: Backend) -> None:
    """Refuse limits where the backend cannot keep any."""
    if not backend.capabilities.limits:
        raise Unsupported("limits", "use another backend, or limit the concurrency of the workers")


def _named(limits: list[Limit], wanted: Limit) -> Limit | None:
    return next((limit for limit in limits if (limit.type, limit.key) == (wanted.type, wanted.key)), None)
