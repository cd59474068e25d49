"""Jobs out to workers of other languages: a claim that waits, and gives back what nobody is there to take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import codec
from ..backends.base import Backend, WorkerInfo, queue_topic
from ..backends.http import wire
from ..errors import InvalidPayload, PackhorseError
from ..job import Claimed
from ..outcome import RELEASED, Outcome, unknown, unreadable
from ..retry import Backoff, decide, hear, is_unheard
from ..wording import quantity

if TYPE_CHECKING:
    from .request import Request
    from .service import Service

log = logging.getLogger("packhorse.server")

#: Workers whose host, queues and types are remembered between their calls.
_KNOWN_MAX = 10_000
#: Names of queues and types that are remembered of all of them: some 20 MB if all are as long as they may be.
_KNOWN_NAMES_MAX = 100_000
#: A claim that got jobs which its worker does not know lets others go first for this long, s. test_b26_…
_YIELD_S = (0.02, 0.1)


class KnownWorkers:
    """What workers said of themselves, so that they need not say all of it in every call.

    `scope` keeps callers apart who see different queues.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, str], WorkerInfo] = {}
        self._beaten_ms: dict[tuple[object, str], int] = {}
        self._names = 0

    async def info(
        self, scope: object, worker: str, given: dict[str, Any], backend: Backend, now_ms: int
    ) -> tuple[WorkerInfo, bool]:
        """Answer what is known of a worker now that it said `given`, and whether the store may not know that yet."""
        known = self._known.get((scope, worker))
        if known is None:  # it is new, or another server knows it
            found = [one for one in await backend.workers() if one.id == worker]
            known = found[0] if found else WorkerInfo(id=worker, started_at_ms=now_ms)
            known = msgspec.structs.replace(known, lease_left_ms=0, running=0)  # the store's own to answer
        info = msgspec.structs.replace(known, **given)
        return info, info != self._known.get((scope, worker))

    def beaten(self, scope: object, info: WorkerInfo, boot_ms: int) -> None:
        """Note that the store was told of a worker; `boot_ms` is from before that."""
        key = (scope, info.id)
        self.forget(*key)  # the one heard of last goes last
        self._known[key] = info
        self._beaten_ms[key] = boot_ms
        self._names += _names_of(info)
        while len(self._known) > _KNOWN_MAX or self._names > _KNOWN_NAMES_MAX:
            self.forget(*next(iter(self._known)))

    def age_ms(self, scope: object, worker: str, boot_ms: int) -> int:
        """Answer how long ago the store was told of a worker, as far as is known here."""
        return boot_ms - self._beaten_ms.get((scope, worker), -(1 << 62))

    def forget(self, scope: object, worker: str) -> None:
        """Forget a worker that is gone. Idempotent."""
        known = self._known.pop((scope, worker), None)
        self._names -= 0 if known is None else _names_of(known)
        self._beaten_ms.pop((scope, worker), None)


def _names_of(worker: WorkerInfo) -> int:
    return len(worker.queues) + len(worker.types)


class HangUp:
    """Tells whether the client of a request is still there. For requests whose body was read."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self.seen = asyncio.get_running_loop().create_task(self._see())

    async def _see(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def __bool__(self) -> bool:
        return self.seen.done()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self.seen.cancel()


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker asks for. `types` None: it takes any. Durations in ms."""

    worker: str
    queues: tuple[str, ...]
    limit: int
    lease_ms: int
    wait_ms: int
    types: frozenset[str] | None


