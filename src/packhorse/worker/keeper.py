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
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..backends.base import Backend, Lapse, WorkerInfo, worker_topic
from ..backends.bells import Bell
from ..backends.measured import MeasuredBackend
from ..backends.opening import open_backend, redact, secrets_of
from ..chance import CHANCE
from ..clock import SYSTEM_CLOCK
from ..errors import PackhorseError, Unavailable
from ..observe import metrics
from ..observe.logs import configure, hide
from ..observe.meters import Meters
from ..observe.outage import Outage
from ..wording import quantity
from .child import Child
from .farewell import see_off
from .giving_back import give_back_unbegun
from .lapses import Lapses, failed_attempts, say_lapses
from .launch import Launched, launch
from .link import Beat, Broken, Counted, Exhausted, Hurry, Link, Ready, Setup, Stop, Tainted, Told
from .options import SETTLE_MS_MAX, keep_times
from .ticker import Ticker
from .trouble import Trouble

if TYPE_CHECKING:
    from .controlled import Controlled

log = logging.getLogger("packhorse.keeper")

_LOOK_MS = 200
#: While a runner holds jobs, ask for cancellations this often.
_BUSY_BEAT_MS = 1_000
#: A loop may be late by this much beyond what its jobs may take, before its runner counts as wedged.
_WEDGED_MS = 5_000
#: A runner that dies sooner than this after its start is started again more and more slowly.
_SHORT_LIFE_MS = 5_000
_RESTART_S_MAX = 5.0
#: A process that has ended may have left something to read: for so long, if what it started holds its socket open.
_LAST_WORDS_S = 0.5
#: Who started the worker and wants to know what is counted is told this often.
_TELL_S = 1.0


class Endpoint(Protocol):
    """Where a keeper is asked how it does: see `server.worker_endpoint`, which this package may not know."""

    async def start(self, keeper: Keeper) -> None:
        """Begin to answer."""

    async def stop(self) -> None:
        """Answer nothing more."""


class KeeperOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `packhorse worker` was asked to do. `overrides` are fields of WorkerOptions."""

    app: str
    url: str | None = None
    processes: int = 1
    overrides: dict[str, Any] = {}
    tell_fd: int | None = None  # a socket of who started the worker: what is counted is told there too
    log_level: str = "info"
    log_format: str = "console"


def run_keeper(options: KeeperOptions, launched: Sequence[Launched] = (), endpoint: Endpoint | None = None) -> int:
    """Run a worker until it is told to stop; answers the exit code: 0, or 2 when the app cannot be started.

    `launched` are runner processes started before this module was even imported: that is how a worker is quickly ready.
    """
    configure(options.log_level, options.log_format)
    return asyncio.run(Keeper(options, launched, endpoint).run())


class Keeper:
    """One keeper and its runners."""

    def __init__(
        self, options: KeeperOptions, launched: Sequence[Launched] = (), endpoint: Endpoint | None = None
    ) -> None:
        self._options = options
        self._endpoint = endpoint
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
        self._leases = Outage(log, SYSTEM_CLOCK, "renew the leases of its runners")
        self._making_good = Outage(log, SYSTEM_CLOCK, "make good what a dead runner held")
        self._grace_ms = 30_000
        self._lapses = Lapses()
        self._controlled: Controlled | None = None
        #: What the keeper counts, and what its runners told it.
        self.meters = Meters()
        self._sheet = self.meters.sheet()
        for reason in ("died", "killed"):
            self._sheet.number(metrics.RUNNERS_LOST, reason)  # a rate needs to have seen 0 before the first

    async def run(self) -> int:
        """Start the runners, watch over them until told to stop, see them end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        for _ in range(self._options.processes):
            await self._spawn()
        if self._endpoint is not None:
            await self._endpoint.start(self)
        watching = [self._go(self._look()), self._go(self._tick())]
        upward = await self._open_upward()
        if upward is not None:
            watching.append(self._go(self._tell_on(upward)))
        await self._stopping.wait()
        await self._stop_children()
        for task in watching if self._opened.is_set() else list(self._tasks):
            task.cancel()
        await self._finish_tasks()
        self._lapses.end()
        if self._controlled is not None:
            await self._controlled.stop()
        if self._endpoint is not None:
            await self._endpoint.stop()
        if upward is not None:
            await self._tell(upward)
            upward.close()
        if self._backend is not None:
            await self._backend.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            # All is done: an impatient second signal must not turn a clean end into a killed process.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return self._code

    async def _finish_tasks(self) -> None:
        """Let what is under way end, for SETTLE_MS_MAX: a store that is away must not keep the worker from stopping."""
        tasks = set(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=SETTLE_MS_MAX / 1000)
        if late:
            log.warning("the store does not answer; what dead runners held goes on when their leases are over")
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    # ---- what is counted -------------------------------------------------------------------------------

    async def _open_upward(self) -> Link | None:
        """Answer the way to who started this worker, if he wants to know what is counted."""
        if self._options.tell_fd is None:
            return None
        return await Link.over(socket.socket(fileno=self._options.tell_fd))

    async def _tell_on(self, link: Link) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            await link.flush()  # one who does not read is told later, and all at once
            await self._tell(link)

    async def _tell(self, link: Link) -> None:
        if rises := self.meters.rises():
            link.send(Counted(rises))
        with suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await link.flush()

    # ---- asked by its endpoint -------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def runners(self) -> tuple[int, int]:
        """How many runners there are, and how many of them are ready to work; one that is stopped (SIGSTOP) is not."""
        every = [child for child in self._children if not child.gone]
        return len(every), sum(child.ready is not None and not child.leaving and not child.stopped() for child in every)

    @property
    def in_trouble(self) -> list[WorkerInfo]:
        """The runners with which something is wrong now, such as a handler that blocks the event loop."""
        ready = [self._info(child) for child in self._children if child.ready is not None and not child.gone]
        return sorted((info for info in ready if info.trouble), key=lambda info: info.id)

    async def backend(self) -> Backend:
        """Answer its connection to the store. Raises Unavailable while that is not open."""
        if self._backend is None:
            raise Unavailable("the store has not been reached yet")
        return self._backend

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
        child = await Child.adopt(launched, CHANCE.id(SYSTEM_CLOCK.now_ms()), self.meters.sheet())
        options = self._options
        child.link.send(
            Setup(options.app, options.url, child.worker, options.overrides, options.log_level, options.log_format)
        )
        self._children.add(child)
        self._go(self._supervise(child, self._go(self._listen(child))))
        if self._stopping.is_set():  # since whoever wanted this one looked: it is not among those told to stop
            self._stop_child(child)

    async def _listen(self, child: Child) -> None:
        while (message := await child.link.receive()) is not None:
            match message:
                case Ready():
                    await self._on_ready(child, message)
                case Broken(message=reason):
                    if self._ready is None:
                        if not self._stopping.is_set():  # the other runners say the same
                            log.error("the worker cannot start: %s", reason)
                        self._code = 2
                        self._stopping.set()
                    else:
                        log.error("a runner cannot start: %s", reason)
                case Tainted(reason=reason):
                    await self._replace(child, reason)
                case Told(number=number):
                    self._lapses.told(number)
                case Counted(rises=rises):
                    child.sheet.add(rises)
                    self.meters.writing.hear(rises, SYSTEM_CLOCK.boot_ms())
                case Exhausted():
                    child.exhausted = True
                    if all(other.exhausted for other in self._children):
                        self._stopping.set()
                case _:
                    pass

    async def _on_ready(self, child: Child, message: Ready) -> None:
        child.ready = message
        blocked = self._sheet.number(metrics.LOOP_BLOCKED)
        child.trouble = Trouble(child, blocked, self._go, message.options.blocked_ms)
        child.beat_ms = 0  # the next look beats, so that the worker is listed at once
        self._lapses.hand_over(self._children)
        if self._ready is None:
            self._ready = message
            hide(secrets_of(message.url))
            self._grace_ms = message.options.shutdown_timeout_ms
            self.meters.bounds.learn(message.types, message.options.queues)
            backend = MeasuredBackend(open_backend(message.url), self.meters, SYSTEM_CLOCK)
            await self._open(backend)
            self._backend = backend
            self._opened.set()
            log.info(
                "worker of %s ready: queues %s, %s, %d x %d at once",
                redact(message.url),
                ",".join(message.options.queues),
                quantity(len(message.types), "type"),
                self._options.processes,
                message.options.concurrency,
            )
            await self._open_control()

    async def _open_control(self) -> None:
        """Let commands look into the runners. Imported now: a worker is ready without it."""
        from .controlled import Controlled

        self._controlled = Controlled(lambda: self._children)
        await self._controlled.start()

    async def _open(self, backend: Backend) -> None:
        outage = Outage(log, SYSTEM_CLOCK, "open the store for the keeper")
        while True:
            try:
                await backend.open()
                outage.over()
                return
            except PackhorseError as error:
                outage.failed(error)
                await asyncio.sleep(1)

    async def _supervise(self, child: Child, listening: asyncio.Task[Any]) -> None:
        """See a runner to its end, make good what it held, start another one."""
        how = await child.ended()
        died = not child.leaving and not self._stopping.is_set()
        if died:
            log.error("runner %d %s", child.pid, how)
            self._sheet.number(metrics.RUNNERS_LOST, "killed" if child.was_killed else "died").value += 1
        self._go(self._make_good(child, f"its runner {how}"))
        await asyncio.wait([listening], timeout=_LAST_WORDS_S)
        child.link.close()
        child.inspection.close()
        self.meters.fold(child.sheet)  # now: it has no slots any more, however long the next one waits to be started
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
                if child.ready is not None:
                    lease_ms = child.ready.options.lease_ms
                    await give_back_unbegun(self._backend, self._info(child), lease_ms, child.page.marks, self._sheet)
                lapses = await self._backend.retire(child.worker, reason)
            except PackhorseError as error:
                self._making_good.failed(error)
                await asyncio.sleep(CHANCE.uniform(0.1, 1.0))
            else:
                self._making_good.over()
                if lapses:
                    self._say_lost(child, lapses, reason)
                break
        self._lapses.hand_over(self._children)  # what it was asked to tell, too
        child.page.close()

    def _say_lost(self, child: Child, lapses: Sequence[Lapse], reason: str) -> None:
        """Say what a dead runner held, and count its runs: it did not live to do so."""
        log.warning("of runner %d %s made good", child.pid, quantity(len(lapses), "job is", "jobs are"))
        say_lapses(lapses, reason, "process", child.worker)
        for lapse in lapses:
            self._sheet.number(metrics.RUNS, lapse.type, "failure").value += 1
        self._tell_lapses(lapses, child.worker)

    def _tell_lapses(self, lapses: Sequence[Lapse], worker: str | None = None) -> None:
        """Let a runner tell the app's failure hooks, if there are any."""
        if self._ready is not None and self._ready.failure_hooks:
            self._lapses.add(failed_attempts(lapses), worker)
            self._lapses.hand_over(self._children)

    async def _replace(self, child: Child, reason: str) -> None:
        """Start a new runner, then let the old one finish what it can."""
        if child.leaving or self._stopping.is_set():
            return
        log.warning("runner %d is replaced: %s", child.pid, reason)
        child.leaving = True
        await self._spawn()
        self._stop_child(child)

    async def _stop_children(self) -> None:
        """Stop all runners; leases go on being renewed until each has ended (FAILURES B7)."""
        for child in list(self._children):
            self._stop_child(child)
        while self._children:
            self._all_gone.clear()
            await self._all_gone.wait()

    def _stop_child(self, child: Child) -> None:
        child.leaving = True
        child.link.send(Stop(self._grace_ms))
        self._go(see_off(child, self._grace_ms))

    # ---- leases and time -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        await self._opened.wait()
        assert self._backend is not None
        assert self._ready is not None
        keep = keep_times(self._ready.options)
        await Ticker(self._backend, keep, CHANCE, SYSTEM_CLOCK, self._tell_lapses).run()

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
        assert child.trouble is not None
        if child.stopped():
            # One last renewal, so that the store shows why. Then its leases lapse, and others go on with its jobs.
            if child.trouble.stopped():
                self._go(self._beat(child))
            return
        child.trouble.look()
        late_ms = SYSTEM_CLOCK.boot_ms() - child.page.pulse_ms
        allowed_ms = child.page.allowed_ms
        if allowed_ms and late_ms > allowed_ms + _WEDGED_MS:
            child.trouble.condemn()
            return
        memory_bytes = child.memory_bytes() if options.memory_bytes_max else 0
        if memory_bytes > options.memory_bytes_max * 3 // 2:
            child.kill(f"was killed: it used {memory_bytes >> 20} MiB")
        elif options.memory_bytes_max and memory_bytes > options.memory_bytes_max:
            self._go(self._replace(child, f"it uses {memory_bytes >> 20} MiB"))
        elif options.jobs_max and child.page.ended >= options.jobs_max:
            self._go(self._replace(child, f"it ran {quantity(child.page.ended, 'job')}"))
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
            self._leases.over()
            if child.page_open:
                child.page.renewed_ms = sent_ms
            child.held = pulse.held
            child.link.send(Beat(sent_ms, pulse.held, list(pulse.cancel)))
        except PackhorseError as error:
            self._leases.failed(error)
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
            busy=child.page.busy if child.page_open else 0,
            started_at_ms=child.started_at_ms,
            version=__version__,
            trouble=child.trouble.text() if child.trouble is not None else "",
        )
