"""Tells the app's failure hooks: beside the jobs, so that no hook can delay or break one.

A failed run is told once the store took it: a settlement that came too late ended nothing. Attempts that lapsed (the
process died, the lease ran out) are told where the tick or `retire` was made that took them, and nowhere else, as the
store has them. Nothing is written down: what waits here when the process dies is not told; what is dropped is counted
and said.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from ..app import Packhorse
from ..backends.base import Backend, Settlement, Verdict
from ..errors import PackhorseError, Unavailable
from ..job import LAPSED, JobError, JobRecord, State
from ..observe.failures import Failure, FailureHook, ended_failure, stored_failure
from ..observe.runs import Ended
from ..redaction import words_with
from ..wording import quantity
from .options import HOOKS_CLOSE_MS_MAX, HOOKS_MS_MAX

log = logging.getLogger("packhorse.failures")

#: Calls of hooks that wait, and jobs that wait to be looked up. Those that come on top are dropped.
WAITING_MAX = 1_000
#: Exceptions that wait with them, at each of the two places where they do: one holds all that its frames held, so more
#: than run at once could fill the memory. Those that come on top are told by what the job keeps of them.
ERRORS_MAX = 200
#: Calls under way. Those that do not come back count too, so with as many of them nothing more is told.
AT_ONCE_MAX = 8
HUNG_MAX = 16
#: How long a call may take, ms.
CALL_MS_MAX = 10_000
#: One line of log at most for each hook, and for what is dropped, in so long, ms.
_AGAIN_MS = 60_000
#: Jobs looked up in one call; how often, with growing pauses, where the store does not answer.
_LOOK_MAX = 100
_TRIES_MAX = 6
_PAUSE_S = 0.2


class _Receipt:
    """Counts what is still to be done about some lapses; at the end says so to who handed them over."""

    def __init__(self, done: Callable[[], None], count: int) -> None:
        self._done = done
        self._open = count

    def add(self) -> None:
        """Something more is to be done."""
        self._open += 1

    def end(self) -> None:
        """It was done, or dropped."""
        self._open -= 1
        if not self._open:
            self._done()


class _Look:
    """A job to be looked up: for the error `said`, or without one for the lapse of an attempt.

    `end` is the run, where it ended here; `worker` who ran it, None where nobody knows.
    """

    __slots__ = ("attempt", "end", "id", "receipt", "said", "worker")

    def __init__(
        self,
        job_id: str,
        worker: str | None,
        attempt: int,
        said: JobError | None = None,
        end: Ended | None = None,
        receipt: _Receipt | None = None,
    ) -> None:
        self.id = job_id
        self.worker = worker
        self.attempt = attempt
        self.said = said
        self.end = end
        self.receipt = receipt

    def is_of(self, error: JobError) -> bool:
        """Answer whether this is what is looked for."""
        if self.said is not None:
            return error == self.said
        return error.kind == LAPSED and error.attempt == self.attempt


class _Said:
    """What was said of one thing that goes wrong again and again: once a minute, with how often."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._said_ms: int | None = None
        self._count = 0

    def count(self) -> int:
        """Count one; answers how many there were since the last line if it is time for the next, else 0."""
        self._count += 1
        now_ms = self._now_ms()
        if self._said_ms is not None and now_ms - self._said_ms < _AGAIN_MS:
            return 0
        self._said_ms = now_ms
        count, self._count = self._count, 0
        return count