class Claiming:
    """One claim of one worker over HTTP."""

    def __init__(self, service: Service, backend: Backend, claim: Claim, hang_up: HangUp) -> None:
        self._service = service
        self._backend = backend
        self._claim = claim
        self._hang_up = hang_up
        #: How long there was nothing to claim: from the request's arrival to just before the last claim.
        self.waited_ms = 0

    async def jobs(self) -> list[Claimed]:
        """Claim, and where there is nothing wait and claim again, until the time is over.

        Ends empty when the client hangs up or the server begins to stop. Raises what the backend raises.
        """
        clock, settings = self._service.app.clock, self._service.settings
        began_ms = clock.boot_ms()
        parked = False
        end_ms = began_ms + self._claim.wait_ms
        with self._backend.watch([queue_topic(queue) for queue in self._claim.queues]) as bell:
            while not self._over():
                self.waited_ms = clock.boot_ms() - began_ms
                claimed = await self._take()
                try:
                    jobs = await self._sorted(claimed)
                except asyncio.CancelledError:
                    await self.release(claimed)
                    raise
                left_ms = end_ms - clock.boot_ms()
                if jobs and self._hang_up:
                    await self.release(jobs)
                    return []
                if jobs or left_ms <= 0:
                    return jobs
                parked = parked or bool(claimed)
                if not claimed:  # else there may be others behind those that it cannot run
                    await self._unless_over(bell.wait(min(left_ms, settings.poll_interval_ms)))
                if parked:  # what it cannot run is offered again: whoever rings first must not always take it
                    await asyncio.sleep(self._service.app.chance.uniform(*_YIELD_S))
        return []

    def _over(self) -> bool:
        return bool(self._hang_up) or self._service.stopping.is_set()

    async def _unless_over(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for something, the client's hanging up, or the server's stop, whichever is first."""
        first = asyncio.ensure_future(waiting)
        stopping = asyncio.ensure_future(self._service.stopping.wait())
        try:
            await asyncio.wait({first, stopping, self._hang_up.seen}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
            stopping.cancel()
            await asyncio.gather(first, stopping, return_exceptions=True)

    async def _take(self) -> list[Claimed]:
        """Claim once, no more bytes than one answer takes. Cancelled on its way, what it got is given back."""
        wanted = self._claim
        claim = wire.Claim(wanted.queues, wanted.limit, wanted.lease_ms, wanted.worker)
        call = asyncio.ensure_future(self._service.portioning.claim(self._backend, claim))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            if not call.cancelled() and call.exception() is None:
                await self.release(call.result())
            raise

    async def _sorted(self, jobs: list[Claimed]) -> list[Claimed]:
        """Answer the jobs that this worker can run; the others are parked for one that can, as in Python."""
        self._service.handed.note(jobs)
        can: list[Claimed] = []
        cannot: list[tuple[Claimed, Outcome]] = []
        for job in jobs:
            if self._claim.types is not None and job.type not in self._claim.types:
                cannot.append((job, unknown(job.type)))
                continue
            try:
                codec.decode(job.payload)
            except InvalidPayload as error:  # whatever somebody put into the store (FAILURES B9)
                cannot.append((job, unreadable(error)))
            else:
                can.append(job)
        await self._settle(cannot)
        return can

    async def release(self, jobs: Sequence[Claimed]) -> None:
        """Give jobs back that were not handed out; no attempt is counted. Never raises for the store."""
        await self._settle([(job, RELEASED) for job in jobs])

    async def _settle(self, ends: Sequence[tuple[Claimed, Outcome]]) -> None:
        if not ends:
            return
        app, park_ms = self._service.app, self._service.settings.park_ms
        settlements = [
            decide(job, outcome, Backoff(), app.chance, app.clock.now_ms(), park_ms) for job, outcome in ends
        ]
        try:
            if any(is_unheard(outcome, made) for (_, outcome), made in zip(ends, settlements, strict=True)):
                workers = await (await app.backend()).workers()  # all: a scoped view hides types of shared workers
                settlements = [
                    hear(job, made, workers) if is_unheard(outcome, made) else made
                    for (job, outcome), made in zip(ends, settlements, strict=True)
                ]
            verdicts = await self._backend.settle(settlements)
            self._service.handed.count(settlements, [outcome for _, outcome in ends], verdicts)
        except PackhorseError as error:  # their lease will lapse
            log.warning("%s not handed out could not be given back: %s", quantity(len(ends), "job"), error)


class Handing(Response):
    """An answer with jobs in it. As long as its last byte is not sent, nobody can have them: then they are given back.

    Not later: a client that has all of it may close the connection because it has all of it.
    """

    media_type = "application/json"

    def __init__(
        self, content: bytes, hang_up: HangUp, give_back: Callable[[], Coroutine[Any, Any, None]] | None
    ) -> None:
        super().__init__(content)
        self._hang_up = hang_up
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body = bytes(self.body)
        handed = False
        try:
            if not self._hang_up:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
                await asyncio.sleep(0)  # the loop looks at the connection
            if not self._hang_up:
                handed = True
                await send({"type": "http.response.body", "body": body[-1:]})
        finally:
            self._hang_up.close()
            if not handed and self._give_back is not None:
                await self._give_back()
