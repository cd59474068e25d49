"""A simulated machine: it runs one worker process, which can be stopped, killed, frozen and started again.

Each start is a `Life`: a new process, a new loop, a new worker id. What a life held is its own: a machine that
comes back knows nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...backends.base import WorkerInfo
from ...chance import Chance
from ...job import Unique
from ...worker.engine import Engine
from ...worker.options import WorkerOptions
from .handlers import Stage, StageKind, Stages
from .ledger import Ledger, Violation
from .loop import US_PER_MS, Kernel, SimLoop
from .network import Network
from .work import draw_plan

#: Where the simulated wall clocks start: 2023-11-14, an instant like any other.
_WALL_MS = 1_700_000_000_000
_BOOT_MS = 1_000_000


class SimClock:
    """A machine's clocks: the boot clock is the kernel's, the wall clock may be set to anything."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.offset_ms = 0

    def now_ms(self) -> int:
        return _WALL_MS + self.offset_ms + self._kernel.now_us // US_PER_MS

    def boot_ms(self) -> int:
        return _BOOT_MS + self._kernel.now_us // US_PER_MS

    def boot_ns(self) -> int:
        return _BOOT_MS * 1_000_000 + self._kernel.now_us * 1_000


class Life:
    """One worker process, from its start to its end."""

    def __init__(self, machine: Machine, worker: str) -> None:
        self.machine = machine
        self.worker = worker
        self.ledger = machine.ledger
        self.loop = SimLoop(machine.kernel, worker)
        self.backend = machine.network.connect(self.loop)
        stage = machine.take_stage()
        stage.life = self
        self.app = stage.app
        self.app.clock = machine.clock
        self.app.chance = machine.fork_chance()
        self.engine: Engine | None = None
        self.stop_wanted: asyncio.Future[int] = self.loop.create_future()
        self.started_us = machine.kernel.now_us
        self.stop_us: int | None = None  # when it was told to stop
        self.ended_us: int | None = None  # when it ended, in whatever way
        self.stopped = False  # it ended in good order
        self.loop.create_task(self._main())

    async def _main(self) -> None:
        options = self.machine.options
        info = WorkerInfo(
            id=self.worker,
            queues=options.queues,
            types=tuple(sorted(self.app.tasks)),
            concurrency=options.concurrency,
            started_at_ms=self.machine.clock.now_ms(),
        )
        self.engine = Engine(self.app, self.backend, info, options)
        await self.engine.start()
        grace_ms = await self.stop_wanted
        await self.engine.stop(grace_ms)
        self.stopped = True
        self.machine.ended(self)

    # ---- what handlers ask -----------------------------------------------------------------------------

    def freeze_self(self, ms: int) -> None:
        """Block the whole process from within."""
        self.machine.freeze(ms, suspend=False)

    def make_follow_up(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a follow-up that enqueues nothing more itself."""
        plan = draw_plan(self.app.chance, self.machine.options.lease_ms)
        if plan["kind"] in {"spawn", "send", "long", "endless"}:
            plan["kind"] = "nap"
        chance, features = self.app.chance, self.machine.features
        options: dict[str, Any] = {
            "queue": chance.choice(self.machine.options.queues),
            "max_attempts": 1 + chance.below(3),
            "delay": chance.choice((0, 0, 0.2)),
            "meta": {"kind": plan["kind"]},
        }
        if "windows" in features and chance.happens(0.5):
            on_conflict = chance.choice(("existing", "replace"))
            options["unique"] = Unique(key=chance.choice("uvw"), on_conflict=on_conflict)
        if "keys" in features:
            options["key"] = chance.choice("xyz")
        return {"plan": plan}, options

    @property
    def chains(self) -> bool:
        """Whether follow-ups have follow-ups that wait for them."""
        return "workflows" in self.machine.features

    def acknowledged(self, job_id: str) -> None:
        """Note that the enqueue of a job was answered."""
        self.machine.acknowledged.add(job_id)

    def report(self, violation: Violation) -> None:
        """Stop the world: the promise was broken."""
        self.machine.report(violation)


class Machine:
    """One machine of the world."""

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        network: Network,
        ledger: Ledger,
        options: WorkerOptions,
        chance: Chance,
        acknowledged: set[str],
        stages: Stages,
        report: Callable[[Violation], None],
        *,
        rare: bool,
        features: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.features = features
        self.kernel = kernel
        self.network = network
        self.ledger = ledger
        self.options = options
        self.acknowledged = acknowledged
        self.report = report
        self.clock = SimClock(kernel)
        self.life: Life | None = None
        self.lives: list[Life] = []
        #: The world comes to its end: nothing is started any more.
        self.retired = False
        self._wanted = False
        self._chance = chance
        self._stages = stages
        self._rare = rare  # whether it knows the job type `rare`

    def take_stage(self) -> Stage:
        """Answer the app for a new process."""
        features = self.features
        return self._stages.take(StageKind(self._rare, "limits" in features, "schedules" in features))

    def fork_chance(self) -> Chance:
        """Answer a source of chance for a new process."""
        return Chance(self._chance.below(1 << 62))

    # ---- life and death --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a worker process, as soon as none runs."""
        if self.retired:
            return
        self._wanted = True
        if self.life is None:
            worker = f"{self.name}.{len(self.lives) + 1}"
            self.life = Life(self, worker)
            self.lives.append(self.life)

    def crash(self) -> None:
        """End the process as a power cut or `kill -9` does."""
        self._wanted = False
        life = self.life
        if life is not None:
            self.kernel.bury(life.loop)
            self._gone(life)

    def stop(self, grace_ms: int) -> None:
        """Ask the process to stop in good order."""
        self._wanted = False
        life = self.life
        if life is not None and life.stop_us is None:
            life.stop_us = self.kernel.now_us
            life.stop_wanted.set_result(grace_ms)

    def ended(self, life: Life) -> None:
        """Note that a process ended by itself. Its loop goes on: what leaks will show."""
        self._gone(life)

    def _gone(self, life: Life) -> None:
        life.ended_us = self.kernel.now_us
        self.network.disconnect(life.backend)
        if self.life is life:
            self.life = None
        if self._wanted:
            self.start()

    def freeze(self, ms: int, *, suspend: bool) -> bool:
        """Stop turning the process for `ms`; answers False if there is none to freeze."""
        life = self.life
        if life is None or life.loop.frozen:
            return False
        life.loop.freeze()
        life.backend.excuse(self.kernel.now_us + ms * US_PER_MS)
        self.network.loop.call_in(ms * US_PER_MS, life.loop.thaw, ms * US_PER_MS if suspend else 0)
        return True

    def calm(self, for_ms: int) -> bool:
        """Answer whether its process has been well for so long: it ticks."""
        life, since_us = self.life, self.kernel.now_us - for_ms * US_PER_MS
        return (
            life is not None
            and not life.loop.frozen
            and life.stop_us is None
            and max(life.started_us, life.backend.excused_until_us) < since_us
        )

    def find(self, worker: str) -> Life:
        """Answer one of this machine's lives."""
        return self.lives[int(worker.rpartition(".")[2]) - 1]
