"""When a worker or a server of an app starts: brings the store's limits and schedules in step with the app's code."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..backends.base import BATCH_MAX, Backend, Limit, QueueChange
from ..errors import PackhorseError, Unavailable
from ..observe.outage import Outage
from ..rates import CODE
from ..recurring import sync

if TYPE_CHECKING:
    from ..app import Packhorse

log = logging.getLogger("packhorse.limits")


async def declare_limits(app: Packhorse, backend: Backend, queues: Sequence[str] = ()) -> None:
    """Set the limits that the tasks declare, clear those they declare no more, and give `queues` their capacity.

    What an operator set stays. Waits for a store that does not answer: nothing may start before its limit is known.
    A store that cannot keep limits, or refuses them, is an error in the log and no reason not to work.
    """
    outage = Outage(log, app.clock, "declare the limits of the app")
    while True:
        try:
            await _declare(app, backend)
            await _declare_capacity(app, backend, queues)
        except Unavailable as error:
            outage.failed(error)
            await asyncio.sleep(app.chance.uniform(0.5, 2.0))
        except PackhorseError as error:
            log.error("the limits of the app are not declared: %s", error)
            return
        else:
            outage.over()
            return


async def declare_schedules(app: Packhorse, backend: Backend) -> None:
    """Bring the store's schedules in step with the app's code.

    Waits for a store that does not answer; one that cannot keep schedules is an error in the log.
    """
    outage = Outage(log, app.clock, "define the schedules of the app")
    while True:
        try:
            await sync(app, backend)
        except Unavailable as error:
            outage.failed(error)
            await asyncio.sleep(app.chance.uniform(0.1, 1.0))
        except PackhorseError as error:
            log.error("the schedules of the app are not defined: %s", error)
            return
        else:
            outage.over()
            return


async def _declare(app: Packhorse, backend: Backend) -> None:
    wanted = {(limit.type, limit.key): limit for task in app.tasks.values() for limit in task.limits}
    if not backend.capabilities.limits:
        if wanted:
            types = ", ".join(sorted({job_type for job_type, _ in wanted}))
            log.error("this backend does not support 'limits': those of %s are NOT kept; use another backend", types)
        return
    held = {(limit.type, limit.key): limit for limit in await backend.limits()}
    changes = []
    for name, limit in wanted.items():
        if name in held and not held[name].source:
            log.info("the limit of %s is an operator's; what the code says is not used", name[0])
        elif name not in held or _parts(held[name]) != _parts(limit):
            changes.append(_as_a_whole(limit))
    changes += [
        Limit(type=name[0], key=name[1], source=CODE, cleared=True)
        for name, limit in held.items()
        if limit.source == CODE and limit.type in app.tasks and name not in wanted
    ]
    for start in range(0, len(changes), BATCH_MAX):
        await backend.limits(changes[start : start + BATCH_MAX])
    for change in changes:
        log.info("the limit of %s is %s, as the code says", change.type, "cleared" if change.cleared else "set")


def _parts(limit: Limit) -> tuple[int | None, ...]:
    return limit.rate, limit.period_ms if limit.rate is not None else None, limit.burst, limit.concurrency


def _as_a_whole(limit: Limit) -> Limit:
    """Write a limit as a change that leaves no part of an older one."""
    return Limit(
        type=limit.type,
        key=limit.key,
        rate=limit.rate or 0,
        period_ms=limit.period_ms,
        burst=limit.burst or 0,
        concurrency=limit.concurrency or 0,
        source=limit.source,
    )


async def _declare_capacity(app: Packhorse, backend: Backend, queues: Sequence[str]) -> None:
    capacity = app.settings.capacity
    if capacity is None or not queues:
        return
    if not backend.capabilities.capacity:
        log.error("this backend does not support 'capacity': the setting capacity=%d is NOT kept", capacity)
        return
    held = await backend.queues()
    changes = [
        QueueChange(queue=queue, capacity=capacity)
        for queue in queues
        if queue not in held or held[queue].capacity is None
    ]
    if changes:
        await backend.queues(changes)
