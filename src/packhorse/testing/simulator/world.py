"""One seed, from its first job to the last check."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from ...backends.base import Limit
from ...backends.memory import MemoryBackend, MemoryStore
from ...chance import Chance
from ...worker.options import WorkerOptions
from .client import Client
from .handlers import Stages
from .ledger import Ledger, Violation
from .loop import US_PER_MS, Kernel, SimLoop, Spinning
from .machine import Life, Machine, SimClock
from .network import Network, Wire
from .storm import Striker, draw_storm
from .work import PACE, PACED, Work, draw_features

LEASE_MS = 3_000
PARK_MS = 4_000
#: Every job must have ended this long after the storm.
SETTLE_MS_MAX = 90_000
#: After the last worker stopped, what its handlers left behind must be gone within this time.
LINGER_MS_MAX = 12_000
_LOOK_MS = 250
#: A process that nothing has struck for so long ticks as it should.
_CALM_MS = 3_000

_STAGES = Stages()

#: Makes the store of a world; tests pass broken ones.
MakeBackend = Callable[[MemoryStore], MemoryBackend]


class Report(msgspec.Struct):
    """What came of one seed."""

    seed: int
    violation: str | None
    digest: str  # of all that happened, every call included: equal digests, equal worlds
    virtual_ms: int
    turns: int
    counted: dict[str, int]
    trace: list[str]


def run_seed(seed: int, make_backend: MakeBackend = MemoryBackend) -> Report:
    """Run the world of `seed`; the same seed does the same, in any process."""
    quiet = logging.getLogger("packhorse")
    before = quiet.disabled, quiet.level
    quiet.setLevel(logging.CRITICAL + 1)  # what workers warn about is what the storm wants
    world = World(seed, make_backend)
    try:
        return world.run()
    finally:
        world.dispose()
        quiet.setLevel(before[1])


class World:
    """Machines, a network, a store, a client, and what befalls them."""

    def __init__(self, seed: int, make_backend: MakeBackend = MemoryBackend) -> None:
        self.seed = seed
        self._chance = Chance(seed)
        self._violation: str | None = None
        self._trace: list[tuple[int, str, str]] = []
        self._digest = hashlib.blake2b(digest_size=12)
        self.kernel = Kernel(self._fork(), self._on_error)
        self.loop = SimLoop(self.kernel, "world")
        store = MemoryStore(SimClock(self.kernel))
        self.acknowledged: set[str] = set()
        self.features = draw_features(self._fork())
        self.options = self._draw_options()
        self.ledger = Ledger(
            store, lambda: self.kernel.now_us // US_PER_MS, self.say, self, PARK_MS, self.options.concurrency
        )
        if "limits" in self.features:
            rate, burst, concurrency = PACE
            limit = Limit(type=PACED, rate=rate, burst=burst, concurrency=concurrency)
            self.ledger.flow.declared[PACED, None] = limit
        self.network = Network(self.loop, make_backend(store), self._fork(), self._witness, self.say)
        self.network.note = self._note
        self.storm = draw_storm(self._fork(), LEASE_MS)
        self.machines = self._make_machines()
        self.client = self._make_client()
        self._client_busy = 0

    def _fork(self) -> Chance:
        return Chance(self._chance.below(1 << 62))

    def _draw_options(self) -> WorkerOptions:
        queues = self._chance.choice((("a",), ("a", "b")))
        keep_ms = self._chance.choice((300, 2_000)) if "drops" in self.features else 86_400_000
        return WorkerOptions(
            queues=queues,
            weights=self._chance.choice(((), (), (3, 1))) if len(queues) > 1 else (),
            keep_succeeded_ms=keep_ms,
            keep_failed_ms=keep_ms * 4,
            keep_cancelled_ms=keep_ms,
            concurrency=self._chance.choice((1, 2, 5, 20)),
            lease_ms=LEASE_MS,
            park_ms=PARK_MS,
            stop_grace_ms=500,
            poll_interval_ms=1_000,
        )

    def _make_machines(self) -> list[Machine]:
        count = self._chance.choice((1, 2, 2, 3))
        return [
            Machine(
                f"m{index + 1}",
                self.kernel,
                self.network,
                self.ledger,
                self.options,
                self._fork(),
                self.acknowledged,
                _STAGES,
                self._report,
                rare=index == 0,
                features=self.features,
            )
            for index in range(count)
        ]

    def _make_client(self) -> Client:
        loop = SimLoop(self.kernel, "client")
        chance, queues = self._fork(), self.options.queues
        return Client(
            self.network.connect(loop),
            chance,
            Work(chance, SimClock(self.kernel), queues, LEASE_MS, self.features),
            self.acknowledged,
            jobs=self._chance.choice((6, 12, 24, 48)),
            busy_ms=self.storm.duration_ms * 3 // 4,
            queues=queues,
            features=self.features,
            steering=self._chance.happens(0.7),
        )

    # ---- what the parts tell ---------------------------------------------------------------------------

    def say(self, who: str, text: str) -> None:
        """Add a line to the trace."""
        self._trace.append((self.kernel.now_us, who, text))
        self._note(text)

    def _note(self, text: str) -> None:
        self._digest.update(f"{self.kernel.now_us} {text}\n".encode())

    def _witness(self, wire: Wire, verb: str, args: tuple[object, ...], answer: object) -> None:
        self.ledger.witness(wire.loop.name, verb, args, answer)

    def _report(self, violation: Violation) -> None:
        self._fail(str(violation))

    def _fail(self, text: str) -> None:
        if self._violation is None:
            self._violation = text
            self.say("ledger", f"VIOLATION: {text}")
        self.kernel.stopped = True

    def _on_error(self, loop: SimLoop, text: str, error: BaseException | None) -> None:
        if not loop.dead:
            self._fail(str(error) if isinstance(error, Violation) else f"in {loop.name}: {text}")

    # ---- excuses (see ledger.Excuses) ------------------------------------------------------------------

    def _life(self, worker: str) -> Life:
        return next(machine.find(worker) for machine in self.machines if worker.startswith(f"{machine.name}."))

    def for_lapse(self, worker: str, since_ms: int) -> bool:
        """Answer whether anything since then may have kept the worker from renewing its lease."""
        life = self._life(worker)
        return life.ended_us is not None or life.backend.excused_until_us >= since_ms * US_PER_MS

    def for_retire(self, worker: str) -> bool:
        """Answer whether a stop of the worker may cost attempts: it did not go in good order."""
        life = self._life(worker)
        return life.stop_us is None or life.backend.stop_excused_until_us >= life.stop_us

    def stopping(self, worker: str) -> bool:
        """Answer whether the worker was told to stop."""
        return self._life(worker).stop_us is not None

    # ---- the course of a world -------------------------------------------------------------------------

    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        try:
            self._run()
        except Violation as violation:
            self._report(violation)
        except Spinning as spinning:
            self._fail(str(spinning))
        lines = [f"{at_us / 1e6:9.4f} {who:>6} {text}" for at_us, who, text in self._trace]
        return Report(
            seed=self.seed,
            violation=self._violation,
            digest=self._digest.hexdigest(),
            virtual_ms=self.kernel.now_us // US_PER_MS,
            turns=self.kernel.turns,
            counted=self.ledger.book.counted | self.network.faults,
            trace=lines,
        )

    def _run(self) -> None:
        for machine in self.machines:
            machine.start()
        Striker(self.storm, self.machines, self.network, self._fork(), LEASE_MS).begin()
        self._in_client(self.client.work())
        self.loop.call_in(self.storm.over_ms * US_PER_MS, self._calm)
        self.kernel.run((self.storm.over_ms + SETTLE_MS_MAX + 2 * LINGER_MS_MAX) * US_PER_MS)
        if self._violation is None:
            self._check_end()

    def _in_client(self, work: Coroutine[Any, Any, None]) -> None:
        self._client_busy += 1
        self.client.loop.create_task(work).add_done_callback(self._client_ended)

    def _client_ended(self, task: object) -> None:
        self._client_busy -= 1

    def _calm(self) -> None:
        """Everything works again, and what was delayed has arrived: from here on all must come to its end."""
        self.say("storm", "is over")
        self._in_client(self.client.operator.calm())
        self._look()

    def _look(self) -> None:
        if any(machine.calm(_CALM_MS) for machine in self.machines):
            self.ledger.slots.check_calm()
        unfinished = self.ledger.book.unfinished()
        if not unfinished and not self._client_busy:
            self._stop_all()
        elif self.kernel.now_us > (self.storm.over_ms + SETTLE_MS_MAX) * US_PER_MS:
            stuck = ", ".join(f"{job.label} ({job.kind}) {job.state} at {job.worker}" for job in unfinished)
            self._fail(f"{SETTLE_MS_MAX / 1000:g} s after the storm have not ended: {stuck or 'the client'}")
        else:
            self.loop.call_in(_LOOK_MS * US_PER_MS, self._look)

    def _stop_all(self) -> None:
        for machine in self.machines:
            machine.retired = True
            machine.stop(3_000)
        self.loop.call_in(LINGER_MS_MAX * US_PER_MS, self._finish)

    def _finish(self) -> None:
        self.kernel.stopped = True

    def _check_end(self) -> None:
        """Check what must hold when all is over. Raises Violation."""
        self.ledger.close(self.acknowledged)
        for machine in self.machines:
            if machine.life is not None:
                raise Violation(f"{machine.life.worker} did not stop within {LINGER_MS_MAX / 1000:g} s")
            for life in machine.lives:
                self._check_life(life)
        leaked = self.client.loop.unfinished()
        if leaked:
            raise Violation(f"the client left {len(leaked)} tasks")

    def _check_life(self, life: Life) -> None:
        """A process that stopped in good order leaves no task, no timer and no end of a run behind."""
        if not life.stopped:
            return
        leaked = life.loop.unfinished()
        if leaked:
            names = sorted({getattr(task.get_coro(), "__qualname__", "?") for task in leaked})
            raise Violation(f"{life.worker} stopped and left {len(leaked)} tasks: {', '.join(names)}")
        if life.loop.next_us() is not None:
            raise Violation(f"{life.worker} stopped and left a timer")
        engine = life.engine
        assert engine is not None
        if engine.runner.holding and not self.for_retire(life.worker):
            raise Violation(f"{life.worker} stopped with {engine.runner.holding} jobs in its hands")
        if engine.settler.pending and not self.for_retire(life.worker):
            raise Violation(f"{life.worker} stopped with {engine.settler.pending} ends of runs unsettled")

    def dispose(self) -> None:
        """Take the world apart, without any effect."""
        self.kernel.dispose()
        _STAGES.give_back()
