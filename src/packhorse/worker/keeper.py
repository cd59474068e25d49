"""The keeper: a process that runs no user code, so that nothing a handler does can stop it.

It starts runner processes, renews their leases, moves time on, and makes good at once what a dead runner held. A
runner that was stopped (SIGSTOP) gets no renewal; one that is wedged past its jobs' time-outs is killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from ..backends.base import Backend, WorkerInfo, worker_topic
from ..backends.bells import Bell
from ..backends.opening import open_backend, redact
from ..chance import CHANCE
from ..clock import SYSTEM_CLOCK
from ..errors import PackhorseError
from ..observe.logs import configure
from .child import Child
from .launch import Launched, launch
from .link import Beat, Broken, Exhausted, Hurry, Ready, Setup, Stop, Tainted
from .options import SETTLE_MS_MAX, keep_times
from .ticker import Ticker

log = logging.getLogger("packhorse.keeper")

_LOOK_MS = 200
#: While a runner holds jobs, ask for cancellations this often.
_BUSY_BEAT_MS = 1_000
#: A loop may be late by this much beyond what its jobs may take, before its runner counts as wedged.
_WEDGED_MS = 5_000
#: A runner that dies sooner than this after its start is started again more and more slowly.
_SHORT_LIFE_MS = 5_000
_RESTART_S_MAX = 5.0


class KeeperOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `packhorse worker` was asked to do. `overrides` are fields of WorkerOptions."""

    app: str
    url: str | None = None
    processes: int = 1
    overrides: dict[str, Any] = {}
    log_level: str = "info"
    log_format: str = "console"


def run_keeper(options: KeeperOptions, launched: Sequence[Launched] = ()) -> int:
    """Run a worker until it is told to stop; answers the exit code: 0, or 2 when the app cannot be started.

    `launched` are runner processes started before this module was even imported: that is how a worker is quickly ready.
    """
    configure(options.log_level, options.log_format)
    return asyncio.run(Keeper(options, launched).run())


