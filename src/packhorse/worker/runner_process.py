"""A runner process: loads the app, runs an engine on one event loop, listens to its keeper.

Started by the keeper as `python -m packhorse.worker.runner_process SOCKET_FD PAGE_FD INSPECTION_FD`. When the
keeper is gone it finishes what runs, renewing its lease itself, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress

import msgspec

from ..app import Packhorse
from ..backends.base import Backend
from ..backends.opening import redact, secrets_of, store_url
from ..chance import CHANCE
from ..errors import ConfigurationError, PackhorseError, Unavailable
from ..event_loop import new_event_loop
from ..observe import interrupts
from ..observe.logs import configure, hide, take_root
from ..observe.outage import Outage
from ..observe.tracing import WORKER_SERVICE
from ..settings import SettingsWarning, load
from . import dumping
from .admission import check_admitted
from .engine import Engine
from .exits import flush_last
from .importing import import_app, own_traceback
from .inspector import Inspector, RunnerView, handlers_of
from .link import Beat, Broken, Counted, Exhausted, Hurry, Lapsed, Link, Ready, Setup, Stop, Tainted, Told
from .local import worker_info
from .options import WorkerOptions
from .page import Page

log = logging.getLogger("packhorse.worker")

PULSE_MS = 200
#: The keeper is told this often what was counted; what a process that is killed counted since then is lost.
COUNTED_MS = 1_000
#: How long the end of a runner waits for its last spans to be sent, s: within what its keeper allows for.
_FLUSH_S = 1.5
#: Between two attempts to reach a store that is away at the start: from, to.
_REACH_S_MIN, _REACH_S_MAX = 0.2, 3.0


class RunnerProcess:
    """One engine under a keeper."""

    def __init__(self, link: Link, page: Page, inspection: socket.socket) -> None:
        self.link = link
        self.page = page
        self.inspection = inspection
        self.grace_ms: int | None = None
        self._stop = asyncio.Event()
        self._engine: Engine | None = None

    async def run(self) -> None:
        """Work until the keeper says stop or is gone."""
        setup = await self.link.receive()
        if not isinstance(setup, Setup):
            return
        configure(setup.log_level, setup.log_format)
        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(self._listen())]
        try:
            engine = await self._start(setup)
        except Exception as error:  # the app is user code: importing it may raise anything
            if not isinstance(error, PackhorseError):
                traceback.print_exception(type(error), error, own_traceback(error))
            self.link.send(Broken(f"{type(error).__name__}: {error}"[:2_000]))
            await self.link.flush()
            return
        if engine is None:
            return
        helpers += [loop.create_task(self._pulse(engine)), loop.create_task(_end_if_broken(engine))]
        helpers.append(loop.create_task(self._tell_counted(engine)))
        if engine.options.burst:
            helpers.append(loop.create_task(self._tell_exhausted(engine)))
        await self._stop.wait()
        await engine.stop(self.grace_ms)
        for helper in helpers:
            helper.cancel()
        await engine.app.aclose()
        if (tracing := engine.app.tracing()) is not None:
            await tracing.aflush(_FLUSH_S)
        self.link.send(Counted(engine.app.meters.rises()))

    async def _start(self, setup: Setup) -> Engine | None:
        """Load the app and start its engine; None if the keeper said stop before the store could be reached."""
        app: Packhorse = import_app(setup.app)
        take_root(setup.log_level)
        if setup.url is not None:
            app.settings = msgspec.structs.replace(app.settings, url=setup.url)
        _warn_of_another_url(app.settings.url, setup.url)
        _warn_of_metrics_in_code(app.settings.metrics)
        hide(secrets_of(store_url(app.settings)) | ({app.settings.token} if app.settings.token else set()))
        options = WorkerOptions.of(app.settings, **setup.overrides)
        app.tracing(WORKER_SERVICE)  # that it cannot be had is said at once
        backend = await self._reach(app, options, setup.worker)
        if backend is None:
            return None
        if not backend.capabilities.shared:
            raise ConfigurationError(
                f"{redact(app.settings.url)} keeps jobs in one process, so no other could enqueue; "
                "use sqlite:///FILE, or app.worker() inside your program"
            )
        info = worker_info(app, options)
        info.id = setup.worker
        self.page.allowed_ms = 1
        engine = self._engine = Engine(
            app,
            backend,
            info,
            options,
            kept=True,
            renewed_elsewhere=lambda: self.page.renewed_ms,
            on_tainted=lambda reason: self.link.send(Tainted(reason)),
            on_step=self.page.allow,
            marks=self.page.marks,
        )
        engine.executors.app_path = setup.app
        engine.executors.log_form = (setup.log_level, setup.log_format)
        view = RunnerView(engine, asyncio.get_running_loop(), threading.get_ident())
        Inspector(self.inspection, view).start(handlers_of(engine))
        self._mark(engine)
        self.link.send(
            Ready(
                url=store_url(app.settings),
                options=options,
                types=info.types,
                failure_hooks=engine.failures is not None,
            )
        )
        await engine.start()
        return engine

    async def _reach(self, app: Packhorse, options: WorkerOptions, worker: str) -> Backend | None:
        """Open the store, if it lets us work. One that is away is waited for: it is often started beside us."""
        outage = Outage(log, app.clock, "reach the store")
        pause_s = _REACH_S_MIN
        while not self._stop.is_set():
            try:
                backend = await app.backend()
                await check_admitted(backend, options, worker)
                outage.over()
                return backend
            except Unavailable as error:
                outage.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(CHANCE.uniform(pause_s / 2, pause_s)):
                    await self._stop.wait()
            pause_s = min(pause_s * 2, _REACH_S_MAX)
        return None

    def _mark(self, engine: Engine) -> None:
        page = self.page
        page.pulse_ms = engine.app.clock.boot_ms()
        page.holding = engine.runner.holding
        page.busy = engine.runner.busy
        page.ended = engine.runner.ended
        page.allowed_ms = engine.runner.longest_timeout_ms()

    async def _pulse(self, engine: Engine) -> None:
        while True:
            self._mark(engine)
            await asyncio.sleep(PULSE_MS / 1000)

    async def _tell_counted(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(COUNTED_MS / 1000)
            await self.link.flush()  # a keeper that does not read is told later, and all at once
            engine.gauge()
            if rises := engine.app.meters.rises():
                self.link.send(Counted(rises))

    async def _tell_exhausted(self, engine: Engine) -> None:
        await engine.exhausted()
        self.link.send(Exhausted())

    def _tell_lapsed(self, lapsed: Lapsed) -> None:
        """Tell the failure hooks what a dead runner held, and the keeper when they know."""
        if self._engine is not None and self._engine.failures is not None:
            told = Told(lapsed.number)
            self._engine.failures.lapsed(lapsed.attempts, lapsed.worker, lambda: self.link.send(told))

    async def _listen(self) -> None:
        while True:
            match await self.link.receive():
                case Beat(sent_ms=sent_ms, held=held, cancel=cancel):
                    if self._engine is not None:
                        self._engine.apply_pulse(held, frozenset(cancel), sent_ms)
                case Lapsed() as lapsed:
                    self._tell_lapsed(lapsed)
                case Stop(grace_ms=grace_ms):
                    self.grace_ms = grace_ms
                    self._stop.set()
                case Hurry():
                    self.grace_ms = 0
                    self._stop.set()
                    if self._engine is not None:
                        self._engine.hurry()
                case None:
                    if not self._stop.is_set():
                        log.warning("the keeper is gone; finishing what runs")
                    self._stop.set()
                    return
                case _:
                    pass


def _warn_of_another_url(url: str, asked: str | None) -> None:
    """Say so where the app's code names a store and the environment another: commands would use that one."""
    named = os.environ.get("PACKHORSE_URL")
    if named and asked is None and named != url:
        log.warning(
            "the app's code names the store %s, so PACKHORSE_URL (%s) does not count here, but it does for commands; "
            "write Packhorse() without a URL, or start the worker with --url",
            redact(url),
            redact(named),
        )


