"""Runs claimed jobs on this event loop: at most `concurrency` at once, each in its own context, each stoppable.

A *slot* is a task that runs one job after another, so that a job costs no task of its own. A job's coroutine is
stepped in the job's own `contextvars` context; as long as it does not wait for anything, the next job follows in the
same step of the loop. Only a job that waits gets a time-out timer, and wakes another slot for the jobs behind it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from .. import outcome as outcomes
from ..app import Packhorse
from ..backends.base import Note, Settlement
from ..chance import Chance
from ..clock import Clock
from ..context import Context
from ..errors import InvalidPayload, PackhorseError
from ..job import Claimed, JobSpec, State
from ..outcome import Kind, Outcome
from ..reach import Reach
from ..retry import Backoff, decide
from .forking import end_copy, forks
from .handler import Handler, new_context
from .lease import Lease
from .options import WorkerOptions
from .resumed import Resumed
from .settler import Settler

log = logging.getLogger("packhorse.runner")

#: A slot that only runs jobs which never wait gives the loop a turn this often.
_SLICE_MS = 2
#: How often a run waits for a renewal that fails, before it looks again.
_RENEW_PAUSE_S = 0.2
#: Unstarted jobs are given back when no slot got free for this long: another worker may have room (FAILURES B16).
_STUCK_MS = 200
_NO_BACKOFF = Backoff()


class Run:
    """A job that waits for something: it can be stopped."""

    __slots__ = ("abandoned", "ctx", "handler", "job", "reason", "received_ms", "slot", "timer")

    def __init__(self, job: Claimed, handler: Handler, ctx: Context | None, slot: asyncio.Task[None]) -> None:
        self.job = job
        self.handler = handler
        self.ctx = ctx
        self.slot = slot
        self.reason: str | None = None  # why it was told to stop: timeout, cancel, shutdown, lost
        self.timer: asyncio.TimerHandle | None = None
        self.abandoned = False
        self.received_ms = 0


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
        *,
        on_tainted: Callable[[str], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._app = app
        self._handlers = handlers
        self._settler = settler
        self._lease = lease
        self._options = options
        self._clock = clock
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        # (when it came, since when it is surely ours, job): the claim or heartbeat that says so was sent then
        self._ready: deque[tuple[int, int, Claimed]] = deque()
        # Dicts for sets that keep an order: what is done to all must not depend on addresses (the simulator repeats).
        self._runs: dict[Run, None] = {}
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
        self.renew: Callable[[], Awaitable[None]] | None = None
        #: Whether the last job was one this worker cannot run: others should have the first try at the next.
        self.parked_last = False
        self.on_broken: Callable[[], None] | None = None
        self.started = 0
        self.ended = 0

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

    def _tell_room(self) -> None:
        waiter = self._room_waiter
        if waiter is not None and not waiter.done() and self._room_wanted is not None and self._room_wanted() > 0:
            waiter.set_result(None)

    def feed(self, jobs: Sequence[Claimed], sent_ms: int) -> None:
        """Take over jobs of a claim that was sent at `sent_ms`; they start as slots get free."""
        received_ms = self._clock.boot_ms()
        self._ready.extend([(received_ms, sent_ms, job) for job in jobs])
        self._quiet.clear()
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
        boot_ms = self._clock.boot_ms
        slice_end_ms = boot_ms() + _SLICE_MS
        while not self._stopped:
            if not self._ready or self._draining:
                self._tell_quiet()
                self._tell_room()
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                slice_end_ms = boot_ms() + _SLICE_MS
                continue
            if not self._lease.fresh() and not await self._renewed():
                continue
            if not self._ready or self._draining:
                continue
            received_ms, ours_ms, job = self._ready.popleft()
            if ours_ms < self._lease.unbroken_since_ms:
                log.warning("job %s is dropped unstarted: the lease ran out since it was claimed", job.id)
                continue
            if await self._run(job, received_ms, slot):
                self._abandoned -= 1
                return  # this slot was given up while its job would not stop; another took its place
            if slot.cancelling():
                return  # its handler cancelled the task it runs in, or the loop ends: the next job starts on another
            if boot_ms() >= slice_end_ms:
                self._tell_room()
                await asyncio.sleep(0)
                slice_end_ms = boot_ms() + _SLICE_MS

    async def _renewed(self) -> bool:
        """Renew the lease before the next start; answers False when nothing may start yet."""
        if not self._lease.live():
            # Somebody else may have these jobs by now: forget them, the store knows better.
            log.warning("the lease ran out; %d claimed jobs are dropped unstarted", len(self._ready))
            self._ready.clear()
            self._tell_quiet()
        try:
            if self.renew is not None:
                await self.renew()
                return self._lease.fresh()
        except PackhorseError as error:
            log.warning("cannot renew the lease before a start: %s", error)
        await asyncio.sleep(_RENEW_PAUSE_S)
        return False

    async def _run(self, job: Claimed, received_ms: int, slot: asyncio.Task[None]) -> bool:
        """Run one job to its end; answers True if the run was abandoned meanwhile."""
        self.started += 1
        if self._to_cancel and job.id in self._to_cancel:
            self._to_cancel.discard(job.id)
            self._finish(job, None, outcomes.cancelled("asked to stop before it started"), None)
            return False
        handler = self._handlers.get(job.type)
        if handler is None:
            self._finish(job, None, outcomes.unknown(job.type), None)
            return False
        try:
            kwargs = handler.read(job.payload)
        except InvalidPayload as error:
            self._finish(job, handler, outcomes.unreadable(error), None)
            return False
        ctx: Context | None = None
        context = self.base.copy()
        if self._on_step is not None:
            self._on_step(job.timeout_ms)
        self._stepping += 1
        try:
            if handler.needs_context:
                ctx = new_context(self._app, job, self.state, self.reach)
                coroutine = handler.start(kwargs, ctx)
            else:
                coroutine = handler.start_plain(**kwargs)
            waiting = context.run(coroutine.send, None)
        except StopIteration as stop:
            outcome = outcomes.SUCCEEDED if stop.value is None else outcomes.from_result(stop.value)
        except BaseException as error:  # whatever a handler raises is about its job, SystemExit too
            outcome = outcomes.from_exception(error, handler.task.fail_on)
        else:
            self._stepping -= 1
            end_copy(self._forks)
            return await self._run_waiting(
                Run(job, handler, ctx, slot), received_ms, Resumed(coroutine, context, waiting, self._forks)
            )
        self._stepping -= 1
        end_copy(self._forks)
        self._finish(job, handler, outcome, ctx)
        return False

    async def _run_waiting(self, run: Run, received_ms: int, rest: Resumed) -> bool:
        job = run.job
        run.received_ms = received_ms
        self._runs[run] = None
        self._start_timer(run)
        if run.ctx is not None:
            run.ctx.on_restart(lambda: self._start_timer(run))
        self._wake_slot()
        self._tell_room()
        self._watch_stuck()
        try:
            value = await rest
        except BaseException as error:  # whatever a handler raises is about its job, SystemExit too
            outcome = self._stopped_outcome(run, error)
        else:
            outcome = outcomes.timed_out(job.timeout_ms) if run.reason == "timeout" else outcomes.from_result(value)
        end_copy(self._forks)
        if run.timer is not None:
            run.timer.cancel()
        if run.reason is not None:
            run.slot.uncancel()
        if run.abandoned:
            return True
        self._runs.pop(run, None)
        self.stuck = False
        if outcome is not None:
            self._finish(job, run.handler, outcome, run.ctx)
        else:
            self.ended += 1
        self._tell_quiet()
        self._tell_room()
        return False

    def _stopped_outcome(self, run: Run, error: BaseException) -> Outcome | None:
        """Turn the exception that ended a waiting run into an outcome; None: not ours to settle any more."""
        match run.reason:
            case "lost":
                return None
            case "timeout":
                return outcomes.timed_out(run.job.timeout_ms)
        if isinstance(error, asyncio.CancelledError):
            match run.reason:
                case "cancel":
                    return outcomes.cancelled()
                case "shutdown":
                    return outcomes.RELEASED
        return outcomes.from_exception(error, run.handler.task.fail_on)

    def _finish(self, job: Claimed, handler: Handler | None, outcome: Outcome, ctx: Context | None) -> None:
        self.ended += 1
        follow_ups: tuple[JobSpec, ...] = tuple(ctx.follow_ups) if ctx is not None and ctx.follow_ups else ()
        submit = self._settler.submit
        if ctx is not None and ctx.settled:  # in a transaction of its own: this counts only if that was not committed
            submit = self._settler.check
            outcome = outcomes.NOT_COMMITTED if outcome.kind is Kind.SUCCEEDED else outcome
        if outcome.kind is Kind.SUCCEEDED:
            settlement = Settlement(
                id=job.id, token=job.token, state=State.SUCCEEDED, result=outcome.result, follow_ups=follow_ups
            )
            self.parked_last = False
        else:
            self.parked_last = outcome.kind is Kind.UNKNOWN
            backoff = handler.task.backoff if handler is not None else _NO_BACKOFF
            settlement = decide(job, outcome, backoff, self._chance, self._clock.now_ms(), self._options.park_ms)
        submit(settlement)

    def _tell_quiet(self) -> None:
        if not self.holding:
            self._quiet.set()

    # ---- stopping runs ---------------------------------------------------------------------------------

    def _start_timer(self, run: Run) -> None:
        """Count a run's time-out from now, unless it is held."""
        if run.reason is None and run.job.timeout_ms > 0:
            if run.timer is not None:
                run.timer.cancel()
            if run.ctx is not None and run.ctx.timeout_held:
                return
            run.timer = self._loop.call_later(run.job.timeout_ms / 1000, self._stop_run, run, "timeout")

    def _stop_run(self, run: Run, reason: str) -> None:
        """Tell a run to stop; if it does not within the grace time, take its slot back."""
        if run.reason is not None:
            return
        run.reason = reason
        if run.timer is not None:
            run.timer.cancel()
        if run.ctx is not None:
            run.ctx.ask_to_stop()
        run.slot.cancel()
        run.timer = self._loop.call_later(self._options.stop_grace_ms / 1000, self._abandon, run)

    def _abandon(self, run: Run) -> None:
        """Give up on a run that ignores its stop: settle it, free its slot, let this process be replaced."""
        run.abandoned = True
        self._abandoned += 1
        job = run.job
        self._runs.pop(run, None)
        self.stuck = False
        how = f"and ignored its stop for {self._options.stop_grace_ms / 1000:g} s"
        if run.reason == "cancel":
            self._finish(job, run.handler, outcomes.cancelled(f"asked to stop, {how}"), None)
        elif run.reason == "timeout":
            self._finish(job, run.handler, outcomes.timed_out(job.timeout_ms, how), None)
        elif run.reason == "shutdown":
            # The lease lapses with the worker: the attempt was spent. Until then the job is ours, not an orphan.
            self._left_running.add((job.id, job.token))
        self._wake_slot()
        self._tell_quiet()
        self._tell_room()
        if self._on_tainted is not None:
            self._on_tainted(f"job {job.id} ({job.type}) could not be stopped")

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
                self._stop_run(run, "cancel")
            elif run.received_ms < sent_ms and held.get(job.id) != job.token:
                if run.ctx is not None and run.ctx.settled:
                    continue  # by itself, in a transaction that is committed
                log.warning("job %s was lost to another claim; its run is stopped", job.id)
                self._stop_run(run, "lost")
        if self._ready:
            kept = []
            for received_ms, ours_ms, job in self._ready:
                if held.get(job.id) == job.token:
                    kept.append((received_ms, max(ours_ms, sent_ms), job))
                elif received_ms >= sent_ms:  # its claim may have been done after this heartbeat
                    kept.append((received_ms, ours_ms, job))
            if len(kept) < len(self._ready):
                log.warning("%d claimed jobs were lost before they started", len(self._ready) - len(kept))
                self._ready = deque(kept)
        self._to_cancel = {job.id for _, _, job in self._ready if job.id in cancel} if cancel else set()
        self._tell_quiet()

    def known(self) -> set[tuple[str, str]]:
        """Answer the jobs and tokens that were fed here and have not ended."""
        held = {(job.id, job.token) for _, _, job in self._ready} | {(run.job.id, run.job.token) for run in self._runs}
        return held | self._left_running

    # ---- notes, and the end ----------------------------------------------------------------------------

    @property
    def has_notes(self) -> bool:
        """Whether a run has progress to tell."""
        return any(run.ctx is not None and run.ctx.has_note for run in self._runs)

    def take_notes(self, count_max: int) -> list[Note]:
        """Take the progress that runs have to tell, of at most `count_max` runs."""
        runs = [run for run in self._runs if run.ctx is not None and run.ctx.has_note]
        notes = [run.ctx.take_note() for run in runs[:count_max] if run.ctx is not None]
        return [note for note in notes if note is not None]

    def keep_notes(self, notes: Sequence[Note]) -> None:
        """Take back notes that could not be told, unless there is newer progress."""
        untold = {(note.id, note.token): note for note in notes}
        for run in self._runs:
            note = untold.get((run.job.id, run.job.token))
            if note is not None and run.ctx is not None and not run.ctx.has_note and not run.ctx.settled:
                run.ctx.keep_note(note)

    def longest_timeout_ms(self) -> int:
        """Answer the longest time-out of the jobs that run now; 0 when one has none."""
        timeouts = [run.job.timeout_ms for run in self._runs]
        return 0 if not all(timeouts) else max(timeouts, default=1)

    def stop_starting(self) -> None:
        """Start nothing from now on, whatever is fed: it is to be released."""
        self._draining = True

    def release_unstarted(self) -> int:
        """Give back what was claimed and not started; it costs no attempt."""
        count = len(self._ready)
        while self._ready:
            _, _, job = self._ready.popleft()
            self._settler.submit(decide(job, outcomes.RELEASED, _NO_BACKOFF, self._chance, 0))
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
            self._stop_run(run, reason)

    def close(self) -> None:
        """End the slots."""
        self._stopped = True
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
        for slot in list(self._slots):
            slot.cancel()