class Keeper:
    """One keeper and its runners."""

    def __init__(self, options: KeeperOptions, launched: Sequence[Launched] = ()) -> None:
        self._options = options
        self._launched = list(launched)
        self._children: set[Child] = set()
        self._backend: Backend | None = None
        self._ready: Ready | None = None
        self._opened = asyncio.Event()
        self._stopping = asyncio.Event()
        self._all_gone = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures = 0
        self._code = 0
        self._grace_ms = 30_000

    async def run(self) -> int:
        """Start the runners, watch over them until told to stop, see them end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        for _ in range(self._options.processes):
            await self._spawn()
        watching = [self._go(self._look()), self._go(self._tick())]
        await self._stopping.wait()
        await self._stop_children()
        for task in watching if self._opened.is_set() else list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._backend is not None:
            await self._backend.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            # All is done: an impatient second signal must not turn a clean end into a killed process.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return self._code

    def _go(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a part of the keeper failed; this is a bug", exc_info=task.exception())

    def _on_signal(self) -> None:
        if not self._stopping.is_set():
            log.info("stopping: running jobs have %g s to end", self._grace_ms / 1000)
            self._stopping.set()
        else:
            log.info("stopping now")
            for child in self._children:
                child.link.send(Hurry())

    # ---- runners ---------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        launched = self._launched.pop() if self._launched else launch()
        child = await Child.adopt(launched, CHANCE.id(SYSTEM_CLOCK.now_ms()))
        options = self._options
        child.link.send(
            Setup(options.app, options.url, child.worker, options.overrides, options.log_level, options.log_format)
        )
        self._children.add(child)
        self._go(self._listen(child))
        self._go(self._supervise(child))

    async def _listen(self, child: Child) -> None:
        while (message := await child.link.receive()) is not None:
            match message:
                case Ready():
                    await self._on_ready(child, message)
                case Broken(message=reason):
                    if self._ready is None:
                        log.error("the worker cannot start: %s", reason)
                        self._code = 2
                        self._stopping.set()
                    else:
                        log.error("a runner cannot start: %s", reason)
                case Tainted(reason=reason):
                    await self._replace(child, reason)
                case Exhausted():
                    child.exhausted = True
                    if all(other.exhausted for other in self._children):
                        self._stopping.set()
                case _:
                    pass

    async def _on_ready(self, child: Child, message: Ready) -> None:
        child.ready = message
        child.beat_ms = 0  # the next look beats, so that the worker is listed at once
        if self._ready is None:
            self._ready = message
            self._grace_ms = message.options.shutdown_timeout_ms
            backend = open_backend(message.url)
            await self._open(backend)
            self._backend = backend
            self._opened.set()
            log.info(
                "worker of %s ready: queues %s, %d types, %d x %d at once",
                redact(message.url),
                ",".join(message.options.queues),
                len(message.types),
                self._options.processes,
                message.options.concurrency,
            )

    async def _open(self, backend: Backend) -> None:
        while True:
            try:
                await backend.open()
                return
            except PackhorseError as error:
                log.warning("the keeper cannot open the backend, trying again: %s", error)
                await asyncio.sleep(1)

    async def _supervise(self, child: Child) -> None:
        """See a runner to its end, make good what it held, start another one."""
        how = await child.ended()
        died = not child.leaving and not self._stopping.is_set()
        if died:
            log.error("runner %d %s", child.pid, how)
        self._go(self._make_good(child, f"its runner {how}"))
        if died:
            lived_ms = SYSTEM_CLOCK.boot_ms() - child.started_ms
            self._failures = self._failures + 1 if lived_ms < _SHORT_LIFE_MS else 0
            await self._pause(min(_RESTART_S_MAX, 0.1 * 2 ** min(self._failures, 10) - 0.2 * (not self._failures)))
            if not self._stopping.is_set():
                await self._spawn()
        self._children.discard(child)
        if not self._children:
            self._all_gone.set()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            except TimeoutError:
                return

    async def _make_good(self, child: Child, reason: str) -> None:
        """Lapse what a dead runner held, now rather than at the end of its lease."""
        await self._opened.wait()  # a runner may claim and die before the keeper's own connection is open
        assert self._backend is not None
        for _ in range(20):
            try:
                lapsed = await self._backend.retire(child.worker, reason)
            except PackhorseError as error:
                log.warning("cannot make good what runner %d held, trying again: %s", child.pid, error)
                await asyncio.sleep(CHANCE.uniform(0.1, 1.0))
            else:
                if lapsed:
                    log.warning("%d jobs of runner %d are made good", lapsed, child.pid)
                break
        child.page.close()

    async def _replace(self, child: Child, reason: str) -> None:
        """Start a new runner, then let the old one finish what it can."""
        if child.leaving or self._stopping.is_set():
            return
        log.warning("runner %d is replaced: %s", child.pid, reason)
        child.leaving = True
        await self._spawn()
        child.link.send(Stop(self._grace_ms))
        self._go(self._kill_late(child))

    async def _kill_late(self, child: Child) -> None:
        try:
            async with asyncio.timeout(self._patience_s()):
                await child.ended()
        except TimeoutError:
            child.kill("did not stop in time")

    def _patience_s(self) -> float:
        stop_grace_ms = self._ready.options.stop_grace_ms if self._ready is not None else 0
        return (self._grace_ms + stop_grace_ms + SETTLE_MS_MAX + 2_000) / 1000

    async def _stop_children(self) -> None:
        """Stop all runners; leases go on being renewed until each has ended (FAILURES B7)."""
        children = list(self._children)
        for child in children:
            child.leaving = True
            child.link.send(Stop(self._grace_ms))
            self._go(self._kill_late(child))
        if self._children:
            await self._all_gone.wait()

    # ---- leases and time -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        await self._opened.wait()
        assert self._backend is not None
        assert self._ready is not None
        await Ticker(self._backend, keep_times(self._ready.options), CHANCE, SYSTEM_CLOCK).run()

    async def _look(self) -> None:
        """Look after every runner, several times a second and at once when a job is to be cancelled."""
        await self._opened.wait()
        assert self._backend is not None
        while True:
            workers = [worker_topic(child.worker) for child in self._children]
            with self._backend.watch(workers) as bell:
                for _ in range(50):  # then hang a bell up for the runners of that time
                    for child in list(self._children):
                        self._look_after(child, bell)
                    if await bell.wait(_LOOK_MS):
                        for child in self._children:
                            child.cancel_asked = child.page_open and child.page.holding > 0
                        await asyncio.sleep(_LOOK_MS / 2000)

    def _look_after(self, child: Child, bell: Bell) -> None:
        if child.ready is None or child.gone or not child.page_open:
            return
        options = child.ready.options
        if child.stopped():
            return  # no renewal: its leases lapse, others go on with its jobs
        late_ms = SYSTEM_CLOCK.boot_ms() - child.page.pulse_ms
        allowed_ms = child.page.allowed_ms
        if allowed_ms and late_ms > allowed_ms + _WEDGED_MS:
            child.kill(f"was killed: its event loop was blocked for {late_ms / 1000:.0f} s")
            return
        memory_bytes = child.memory_bytes() if options.memory_bytes_max else 0
        if memory_bytes > options.memory_bytes_max * 3 // 2:
            child.kill(f"was killed: it used {memory_bytes >> 20} MiB")
        elif options.memory_bytes_max and memory_bytes > options.memory_bytes_max:
            self._go(self._replace(child, f"it uses {memory_bytes >> 20} MiB"))
        elif options.jobs_max and child.page.ended >= options.jobs_max:
            self._go(self._replace(child, f"it ran {child.page.ended} jobs"))
        busy = child.page.holding > 0
        gap_ms = min(_BUSY_BEAT_MS, options.lease_ms // 4) if busy else options.lease_ms // 4
        if not child.beating and (child.cancel_asked or SYSTEM_CLOCK.boot_ms() - child.beat_ms >= gap_ms):
            child.beating = True
            child.cancel_asked = False
            self._go(self._beat(child))

    async def _beat(self, child: Child) -> None:
        assert self._backend is not None
        assert child.ready is not None
        sent_ms = child.beat_ms = SYSTEM_CLOCK.boot_ms()
        try:
            pulse = await self._backend.heartbeat(self._info(child), child.ready.options.lease_ms)
            if child.page_open:
                child.page.renewed_ms = sent_ms
            child.link.send(Beat(sent_ms, pulse.held, list(pulse.cancel)))
        except PackhorseError as error:
            log.warning("cannot renew the lease of runner %d, trying again: %s", child.pid, error)
        finally:
            child.beating = False

    def _info(self, child: Child) -> WorkerInfo:
        from .. import __version__

        assert child.ready is not None
        return WorkerInfo(
            id=child.worker,
            host=socket.gethostname()[:128],
            pid=child.pid,
            queues=child.ready.options.queues,
            types=child.ready.types,
            concurrency=child.ready.options.concurrency,
            busy=child.page.holding if child.page_open else 0,
            started_at_ms=child.started_at_ms,
            version=__version__,
        )