def _warn_of_metrics_in_code(address: str | None) -> None:
    """Say so where the app's code names an address for metrics: the keeper, who would answer there, never reads it."""
    if address is not None and load().metrics != address:
        log.warning(
            "metrics=%r in the app's code is not used; start the worker with --metrics, or set PACKHORSE_METRICS",
            address,
        )


async def _end_if_broken(engine: Engine) -> None:
    await engine.broken.wait()
    flush_last()
    os._exit(70)  # EX_SOFTWARE of sysexits.h; the keeper gives back what this runner holds and starts another


async def _main(end: socket.socket, page: Page, inspection: socket.socket) -> None:
    link = await Link.over(end)
    try:
        await RunnerProcess(link, page, inspection).run()
    finally:
        await link.flush()


def main() -> None:
    """Run with the descriptors the keeper passed on."""
    # The keeper decides when to stop; Ctrl+C in a terminal reaches the keeper alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore", SettingsWarning)  # said once, by the command
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # sys.path holds text
    end = socket.socket(fileno=int(sys.argv[1]))
    page = Page(int(sys.argv[2]))
    inspection = socket.socket(fileno=int(sys.argv[3]))
    inspection.set_inheritable(False)
    dumping.accept(page)
    interrupts.accept()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_main(end, page, inspection))
        flush_last()
        # Not sys.exit: a thread with a handler that cannot be stopped would be waited for.
        os._exit(0)


if __name__ == "__main__":
    main()
