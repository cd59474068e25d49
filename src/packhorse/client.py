"""The handle of a job: what the one who enqueued it can see and do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import codec
from .arguments import convert
from .backends.base import Rerun, Steered, job_topic
from .errors import JobCancelled, JobFailed, NotFound, ResultTimeout
from .job import PARENT_FAILED, TERMINAL, JobRecord, State
from .settings import duration_ms

if TYPE_CHECKING:
    from .app import Packhorse
    from .why import Cause

R = TypeVar("R")
T = TypeVar("T")

#: How often a waiting `result` looks again although no bell rang. Bells are hints and may be missed.
_RESULT_POLL_MS = 500


class Job(Generic[R]):
    """A job by its id. Blocking methods for blocking code; the same with an `a` before it for async code."""

    def __init__(self, app: Packhorse, job_id: str, *, created: bool = True, result_type: Any = Any) -> None:
        self.app = app
        self.id = job_id
        #: False when `enqueue` answered with a job that was there before (same id or unique key).
        self.created = created
        self._result_type = result_type

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def _blocking(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.app.portal.call(coroutine)

    async def arecord(self) -> JobRecord:
        """Answer all that is kept of the job. Raises NotFound."""
        backend = await self.app.backend()
        record = (await backend.get([self.id]))[0]
        if record is None:
            raise NotFound(f"no job {self.id}: it was deleted, or kept long enough and dropped")
        return record

    def record(self) -> JobRecord:
        """Answer all that is kept of the job. Raises NotFound."""
        return self._blocking(self.arecord())

    async def astate(self) -> State:
        """Answer where the job stands now."""
        return (await self.arecord()).state

    @property
    def state(self) -> State:
        """Where the job stands now."""
        return self._blocking(self.astate())

    async def awhy(self) -> list[Cause]:
        """Answer what holds the job now, the most decisive first, and what would free it; or how it ended.

        Raises NotFound.
        """
        from .why_facts import look_into

        app = self.app
        found = await look_into(await app.backend(), self.id, app.clock.now_ms(), app.settings.park_ms)
        if found is None:
            raise NotFound(f"no job {self.id}: it was deleted, or kept long enough and dropped")
        return found.causes

    def why(self) -> list[Cause]:
        """Answer what holds the job now, the most decisive first, and what would free it. See `awhy`."""
        return self._blocking(self.awhy())

    async def acancel(self) -> Steered:
        """Stop the job: DONE if it will not start (again), REQUESTED if it runs and its worker will be told."""
        backend = await self.app.backend()
        return (await backend.cancel([self.id]))[0]

    def cancel(self) -> Steered:
        """Stop the job: DONE if it will not start (again), REQUESTED if it runs and its worker will be told."""
        return self._blocking(self.acancel())

    async def arerun(self, *, delay: float | str = 0) -> Steered:
        """Start the ended job over, with all its attempts."""
        backend = await self.app.backend()
        return (await backend.rerun([Rerun(id=self.id, delay_ms=duration_ms(delay, "delay"))]))[0]

    def rerun(self, *, delay: float | str = 0) -> Steered:
        """Start the ended job over, with all its attempts."""
        return self._blocking(self.arerun(delay=delay))

    async def adelete(self) -> Steered:
        """Remove the job and all that is kept of it; LIVE if it runs."""
        backend = await self.app.backend()
        return (await backend.delete([self.id]))[0]

    def delete(self) -> Steered:
        """Remove the job and all that is kept of it; LIVE if it runs."""
        return self._blocking(self.adelete())

    async def aresult(self, timeout: float | str | None = None) -> R:
        """Wait for the job to end and answer what its handler returned.

        `timeout` in seconds or as "30s"; None waits for ever. Raises JobFailed, JobCancelled, ResultTimeout, NotFound.
        """
        backend = await self.app.backend()
        # The loop's own time, which its timers follow: the app's clock may stand still in a test.
        loop = asyncio.get_running_loop()
        end_s = None if timeout is None else loop.time() + duration_ms(timeout, "timeout") / 1000
        with backend.watch([job_topic(self.id)]) as bell:
            while True:
                record = await self.arecord()
                if record.state in TERMINAL:
                    return self.read_result(record)
                left_ms = _RESULT_POLL_MS if end_s is None else (end_s - loop.time()) * 1000
                if left_ms <= 0:
                    raise ResultTimeout(f"job {self.id} is still {record.state} after {timeout}")
                await bell.wait(min(left_ms, _RESULT_POLL_MS))

    def result(self, timeout: float | str | None = None) -> R:
        """Wait for the job to end and answer what its handler returned; see `aresult`."""
        return self._blocking(self.aresult(timeout))

    def read_result(self, record: JobRecord) -> R:
        """Answer what the record of the ended job has as its result. Raises JobFailed, JobCancelled."""
        if record.state is State.FAILED:
            last = record.errors[-1] if record.errors else None
            raise JobFailed(self.id, f"{last.kind}: {last.message}" if last else "failed")
        if record.state is State.CANCELLED:
            last = record.errors[-1] if record.errors else None
            raise JobCancelled(self.id, last.message if last and last.kind == PARENT_FAILED else "was cancelled")
        plain: Any = None if record.result is None else codec.decode(record.result)
        try:
            value: R = convert(plain, self._result_type)
        except Exception:  # an annotation that JSON cannot fill, or that does not hold; a model of the user's
            value = plain  # as plain JSON values
        return value
