"""What the simulated handlers do: each job carries a plan, drawn from the seed, and every run follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from ...app import Packhorse
from ...backends.base import Backend
from ...context import Context
from ...job import JobSpec
from ...outcome import Cancel, Fail, Retry, Snooze
from .ledger import Ledger, Run, Violation
from .work import DECLARED, METERED, PACE, PACED, STEPS, TENANT


class Boom(Exception):
    """What a failing handler raises."""


class Life(Protocol):
    """What a handler needs of the process it runs in."""

    @property
    def worker(self) -> str:
        """The id of the worker."""

    @property
    def ledger(self) -> Ledger:
        """Where starts and ends are noted."""

    @property
    def backend(self) -> Backend:
        """The process's connection to the store."""

    @property
    def app(self) -> Packhorse:
        """The process's app."""

    @property
    def chains(self) -> bool:
        """Whether follow-ups have follow-ups that wait for them."""

    def freeze_self(self, ms: int) -> None:
        """Block the whole process, as `time.sleep` in a handler does."""

    def make_follow_up(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw the payload and options of a job that a handler enqueues."""

    def acknowledged(self, job_id: str) -> None:
        """Note that an enqueue was answered."""

    def report(self, violation: Violation) -> None:
        """Stop the world: the promise was broken."""


class Stage:
    """An app and the process that uses it now. Some of its limits and schedules are declared in its code."""

    def __init__(self, kind: StageKind) -> None:
        self.app = Packhorse("memory://")
        self.kind = kind
        self.life: Life | None = None
        self._register()

    def _register(self) -> None:
        """Register the job types; all of them follow their plans."""
        task = partial(self.app.task, backoff="200ms", backoff_max="1s")

        async def work(ctx: Context, plan: dict[str, Any]) -> Any:
            return await _watched(self, plan, ctx.id, ctx.claimed.token, ctx)

        async def plain(job: str, plan: dict[str, Any]) -> Any:
            return await _watched(self, plan, job, None, None)

        worked = task("work")(work)
        task("plain")(plain)
        task(METERED)(work)
        task(TENANT)(work)
        if self.kind.rare:
            task("rare")(work)
        if self.kind.limits:
            rate, burst, concurrency = PACE
            task(PACED, rate=f"{rate}/s", burst=burst, concurrency=concurrency)(work)
        if self.kind.schedules:
            payload = {"plan": {"kind": "nap", "ms": 300, "times": 1}}
            schedule = partial(self.app.schedule, every="1s", name=DECLARED, overlap="skip", payload=payload)
            schedule(queue="a", meta={"kind": "nap"})(worked)


class StageKind(NamedTuple):
    """What an app knows."""

    rare: bool  # the job type of that name
    limits: bool
    schedules: bool


class Stages:
    """Apps to be used by one process after the other: making one reads settings and compiles decoders."""

    def __init__(self) -> None:
        self._free: dict[StageKind, list[Stage]] = {}
        self._taken: list[Stage] = []

    def take(self, kind: StageKind) -> Stage:
        """Answer one that nobody uses."""
        free = self._free.setdefault(kind, [])
        stage = free.pop() if free else Stage(kind)
        self._taken.append(stage)
        return stage

    def give_back(self) -> None:
        """Take all back when a world has ended."""
        for stage in self._taken:
            stage.life = None
            self._free[stage.kind].append(stage)
        self._taken.clear()


async def _watched(stage: Stage, plan: dict[str, Any], job_id: str, token: str | None, ctx: Context | None) -> Any:
    """Follow the plan, and tell the ledger how it started and ended."""
    life = stage.life
    assert life is not None
    try:
        run = life.ledger.start(life.worker, job_id, token)
    except Violation as violation:
        life.report(violation)
        raise
    try:
        value = await _follow(life, plan, run, ctx)
    except GeneratorExit:
        raise
    except BaseException as error:  # noted, and passed on
        life.ledger.end(run, None, type(error).__name__)
        raise
    life.ledger.end(run, value, None)
    return value


async def _follow(life: Life, plan: dict[str, Any], run: Run, ctx: Context | None) -> Any:
    kind, seconds, nth = plan["kind"], plan["ms"] / 1000, life.ledger.nth(run)
    early = nth <= plan["times"]
    if kind == "ok":
        return None if plan["ms"] % 2 else {"run": run.number}
    if kind == "yields":
        for _ in range(plan["times"] * 3):
            await asyncio.sleep(0)
    elif kind in {"deaf", "deaf-ok"}:
        await _ignore_cancellation(seconds)
        if kind == "deaf":
            raise Boom("deaf, and failed")
    elif kind == "tidy":
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # puts its things away first
            raise
    elif kind == "endless":
        await asyncio.sleep(3600 if early else 0.05)
    elif kind == "block":
        life.freeze_self(plan["ms"])
        await asyncio.sleep(0)
    elif kind == "progress" and ctx is not None:
        for step in range(4):
            ctx.progress(step / 4, f"step {step}")
            await asyncio.sleep(seconds / 4)
    elif kind in {"spawn", "send"} and ctx is not None:
        await _enqueue_more(life, kind, seconds, run, ctx)
    elif kind == STEPS and ctx is not None:
        await _do_steps(life, plan, run, ctx)
    elif kind != "retry" or plan["ms"] % 2:
        await asyncio.sleep(seconds)
    _raise_by_plan(kind, early, seconds, run)
    return {"run": run.number}


def _raise_by_plan(kind: str, early: bool, seconds: float, run: Run) -> None:
    if kind == "hopeless" or (kind == "flaky" and early):
        raise Boom(f"run {run.number} of {kind}")
    if kind == "retry" and early:
        raise Retry(None if run.number % 3 == 0 else seconds)
    if kind == "snooze" and early:
        raise Snooze(seconds)
    if kind == "fail":
        raise Fail("for good")
    if kind == "cancel":
        raise Cancel("not needed")
    if kind == "exit" and early:
        raise SystemExit(3)
    if kind == "cancelled" and early:
        raise asyncio.CancelledError


async def _ignore_cancellation(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


async def _enqueue_more(life: Life, kind: str, seconds: float, run: Run, ctx: Context) -> None:
    payload, options = life.make_follow_up()
    if kind == "spawn":
        first = ctx.then("work", payload, **options)
        life.ledger.wants(run, first)
        if life.chains:
            payload, options = life.make_follow_up()
            life.ledger.wants(run, ctx.then("work", payload, after=[first], **options))
        await asyncio.sleep(seconds)
        return
    spec: JobSpec = life.app.spec("work", payload, options)
    answers = await life.backend.enqueue([spec])  # raises Unavailable: then the run fails and is tried again
    life.acknowledged(answers[0].id)


async def _do_steps(life: Life, plan: dict[str, Any], run: Run, ctx: Context) -> None:
    """Do durable steps, some of which fail or take their time."""
    for number in range(1 + plan["ms"] % 4):
        name = f"step{number}"

        async def do(name: str = name) -> str:
            _checked(life, life.ledger.begin_step, run, name)
            if plan["ms"] % 3:
                await asyncio.sleep(plan["ms"] / 2000)
            return f"{name} of run {run.number}"

        value = await ctx.step(name, do)
        _checked(life, life.ledger.end_step, run, name, value)
        if number == plan["ms"] % 3 and life.ledger.nth(run) <= plan["times"]:
            raise Boom("after a step")


def _checked(life: Life, check: Callable[..., None], *args: Any) -> None:
    try:
        check(*args)
    except Violation as violation:
        life.report(violation)
        raise
