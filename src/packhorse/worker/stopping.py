"""Stops runs: at their time-out or when told to. A run that ignores it is given up, and its slot with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .. import outcome as outcomes
from .ending import Ending
from .options import WorkerOptions
from .run import Run


class Stopping:
    """Stops the runs of one runner; `on_given_up` takes the place of one that cannot be stopped back."""

    def __init__(
        self,
        ending: Ending,
        options: WorkerOptions,
        on_given_up: Callable[[Run], None],
    ) -> None:
        self._ending = ending
        self._grace_s = options.stop_grace_ms / 1000
        self._on_given_up = on_given_up
        self._loop = asyncio.get_running_loop()

    def start_timer(self, run: Run) -> None:
        """Count a run's time-out from now, unless it is held."""
        if run.reason is None and run.job.timeout_ms > 0:
            if run.timer is not None:
                run.timer.cancel()
            if run.ctx is not None and run.ctx.timeout_held:
                return
            run.timer = self._loop.call_later(run.job.timeout_ms / 1000, self.stop, run, "timeout")

    def stop(self, run: Run, reason: str) -> None:
        """Tell a run to stop; if it does not within the grace time, give it up."""
        if run.reason is not None:
            return
        run.reason = reason
        if run.timer is not None:
            run.timer.cancel()
        if run.ctx is not None:
            run.ctx.ask_to_stop()
        run.slot.cancel()
        run.timer = self._loop.call_later(self._grace_s, self._give_up, run)

    def _give_up(self, run: Run) -> None:
        run.abandoned = True
        job = run.job
        how = f"and ignored its stop for {self._grace_s:g} s"
        if run.reason == "cancel":
            outcome = outcomes.cancelled(f"asked to stop, {how}")
            self._ending.finish(job, run.number, run.handler, outcome, None, run.started_ns)
        elif run.reason == "timeout":
            outcome = outcomes.timed_out(job.timeout_ms, how)
            self._ending.finish(job, run.number, run.handler, outcome, None, run.started_ns)
        self._ending.end_span_as(job, "Abandoned")
        self._on_given_up(run)