class FailureTeller:
    """Calls the hooks of one engine."""

    def __init__(self, app: Packhorse, backend: Backend, worker: str) -> None:
        self._hooks: list[FailureHook] = list(app.failure_hooks)
        self._backend = backend
        self._worker = worker
        self._words = words_with(app.settings.redact)
        self._loop = asyncio.get_running_loop()
        self.base = contextvars.copy_context()  # of no job; what hooks run in
        self._ended: dict[tuple[str, str], Ended] = {}  # not settled yet: as many as the settler and its backlog hold
        self._looks: deque[_Look] = deque()
        self._looking: asyncio.Task[None] | None = None
        self._due: deque[tuple[FailureHook, Failure, _Receipt | None]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._hung: set[asyncio.Task[None]] = set()  # calls that did not come back in time
        self._stopped = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        boot_ms = app.clock.boot_ms
        self._said = {hook: _Said(boot_ms) for hook in self._hooks}
        self._said_dropped = _Said(boot_ms)
        #: Calls that came to an end, well or not, and those that were never made.
        self.told = 0
        self.dropped = 0

    # ---- what is heard ---------------------------------------------------------------------------------

    def ended(self, end: Ended) -> None:
        """Hear of the end of a run; what failed is told once it is settled."""
        if end.settlement.error is not None and end.settlement.state is not State.CANCELLED:
            if end.error is not None and len(self._ended) >= ERRORS_MAX:
                end = msgspec.structs.replace(end, error=None)
            self._ended[end.job.id, end.job.token] = end

    def settled(self, batch: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """Hear what the store said to ends of runs. Never raises: the settler must go on."""
        try:
            self._sort(batch, verdicts)
        except Exception:
            log.exception("telling the failure hooks failed; this is a bug")

    def _sort(self, batch: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """Tell what took effect, look up what did not."""
        for item, verdict in zip(batch, verdicts, strict=True):
            if item.error is None and not self._ended:
                continue
            end = self._ended.pop((item.id, item.token), None)
            if end is not None and item.error is not None:
                if verdict is Verdict.APPLIED:
                    self._tell(self._made(end, item))
                else:  # it was settled by a call whose answer was lost; or it lapsed, which is not ours to tell
                    self._look(_Look(item.id, self._worker, end.job.attempt, item.error, end))
            elif item.error is not None and item.state is not State.CANCELLED and verdict is Verdict.APPLIED:
                self._look(_Look(item.id, self._worker, 0, item.error))  # it ended well, but that could not be kept

    def lapsed(
        self, attempts: Mapping[str, int], worker: str | None = None, done: Callable[[], None] | None = None
    ) -> None:
        """Hear which jobs lapsed, in which attempt, and who held them if that is known; `done` when they were told."""
        receipt = None if done is None else _Receipt(done, len(attempts))
        for job_id, attempt in sorted(attempts.items()):
            self._look(_Look(job_id, worker, attempt, receipt=receipt))

    def _made(self, end: Ended, settlement: Settlement) -> Failure:
        return ended_failure(end.job, settlement, self._worker, end.duration_ms, end.error, self._words)

    # ---- what only the store knows ---------------------------------------------------------------------

    def _look(self, look: _Look) -> None:
        if self._stopped:
            self._drop("the worker stops")
            return
        if len(self._looks) >= WAITING_MAX:
            self._drop(f"{WAITING_MAX} wait already", look.receipt)
            return
        self._looks.append(look)
        self._quiet.clear()
        if self._looking is None:
            self._looking = self._loop.create_task(self._look_up(), context=self.base.copy())

    async def _look_up(self) -> None:
        try:
            while self._looks:
                looks = [self._looks.popleft() for _ in range(min(len(self._looks), _LOOK_MAX))]
                records = await self._records([look.id for look in looks])
                for look, record in zip(looks, records, strict=True):
                    failure = self._found(look, record) if record is not None else None
                    if failure is not None:
                        self._tell(failure, look.receipt)
                    if look.receipt is not None:
                        look.receipt.end()
        finally:
            self._looking = None
            self._tell_quiet()

    async def _records(self, ids: list[str]) -> Sequence[JobRecord | None]:
        for number in range(_TRIES_MAX):
            try:
                return await self._backend.get(ids)
            except PackhorseError as error:
                if number == _TRIES_MAX - 1 or not isinstance(error, Unavailable):
                    self._drop(f"their jobs cannot be looked up: {error}", count=len(ids))
                    break
                await asyncio.sleep(_PAUSE_S * 2**number)
        return [None] * len(ids)

    def _found(self, look: _Look, record: JobRecord) -> Failure | None:
        """Answer how the attempt failed by what the store wrote down; None: it did not, or that was told."""
        said = next((one for one in reversed(record.errors) if look.is_of(one)), None)
        if said is None or record.state is State.CANCELLED:
            return None
        if look.end is not None:
            return self._made(look.end, look.end.settlement)
        return stored_failure(record, said, look.worker, self._words)

    # ---- telling ---------------------------------------------------------------------------------------

    def _tell(self, failure: Failure, receipt: _Receipt | None = None) -> None:
        for hook in self._hooks:
            if hook.wants(failure):
                if receipt is not None:
                    receipt.add()
                if len(self._due) >= WAITING_MAX:
                    self._drop(f"{WAITING_MAX} wait already", receipt)
                else:
                    if failure.error is not None and len(self._due) >= ERRORS_MAX:
                        failure = msgspec.structs.replace(failure, error=None)
                    self._due.append((hook, failure, receipt))
        self._pump()

    def _pump(self) -> None:
        while self._due and len(self._calls) < AT_ONCE_MAX:
            hook, failure, receipt = self._due.popleft()
            if len(self._hung) >= HUNG_MAX:
                self._drop(f"{HUNG_MAX} calls of hooks hang", receipt)
                continue
            call = self._loop.create_task(self._call(hook, failure, receipt), context=self.base.copy())
            self._calls.add(call)
            self._quiet.clear()
            call.add_done_callback(self._called)
        self._tell_quiet()

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self.told += not call.cancelled()
        self._pump()

    async def _call(self, hook: FailureHook, failure: Failure, receipt: _Receipt | None) -> None:
        """Call a hook; what it raises is said, what takes too long is left to itself."""
        running = self._loop.create_task(self._guarded(hook, failure))
        try:
            done, _ = await asyncio.wait([running], timeout=CALL_MS_MAX / 1000)
        except asyncio.CancelledError:  # at a stop
            self._give_up(running)
            raise
        if not done:
            self._give_up(running)
            self._say(hook, None, f"it took longer than {CALL_MS_MAX / 1000:g} s")
        if receipt is not None:
            receipt.end()

    def _give_up(self, running: asyncio.Task[None]) -> None:
        running.cancel()
        self._hung.add(running)
        running.add_done_callback(self._hung.discard)

    async def _guarded(self, hook: FailureHook, failure: Failure) -> None:
        try:
            await hook.call(failure, self._in_thread)
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            self._say(hook, error, "it was cancelled")
        except BaseException as error:  # SystemExit of a hook too: it must not end the loop
            self._say(hook, error, type(error).__name__)

    async def _in_thread(self, function: Callable[[Failure], Any], failure: Failure) -> Any:
        """Call a function in a thread of its own, which holds up no end of the process."""
        future: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()

        def run() -> None:
            try:
                answer: tuple[Any, BaseException | None] = (function(failure), None)
            except BaseException as error:
                answer = (None, error)
            with suppress(RuntimeError):  # the loop ended first
                self._loop.call_soon_threadsafe(_give, future, answer)

        threading.Thread(target=run, name="packhorse-failure-hook", daemon=True).start()
        try:
            value, error = await asyncio.shield(future)
        except asyncio.CancelledError:
            await future  # it counts as hung until it comes back: nobody can end a thread from outside
            raise
        if isinstance(error, StopIteration):  # cannot be raised out of a coroutine
            raise RuntimeError("it raised StopIteration") from error  # noqa: TRY004
        if error is not None:
            raise error
        return value

    def _say(self, hook: FailureHook, error: BaseException | None, what: str) -> None:
        count = self._said[hook].count()
        if count:
            times = f" ({quantity(count, 'time')} since the last line)" if count > 1 else ""
            log.error("the failure hook %s failed%s: %s", hook.name, times, what, exc_info=error)

    def _drop(self, why: str, receipt: _Receipt | None = None, *, count: int = 1) -> None:
        if receipt is not None:
            receipt.end()
        self.dropped += count
        if self._said_dropped.count():
            log.warning("failures are not told to the hooks, %d so far: %s", self.dropped, why)

    # ---- stopping --------------------------------------------------------------------------------------

    def _tell_quiet(self) -> None:
        if not (self._looks or self._looking or self._due or self._calls):
            self._quiet.set()

    async def stop(self) -> None:
        """Tell what is left, let the hooks send off theirs; at most HOOKS_MS_MAX + HOOKS_CLOSE_MS_MAX."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HOOKS_MS_MAX / 1000):
                await self._quiet.wait()
        self._stopped = True
        lost = len(self._ended) + len(self._looks) + len(self._due) + len(self._calls)
        if lost:
            log.warning("%s not told to the hooks: the worker stops", quantity(lost, "failure is", "failures are"))
        self._due.clear()
        self._looks.clear()
        ends = [*self._calls, *([self._looking] if self._looking is not None else [])]
        for task in ends:
            task.cancel()
        closing = [self._loop.create_task(self._close(hook)) for hook in self._hooks if hook.close is not None]
        if ends or closing:
            await asyncio.wait([*ends, *closing], timeout=HOOKS_CLOSE_MS_MAX / 1000 + 0.1)
        hung = list(self._hung)
        for task in hung:
            task.cancel()  # once more: the first time it went on to wait for its thread
        if hung:
            await asyncio.wait(hung, timeout=0.1)

    async def _close(self, hook: FailureHook) -> None:
        assert hook.close is not None
        try:
            async with asyncio.timeout(HOOKS_CLOSE_MS_MAX / 1000):
                await hook.close()
        except Exception as error:
            self._say(hook, error, f"its close: {type(error).__name__}")


def _give(future: asyncio.Future[Any], answer: object) -> None:
    if not future.done():
        future.set_result(answer)
