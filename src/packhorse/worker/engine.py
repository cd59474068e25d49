"""One event loop's worker: the parts joined, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from ..app import Packhorse
from ..backends.base import Backend, Lapse, Settlement, WorkerInfo
from ..job import State
from ..observe import metrics
from ..observe.current import CURRENT_WORKER, Here
from ..observe.job_lines import JobLines
from ..observe.logs import stamp_records
from ..observe.runs import Runs
from ..recurring import check_capable
from ..wording import quantity
from .claimer import Claimer
from .declared import declare_limits, declare_schedules
from .executors import Executors
from .handler import Handler
from .heart import Heart
from .lapses import failed_attempts, say_lapses
from .lease import Lease
from .logkeeper import LogKeeper
from .marks import Marks
from .options import SETTLE_MS_MAX, WorkerOptions, keep_times
from .orphans import Orphans
from .runner import Runner
from .settler import Settler
from .steps import StepKeeper, WorkerReach
from .ticker import Ticker

if TYPE_CHECKING:
    from .telling import FailureTeller

if TYPE_CHECKING:
    from ..observe.run_spans import RunSpans

log = logging.getLogger("packhorse.worker")


class Engine:
    """Claims, runs and settles on the running event loop until told to stop."""

    def __init__(
        self,
        app: Packhorse,
        backend: Backend,
        info: WorkerInfo,
        options: WorkerOptions,
        *,
        kept: bool = False,
        renewed_elsewhere: Callable[[], int] | None = None,
        on_tainted: Callable[[str], None] | None = None,
        on_step: Callable[[int], None] | None = None,
        marks: Marks | None = None,
    ) -> None:
        check_capable(app.schedules, backend)  # what is wrong with them is said before anything is started
        self.app = app
        self.backend = backend
        self.info = info
        self.options = options
        clock, chance = app.clock, app.chance
        self.executors = Executors(app, options)
        spans = _spans_of(app)
        if spans is not None:
            from ..backends.traced import TracedBackend

            backend = TracedBackend(backend, spans)
        self.settler = Settler(backend, chance, clock, marks)
        self.lease = Lease(clock, options.lease_ms, renewed_elsewhere)
        self.sheet = app.meters.sheet()
        app.meters.bounds.learn(info.types, info.queues)
        #: What is told of runs; see `observe.runs`.
        self.runs = Runs(self.sheet)
        self.handlers = {name: Handler(app, task, self.executors) for name, task in app.tasks.items()}
        self.runner = Runner(
            app,
            self.handlers,
            self.settler,
            self.lease,
            options,
            clock,
            chance,
            self.runs,
            spans=spans,
            on_tainted=self._on_tainted,
            on_step=on_step,
            marks=marks,
        )
        self._tell_tainted = on_tainted
        self.claimer = Claimer(backend, self.runner, self.settler, self.lease, info.id, options, clock, chance)
        self.heart = Heart(backend, info, self.lease, self.runner, clock, self.apply_pulse, spare=kept)
        self.steps = StepKeeper(self.heart, chance, clock)
        self.runner.reach = WorkerReach(backend, self.steps)
        self.logs = self._log_keeper() if backend.capabilities.steps and app.settings.keep_log != "off" else None
        self._lines: JobLines | None = None
        self.failures = self._failure_teller()
        self._orphans = Orphans()
        # A keeper ticks for all its runners; without one the engine does.
        self.ticker = None if kept else Ticker(backend, keep_times(options), chance, clock, self._tell_lapses)
        self._tasks: list[asyncio.Task[None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._lifespan = AsyncExitStack()
        #: Set when a part failed: the worker must be replaced.
        self.broken = asyncio.Event()
        self.runner.on_broken = self.broken.set

    async def start(self) -> None:
        """Run the app's lifespan and start the parts. Claims begin at once."""
        if self.app.lifespan_hook is not None:
            self.runner.state = await self._lifespan.enter_async_context(self.app.lifespan_hook(self.app))
        self.runner.base = contextvars.copy_context()  # with what the lifespan set
        self._start_logs()
        if self.failures is not None:
            self.failures.base = self.runner.base
        self._tasks = [self._go(self.settler.run()), self._go(self.heart.run())]
        if self.options.define_schedules:
            self._tasks.append(self._go(declare_schedules(self.app, self.backend)))
        if self.ticker is not None:
            self._tasks.append(self._go(self.ticker.run()))
        self._claiming = self._go(self._claim())

    def _failure_teller(self) -> FailureTeller | None:
        """Make what tells the app's failure hooks, if it has any."""
        if not self.app.failure_hooks:
            return None
        from .telling import FailureTeller

        teller = FailureTeller(self.app, self.backend, self.info.id)
        self.runs.listeners.append(teller)
        self.settler.on_settled = teller.settled
        return teller

    def _log_keeper(self) -> LogKeeper:
        level = logging.getLevelNamesMapping()[self.app.settings.keep_log.upper()]
        keeper = LogKeeper(self.heart, self.app.clock, level, self.runner.in_transaction)
        self.settler.keep_logs(keeper)
        return keeper

    def _start_logs(self) -> None:
        """Let log records carry the job that runs, keep them with it, and write a line about its end."""
        stamp_records()
        logs = self.logs.logs if self.logs is not None else None
        here = Here(self.info.id) if logs is None else Here(self.info.id, logs.level, logs.keep)
        self.runner.base.run(CURRENT_WORKER.set, here)
        self.executors.here, self.executors.logs = here, logs
        self._lines = JobLines(self.runs, self.info.id, self.app.clock, self.app.settings.log_jobs)

    async def _claim(self) -> None:
        """Claim once the store knows the limits: nothing may start beyond them."""
        await declare_limits(self.app, self.backend, self.options.queues)
        await self.claimer.run()

    def _go(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._part_ended)
        return task

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        """A part only ends when it is cancelled; one that fails must not leave a worker that looks alive (B2)."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a part of the worker failed; this is a bug", exc_info=error)
            self.broken.set()

    def _on_tainted(self, reason: str) -> None:
        log.warning("%s", reason)
        self.executors.replace_threads()  # one of them may be stuck with that job
        if self._tell_tainted is not None:
            self._tell_tainted(reason)

    def apply_pulse(self, held: Mapping[str, str], cancel: Collection[str], sent_ms: int) -> None:
        """Act on the answer to a heartbeat that was sent at `sent_ms`."""
        self.runner.apply_pulse(held, cancel, sent_ms)
        if self.logs is not None and len(self.logs.logs):
            self.logs.logs.keep_held(held, sent_ms)
        if held:
            known = self.runner.known() | self.settler.known()
            orphans = self._orphans.look(held, known, self.app.clock.boot_ms(), self.claimer.claiming_since_ms)
            if orphans:
                named = ", ".join(orphan.id for orphan in orphans[:3])
                log.warning(
                    "%s given back: claimed by calls whose answer was lost: %s",
                    quantity(len(orphans), "job"),
                    named,
                )
            for release in orphans:
                self.settler.submit(release)

    def gauge(self) -> None:
        """Note how busy the worker is now, and count what was put down, for whoever reads the meters next."""
        self.runs.count()
        self.sheet.number(metrics.BUSY).value = self.runner.busy
        self.sheet.number(metrics.SLOTS).value = self.options.concurrency
        self.sheet.number(metrics.UNSTARTED).value = self.runner.unstarted

    async def exhausted(self) -> None:
        """Wait until a burst found nothing left to do."""
        await self.claimer.exhausted.wait()

    async def stop(self, grace_ms: int | None = None) -> None:
        """Stop claiming, release what has not started, let the running finish, settle, close. No attempt is charged.

        Runs still going after `grace_ms` are told to stop and released; what ignores that lapses with the worker.
        """
        grace_ms = self.options.shutdown_timeout_ms if grace_ms is None else grace_ms
        try:
            self.runner.stop_starting()
            await self._stop_claiming()
            self.runner.release_unstarted()
            if not await self.runner.quiet(grace_ms):
                log.warning("%s stopped: still running after the grace time", quantity(self.runner.busy, "job"))
                self.runner.stop_all("shutdown")
                await self.runner.quiet(self.options.stop_grace_ms + 100)
            await self._settle_rest()
            if self.failures is not None:
                await self.failures.stop()
        finally:
            await self.close()

    def hurry(self) -> None:
        """Stop now: tell every run to stop; what is done is still settled."""
        self.runner.stop_all("shutdown")

    async def _stop_claiming(self) -> None:
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.wait([self._claiming])

    async def _settle_rest(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_MS_MAX / 1000):
                await self.settler.drained()
                await self._release_orphans()
                await self.settler.drained()
                await self._retire("its worker stopped before the job ended")
        except Exception as error:  # a backend that is away must not keep the worker from stopping
            left = self.settler.pending
            how = (
                f"with {quantity(left, 'end of a run', 'ends of runs')} unsettled"
                if left
                else "without a word to the store"
            )
            log.warning("stopping %s: %s", how, str(error) or f"no answer within {SETTLE_MS_MAX} ms")

    async def _retire(self, reason: str) -> None:
        lapses = await self.backend.retire(self.info.id, reason)
        say_lapses(lapses, reason, worker=self.info.id)
        if self.failures is not None:
            self.failures.lapsed(failed_attempts(lapses), self.info.id)

    def _tell_lapses(self, lapses: Sequence[Lapse]) -> None:
        """Tell what a tick of this worker took from lost ones."""
        if self.failures is not None:
            self.failures.lapsed(failed_attempts(lapses))

    async def _release_orphans(self) -> None:
        """Give back claims whose answer was lost: nothing is on its way here any more (simulator seed 48)."""
        pulse = await self.backend.heartbeat(self.info, self.options.lease_ms)
        known = self.runner.known() | self.settler.known()
        for job_id, token in sorted(pulse.held.items()):
            if (job_id, token) not in known:
                self.settler.submit(Settlement(id=job_id, token=token, state=State.PENDING, refund=True))

    async def close(self) -> None:
        """End all parts. Jobs still held lapse."""
        self.runner.close()
        await self.steps.close()
        if self.logs is not None:
            await self.logs.close()
        if self._lines is not None:
            self._lines.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.executors.close()
        self.runs.count()
        self.app.meters.fold(self.sheet)
        await self._lifespan.aclose()


def _spans_of(app: Packhorse) -> RunSpans | None:
    """Answer what makes the spans of a worker of `app`; None while tracing is off, and then nothing is loaded."""
    tracing = app.tracing()
    if tracing is None:
        return None
    from ..observe.run_spans import RunSpans

    return RunSpans(tracing)
