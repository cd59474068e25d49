"""What all rules of the state machine need: the store over two connections, the model, and jobs to pick from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import ClassVar, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from ..backends.base import Backend, Keep
from ..errors import QueueFull, Refused, UniqueConflict, UnknownParent
from ..job import JobSpec, State, Unique
from .conformance import Harness, HarnessFactory
from .model import Model

Answer = TypeVar("Answer")

QUEUES = ("a", "b")
WORKERS = ("w0", "w1")
TYPES = ("t", "u")
KEYS = (None, "k0", "k1")
LEASE_MS = 10_000
KEEP = Keep(succeeded_ms=50_000, failed_ms=80_000, cancelled_ms=30_000)

picks = st.integers(0, 40)
many_picks = st.lists(picks, min_size=1, max_size=4)
queues = st.sampled_from(QUEUES)
workers = st.sampled_from(WORKERS)
delays_ms = st.sampled_from((0, 0, 1, 5_000, 20_000))
uniques = st.sampled_from((None, None, "k", "l"))
conflicts = st.sampled_from(("existing", "existing", "refuse", "replace"))


class Draft(msgspec.Struct, frozen=True):
    """A job to be made; `number` chooses the fields that nobody names, `kin` its parents among those there were."""

    queue: str
    delay_ms: int
    unique: str | None
    number: int
    kin: tuple[int, ...] = ()


drafts = st.builds(
    Draft,
    queue=queues,
    delay_ms=delays_ms,
    unique=uniques,
    number=picks,
    kin=st.just(()) | st.just(()) | st.lists(st.integers(0, 60), min_size=1, max_size=3).map(tuple),
)
many_drafts = st.lists(drafts, min_size=1, max_size=4)


class MachineBase(RuleBasedStateMachine):
    """One store over two connections, and the model beside it."""

    make_harness: ClassVar[HarnessFactory]
    model: Model

    def set_up(self) -> None:
        """Open an empty store and begin a model of it."""
        self.runner = asyncio.Runner()
        self.harness: Harness = type(self).make_harness()
        self.ids: list[str] = []
        self.tokens: list[tuple[str, str]] = []  # every job and token that a claim answered
        self.run(self.harness.__aenter__())
        assert self.harness.clock is not None, "the machine needs a backend that takes a ManualClock"
        self.connections = [self.harness.backend, self.run(self.harness.open())]
        self.turn = 0
        self.model = Model(fair=self.can("fair"))

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "runner"):
            try:
                self.run(self.harness.__aexit__(None, None, None))
            finally:
                self.runner.close()

    def run(self, call: Awaitable[Answer]) -> Answer:
        """Await a call on the machine's own loop."""

        async def awaited() -> Answer:
            return await call

        return self.runner.run(awaited())

    @property
    def backend(self) -> Backend:
        """The connections in turn: what one does the other must see."""
        self.turn += 1
        return self.connections[self.turn % 2]

    @property
    def now_ms(self) -> int:
        """The time of the store."""
        assert self.harness.clock is not None
        return self.harness.clock.now_ms()

    def can(self, flag: str) -> bool:
        """Whether the backend has a capability: what it lacks is not asked."""
        return self.harness.has(flag)

    def pick(self, number: int) -> str:
        """Answer one of the jobs there were, or an id that never was."""
        return self.ids[number % len(self.ids)] if self.ids and number < 38 else "no-such-job"

    def pick_again(self, number: int | None) -> str | None:
        """Answer an id to use once more; None for that of a deleted parent: whether it is a parent again is open."""
        picked = "no-such-job" if number is None else self.pick(number)
        parents = {name for job in self.model.jobs.values() for name in job.after}
        return None if picked == "no-such-job" or picked in parents - set(self.model.jobs) else picked

    def make_spec(self, draft: Draft, conflict: str = "existing") -> JobSpec:
        """Describe a new job. One with parents has a key of its own: which of two children goes first is open."""
        number = draft.number
        after = self._parents(draft.kin) if self.can("dependencies") else ()
        spec = self.harness.spec(
            queue=draft.queue,
            type=TYPES[number % 2],
            priority=number % 10,
            max_attempts=1 + number % 3,
            delay_ms=draft.delay_ms,
            unique=None if draft.unique is None else self._unique(draft.unique, conflict, number),
            after=after,
            after_failed=("cancel", "cancel", "continue")[number % 3],
            tags=(("x",), ("x", "y"), ())[number % 3],
            key=KEYS[number // 10 % 3] if not after else (None, f"c{len(self.ids)}")[number % 2],
            workflow=(None, "w-1", "w-2")[number // 3 % 3],
            node=(None, "n")[number // 5 % 2],
        )
        self.ids.append(spec.id)
        return spec

    def _parents(self, kin: Sequence[int]) -> tuple[str, ...]:
        """Choose parents: mostly such as there are, also of the same call; now and then one that is gone."""
        names = [self.ids[number % len(self.ids)] for number in kin if self.ids]
        recent = set(self.ids[-4:])
        return tuple(
            name
            for name, number in zip(names, kin, strict=False)
            if name in self.model.jobs or name in recent or number > 55
        )

    def _unique(self, key: str, conflict: str, number: int) -> Unique:
        if not self.can("unique_windows"):
            return Unique(key=key, on_conflict="existing" if conflict == "replace" else conflict)
        window_ms = (0, 0, 0, 15_000)[number % 4]
        if number % 8 == 7:
            return Unique(key=key, on_conflict=conflict, for_ms=window_ms, states=())
        return Unique(key=key, on_conflict=conflict, for_ms=window_ms)

    async def try_enqueue(self, specs: list[JobSpec]) -> object:
        """Enqueue; answers what the backend answered, or why it refused."""
        try:
            return await self.backend.enqueue(specs)
        except UniqueConflict as error:
            return ("unique", error.unique, error.holder)
        except UnknownParent as error:
            return ("parent", error.parent)
        except QueueFull as error:
            return ("full", error.queue)
        except Refused as error:
            return ("refused", str(error))

    def pick_token(self, number: int) -> tuple[str, str] | None:
        """Answer a job and its token: mostly of a claim that still runs, else of any that ever was."""
        running = [(job_id, job.token) for job_id, job in self.model.jobs.items() if job.token is not None]
        if running and number < 30:
            return running[number % len(running)]
        return self.tokens[number % len(self.tokens)] if self.tokens else None

    def spent(self, job_id: str) -> bool:
        """Whether a job has no attempt left: the policy above never runs one too often."""
        job = self.model.jobs.get(job_id)
        return job is not None and job.attempt >= job.max_attempts


#: Where a settlement may send a job.
ENDS = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SCHEDULED, State.PENDING)
