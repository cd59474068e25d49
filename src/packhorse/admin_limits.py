"""The operator's verbs on limits, as `Admin.limits`, and the one JSON shape of a limit."""

from __future__ import annotations

import builtins
from typing import Any, Literal

import msgspec

from .backends.base import Backend, Limit, Query
from .errors import InvalidOption
from .job import KEY_CHARS_MAX, check_name
from .limiting import check_capable, clear_limit, set_limit
from .limits import burst_of, check_limit_change
from .rates import rate_text


class LimitSet(msgspec.Struct, frozen=True):
    """A limit as it is now; `known` is False where no live worker takes its type and no job has it."""

    limit: Limit
    known: bool


class AdminLimits:
    """What an operator can see and do about limits."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def list(self) -> builtins.list[Limit]:
        """Answer all limits, by type and key. Raises Unsupported."""
        check_capable(self._backend)
        return await self._backend.limits()

    async def show(self, job_type: str, key: str | None = None) -> builtins.list[Limit]:
        """Answer the limits that a job of a type (and of `key`) must pass, with their state now. Raises Unsupported."""
        check_capable(self._backend)
        if key is not None and not (1 <= len(key) <= KEY_CHARS_MAX and key.isprintable()):
            raise InvalidOption(f"key: must be 1 to {KEY_CHARS_MAX} printable characters")
        return await self._backend.limits(about=(check_name(job_type, "job type"), key))

    async def set(self, change: Limit) -> LimitSet:
        """Change a limit, see `rates.make_limit`. It takes effect at the next claim; no code overrides it."""
        limit = await set_limit(self._backend, change)
        return LimitSet(limit, await self._is_known(change.type))

    async def clear(self, job_type: str, key: str | None = None) -> bool:
        """Remove a limit; answers whether there was one. One of an app's code comes back when a worker starts."""
        return await clear_limit(self._backend, job_type, key)

    async def named(self, job_type: str, key: str | None = None) -> Limit | None:
        """Answer the limit of a type, or of a key of it; None: there is none. Raises Unsupported, InvalidOption."""
        check_capable(self._backend)
        wanted = Limit(type=job_type, key=key)
        check_limit_change(wanted)
        found = await self._backend.limits()
        return next((limit for limit in found if (limit.type, limit.key) == (job_type, key)), None)

    async def lift(self, job_type: str, key: str | None, part: Literal["rate", "concurrency"]) -> None:
        """Lift one part of a limit; the other stays, as an operator's. Repeating is harmless."""
        check_capable(self._backend)
        change = Limit(type=job_type, key=key)
        await self._backend.limits([msgspec.structs.replace(change, **{part: 0})])

    async def _is_known(self, job_type: str) -> bool:
        if any(job_type in worker.types for worker in await self._backend.workers()):
            return True
        return bool((await self._backend.find(Query(type=job_type, brief=True, limit=1))).jobs)


def limit_json(limit: Limit, *, live: bool = False) -> dict[str, Any]:
    """Answer the JSON of a limit; with `live` also what runs and when it opens (ms; null: when a running job ends)."""
    shown: dict[str, Any] = {
        "type": limit.type,
        "key": limit.key,
        "rate": None if limit.rate is None else rate_text(limit.rate, limit.period_ms),
        "burst": None if limit.rate is None else burst_of(limit),
        "concurrency": limit.concurrency,
        "source": limit.source or "operator",
    }
    if live:
        shown |= {"running": limit.running, "opens_in_ms": limit.opens_in_ms}
    return shown
