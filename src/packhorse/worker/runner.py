"""Runs claimed jobs on this event loop: at most `concurrency` at once, each in its own context, each stoppable.

A *slot* is a task that runs one job after another, so that a job costs no task of its own. A job's coroutine is
stepped in the job's own `contextvars` context; as long as it does not wait for anything, the next job follows in the
same step of the loop. Only a job that waits gets a time-out timer, and wakes another slot for the jobs behind it.

What becomes of an end is `ending`, of a run that must stop `stopping`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .. import outcome as outcomes
from ..app import Packhorse
from ..chance import Chance
from ..clock import Clock
from ..context import Context
from ..errors import InvalidPayload, PackhorseError
from ..job import Claimed
from ..observe.current import CURRENT_JOB
from ..observe.runs import Runs
from ..reach import Reach
from ..wording import quantity
from .ending import Ending
from .forking import end_copy, forks
from .handler import Handler, new_context
from .lease import Lease
from .marks import BEGAN, KEPT, Mark, Marks
from .notes import Notes
from .options import WorkerOptions
from .resumed import Resumed
from .run import Run
from .settler import Settler
from .stopping import Stopping

if TYPE_CHECKING:
    from ..observe.run_spans import RunSpans

log = logging.getLogger("packhorse.runner")

#: A slot that only runs jobs which never wait gives the loop a turn this often.
_SLICE_NS = 2_000_000
#: How often a run waits for a renewal that fails, before it looks again.
_RENEW_PAUSE_S = 0.2
#: Unstarted jobs are given back when no slot got free for this long: another worker may have room (FAILURES B16).
_STUCK_MS = 200


class Runner:
    """Starts jobs from `feed`, gives their ends to the settler, tells how much room it has."""

    def __init__(
        self,
        app: Packhorse,
        handlers: Mapping[str, Handler],
        settler: Settler,
        lease: Lease,
        options: WorkerOptions,
        clock: Clock,
        chance: Chance,
        observer: Runs,
        *,
        spans: RunSpans | None = None,
        on_tainted: Callable[[str], None] | None = None,
        on_step: Callable[[int], None] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self._app = app
        self._handlers = handlers
        self._lease = lease
        self._options = options
        self._clock = clock
        self._observer = observer
        self._spans = spans  # of runs that are traced; None while tracing is off
        self._ending = Ending(settler, observer, spans, options, clock, chance)
        self._stopping = Stopping(self._ending, options, self._gave_up)
        self._loop = asyncio.get_running_loop()
        # (when it came, since when it is surely ours, job): the claim or heartbeat that says so was sent then
        # and its number among the marks.
        self._ready: deque[tuple[int, int, Claimed, int]] = deque()
        # Dicts for sets that keep an order: what is done to all must not depend on addresses (the simulator repeats).
        self._runs: dict[Run, None] = {}
        self.notes = Notes(self._runs)
        self.base = contextvars.copy_context()  # what each job's own context starts as
        self.state: object = None  # what the lifespan yielded
        self.reach: Reach | None = None  # what runs can reach of the store
        self._idle: list[asyncio.Future[None]] = []
        self._slots: dict[asyncio.Task[None], None] = {}
        self._abandoned = 0
        self._stepping = 0
        self._stopped = False
        self._draining = False
        self._stuck_timer: asyncio.TimerHandle | None = None
        #: Whether every slot is taken by a job that lasts, so that nothing is to be claimed ahead.
        self.stuck = False
        self._forks = forks()
        self._room_waiter: asyncio.Future[None] | None = None
        self._room_wanted: Callable[[], int] | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._to_cancel: set[str] = set()
        self._left_running: set[tuple[str, str]] = set()  # given up at shutdown: they lapse with the worker
        self._on_tainted = on_tainted
        self._on_step = on_step
        self._marks = marks  # what a keeper is to know of what began; None where there is none
        self.renew: Callable[[], Awaitable[None]] | None = None
        self.on_broken: Callable[[], None] | None = None
        self.on_work: Callable[[], None] | None = None  # called when jobs came in, for each batch of them
        self.started = 0

    # ---- what the others ask ---------------------------------------------------------------------------

    @property
    def unstarted(self) -> int:
        """Jobs claimed and not started."""
        return len(self._ready)

    @property
    def busy(self) -> int:
        """Jobs started and not ended."""
        return len(self._runs)

    @property
    def holding(self) -> int:
        """Jobs claimed and not ended."""
        return len(self._ready) + len(self._runs) + self._stepping

    @property
    def ended(self) -> int:
        """Jobs that ended here since it began."""
        return self._ending.count

    @property
    def parked_last(self) -> bool:
        """Whether the last job was one this worker cannot run: others should have the first try at the next."""
        return self._ending.parked_last

    @property
    def free_slots(self) -> int:
        """Jobs that could start at once."""
        return max(0, self._options.concurrency - len(self._runs))

    async def has_room(self, wanted: Callable[[], int]) -> None:
        """Wait until `wanted()`, asked again whenever a job starts or ends, is above 0."""
        while wanted() <= 0:
            self._room_wanted = wanted
            self._room_waiter = self._loop.create_future()
            try:
                await self._room_waiter
            finally:
                self._room_waiter = self._room_wanted = None

    def _tell_quiet(self) -> None:
        if not self.holding:
            self._quiet.set()

    def _tell_room(self) -> None:
        waiter = self._room_waiter
        if waiter is not None and not waiter.done() and self._room_wanted is not None and self._room_wanted() > 0:
            waiter.set_result(None)

    def feed(self, jobs: Sequence[Claimed], sent_ms: int) -> None:
        """Take over jobs of a claim that was sent at `sent_ms`; they start as slots get free."""
        received_ms = self._clock.boot_ms()
        first = self._marks.claimed(jobs) if self._marks is not None else 0
        self._ready.extend([(received_ms, sent_ms, job, number) for number, job in enumerate(jobs, first)])
        self._quiet.clear()
        if self.on_work is not None:
            self.on_work()
        self._wake_slot()
        if not self.free_slots:
            self._watch_stuck()

    # ---- slots -----------------------------------------------------------------------------------------

    def _wake_slot(self) -> None:
        """Get one more slot going if there is a job for it: each job that waits hands the baton on."""
        if not self._ready or self._stopped or self._draining:
            return
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return
        if len(self._slots) - self._abandoned < self._options.concurrency:
            # Not the current context: slots must not carry the variables of whoever fed the runner.
            slot = self._loop.create_task(self._slot(), context=self.base.copy())
            self._slots[slot] = None
            slot.add_done_callback(self._slot_ended)

    def _slot_ended(self, slot: asyncio.Task[None]) -> None:
        self._slots.pop(slot, None)
        if not slot.cancelled() and slot.exception() is not None:
            log.critical("a slot failed; this is a bug", exc_info=slot.exception())
            if self.on_broken is not None:
                self.on_broken()
        self._wake_slot()  # for the jobs it would have run
        self._tell_quiet()
        self._tell_room()

    async def _slot(self) -> None:
        slot = asyncio.current_task()
        assert slot is not None
        lease, boot_ns = self._lease, self._clock.boot_ns
        slice_end_ns = boot_ns() + _SLICE_NS
        while not self._stopped:
            if not self._ready or self._draining:
                self._tell_quiet()
                self._tell_room()
                self._observer.count()
                CURRENT_JOB.set(None)
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                slice_end_ns = boot_ns() + _SLICE_NS
                continue
            now_ns = boot_ns()  # anew for each: telling of the end of the one before may have taken any time
            if now_ns >= slice_end_ns:
                self._tell_room()
                self._observer.count()
                await asyncio.sleep(0)
                slice_end_ns = boot_ns() + _SLICE_NS
                continue
            if now_ns >= lease.fresh_until_ns and not lease.fresh():
                CURRENT_JOB.set(None)  # what the store's driver says now is about no job
                await self._renew()
                continue
            received_ms, ours_ms, job, number = self._ready.popleft()
            if ours_ms < lease.unbroken_since_ms:
                log.warning("job %s is dropped unstarted: the lease ran out since it was claimed", job.id)
                self._forget((number,))
                continue
            rest = self._run(job, number, received_ms, slot, now_ns)
            if rest is not None and not await rest:
                self._abandoned -= 1
                return  # this slot was given up while its job would not stop; another took its place
            if slot.cancelling():
                return  # its handler cancelled the task it runs in, or the loop ends: the next job starts on another

    def _forget(self, numbers: Iterable[int]) -> None:
        """Put down that claimed jobs are not held any more."""
        if self._marks is not None:
            self._marks.over(numbers)

    async def _renew(self) -> None:
        """Renew the lease before the next start, or wait a while if that fails."""
        if not self._lease.live():
            # Somebody else may have these jobs by now: forget them, the store knows better.
            log.warning("the lease ran out; %s dropped unstarted", quantity(len(self._ready), "claimed job"))
            self._forget(number for _, _, _, number in self._ready)
            self._ready.clear()
            self._tell_quiet()
        with suppress(PackhorseError):  # the heart has said why
            if self.renew is not None:
                await self.renew()
                return
        await asyncio.sleep(_RENEW_PAUSE_S)

    def _run(
        self, job: Claimed, number: int, received_ms: int, slot: asyncio.Task[None], started_ns: int
    ) -> Coroutine[Any, Any, bool] | None:
        """Run a job to its end; if it waits for something, answer what to await for that: see `_run_waiting`."""
        self.started += 1
        if self._to_cancel and job.id in self._to_cancel:
            self._to_cancel.discard(job.id)
            outcome = outcomes.cancelled("asked to stop before it started")
            self._ending.finish(job, number, None, outcome, None, started_ns)
            return None
        handler = self._handlers.get(job.type)
        if handler is None:
            self._ending.finish(job, number, None, outcomes.unknown(job.type), None, started_ns)
            return None
        marks = self._marks
        if marks is not None:  # before any code of the app's runs, and that of its types is first
            marks.states[number % KEPT] = BEGAN
        try:
            kwargs = handler.read(job.payload)
        except InvalidPayload as refusal:
            self._ending.finish(job, number, handler, outcomes.unreadable(refusal), None, started_ns)
            return None
        error: BaseException | None = None
        ctx: Context | None = None
        CURRENT_JOB.set(job)  # of this slot; the job's own context begins as a copy of that
        context = contextvars.copy_context()
        spans = self._spans
        if spans is not None and (job.meta is not None or job.id[-12:] < spans.below):
            spans.begin(job, context)
        if self._on_step is not None:
            self._on_step(job.timeout_ms)
        self._stepping += 1
        try:
            if handler.needs_context:
                ctx = new_context(self._app, job, self.state, self.reach)
                if handler.begins_elsewhere and marks is not None:
                    ctx.mark = Mark(marks, number)
                coroutine = handler.start(kwargs, ctx)
            else:
                coroutine = handler.start_plain(**kwargs)
            waiting = context.run(coroutine.send, None)
        except StopIteration as stop:
            outcome = outcomes.SUCCEEDED if stop.value is None else outcomes.from_result(stop.value)
        except BaseException as raised:  # whatever a handler raises is about its job, SystemExit too
            error, outcome = raised, outcomes.from_exception(raised, handler.task.fail_on)
        else:
            self._stepping -= 1
            end_copy(self._forks)
            run = Run(job, number, handler, ctx, slot, received_ms, started_ns)
            return self._run_waiting(run, Resumed(coroutine, context, waiting, self._forks))
        self._stepping -= 1
        end_copy(self._forks)
        self._ending.finish(job, number, handler, outcome, ctx, started_ns, error)
        return None

    async def _run_waiting(self, run: Run, rest: Resumed) -> bool:
        """Run the rest of a job that waits; answers False if it was given up meanwhile, and its slot with it."""
        job = run.job
        self._runs[run] = None
        self._stopping.start_timer(run)
        if run.ctx is not None:
            run.ctx.on_restart(lambda: self._stopping.start_timer(run))
        self._wake_slot()
        self._tell_room()
        self._watch_stuck()
        error: BaseException | None = None
        try:
            value = await rest
        except BaseException as raised:  # whatever a handler raises is about its job, SystemExit too
            error, outcome = raised, run.raised(raised)
        else:
            outcome = run.returned(value)
        end_copy(self._forks)
        if run.timer is not None:
            run.timer.cancel()
        if run.reason is not None:
            run.slot.uncancel()
        if run.abandoned:
            return False
        self._runs.pop(run, None)
        self.stuck = False
        if outcome is not None:
            self._ending.finish(job, run.number, run.handler, outcome, run.ctx, run.started_ns, error)
        else:
            self._ending.lose(job)
            self._forget((run.number,))
        self._tell_quiet()
        self._tell_room()
        return True

    def _gave_up(self, run: Run) -> None:
        """Free the slot of a run that would not stop, and let this process be replaced."""
        self._abandoned += 1
        self._runs.pop(run, None)
        self.stuck = False
        job = run.job
        if run.reason == "shutdown":
            # The lease lapses with the worker: the attempt was spent. Until then the job is ours, not an orphan.
            self._left_running.add((job.id, job.token))
        self._wake_slot()
        self._tell_quiet()
        self._tell_room()
        if self._on_tainted is not None:
            self._on_tainted(f"job {job.id} ({job.type}) could not be stopped")

    # ---- what was claimed ahead, and what a heartbeat says ---------------------------------------------

    def _watch_stuck(self) -> None:
        if self._ready and self._stuck_timer is None:
            self._stuck_timer = self._loop.call_later(_STUCK_MS / 1000, self._give_back_stuck, self.started)

    def _give_back_stuck(self, started_before: int) -> None:
        """Give back what was claimed ahead of jobs that turned out to be slow."""
        self._stuck_timer = None
        if not self._ready or self.free_slots or self._stopped:
            return
        if self.started != started_before:
            self._watch_stuck()
            return
        self.stuck = True
        self.release_unstarted()
        self._tell_room()  # so that the claimer hears of it: it claims nothing now

    def apply_pulse(self, held: Mapping[str, str], cancel: Collection[str], sent_ms: int) -> None:
        """Learn from a heartbeat sent at `sent_ms`: what is not in `held` was lost, what is in `cancel` must stop."""
        for run in list(self._runs):
            job = run.job
            if job.id in cancel and held.get(job.id) == job.token:
                self._stopping.stop(run, "cancel")
            elif run.received_ms < sent_ms and held.get(job.id) != job.token:
                if run.settled:
                    continue  # by itself, in a transaction that is committed
                log.warning(
                    "job %s was lost to another claim; its run is stopped",
                    job.id,
                    extra={"job_id": job.id, "job_type": job.type, "queue": job.queue, "attempt": job.attempt},
                )
                self._stopping.stop(run, "lost")
        if self._ready:
            kept = []
            for received_ms, ours_ms, job, number in self._ready:
                if held.get(job.id) == job.token:
                    kept.append((received_ms, max(ours_ms, sent_ms), job, number))
                elif received_ms >= sent_ms:  # its claim may have been done after this heartbeat
                    kept.append((received_ms, ours_ms, job, number))
            if len(kept) < len(self._ready):
                log.warning("%s lost before they started", quantity(len(self._ready) - len(kept), "claimed job"))
                numbers = {number for _, _, _, number in kept}
                self._forget(number for _, _, _, number in self._ready if number not in numbers)
                self._ready = deque(kept)
        self._to_cancel = {job.id for _, _, job, _ in self._ready if job.id in cancel} if cancel else set()
        self._tell_quiet()

    def runs(self) -> list[Run]:
        """Answer the runs that wait for something. From any thread."""
        return list(self._runs)

    def known(self) -> set[tuple[str, str]]:
        """Answer the jobs and tokens that were fed here and have not ended."""
        held = {(job.id, job.token) for _, _, job, _ in self._ready} | {
            (run.job.id, run.job.token) for run in self._runs
        }
        return held | self._left_running

    def in_transaction(self) -> set[str]:
        """Answer the tokens of runs that settle their job in a transaction of theirs, which may be open yet."""
        return {run.job.token for run in self._runs if run.settled}

    def longest_timeout_ms(self) -> int:
        """Answer the longest time-out of the jobs that run now; 0 when one has none."""
        timeouts = [run.job.timeout_ms for run in self._runs]
        return 0 if not all(timeouts) else max(timeouts, default=1)

    # ---- the end ---------------------------------------------------------------------------------------

    def stop_starting(self) -> None:
        """Start nothing from now on, whatever is fed: it is to be released."""
        self._draining = True

    def release_unstarted(self) -> int:
        """Give back what was claimed and not started; it costs no attempt."""
        count = len(self._ready)
        while self._ready:
            _, _, job, number = self._ready.popleft()
            self._ending.release(job, number)
        self._tell_quiet()
        return count

    async def quiet(self, timeout_ms: float) -> bool:
        """Wait until no job is held, at most `timeout_ms`; answers whether that is so."""
        self._tell_quiet()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def stop_all(self, reason: str) -> None:
        """Tell every run to stop."""
        for run in list(self._runs):
            self._stopping.stop(run, reason)

    def close(self) -> None:
        """End the slots."""
        self._stopped = True
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        for slot in list(self._slots):
            slot.cancel()
