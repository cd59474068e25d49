"""Random histories on every backend against the model. PACKHORSE_FULL=1 runs many more and longer ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from packhorse.backends.memory import MemoryBackend
from packhorse.job import State
from packhorse.testing.conformance import HarnessFactory, harness_factory
from packhorse.testing.conformance.stores import MemoryHarness
from packhorse.testing.machine import machine_for

FULL = os.environ.get("PACKHORSE_FULL") == "1"


def _run(make: HarnessFactory, examples: int, steps: int, **options: bool) -> None:
    machine_for(make, examples=examples, steps=steps, **options)("runTest").runTest()


@pytest.mark.timeout(1_800 if FULL else 600)  # of what hangs: an hour in which machines are slow takes 120
def test_any_history_goes_as_the_model_says(make_harness: HarnessFactory, request: pytest.FixtureRequest) -> None:
    backend = request.node.callspec.params["make_harness"]
    if FULL:
        _run(make_harness, examples=800 if backend == "memory" else 150, steps=80)
    else:
        _run(make_harness, examples={"memory": 50, "sqlite": 30}.get(backend, 15), steps=40)


class Refunding(MemoryBackend):
    """Gives every attempt back."""

    async def settle(self, settlements):
        return await super().settle([msgspec.structs.replace(each, refund=True) for each in settlements])


class Careless(MemoryBackend):
    """Lets a new job take a key that an ended job or one that waits for a retry holds."""

    async def enqueue(self, specs):
        holder = self.store.holder
        self.store.holder = lambda slot, now_ms: self._pending(holder(slot, now_ms))
        try:
            return await super().enqueue(specs)
        finally:
            self.store.holder = holder

    def _pending(self, job_id):
        return job_id if job_id is not None and self.store.jobs[job_id].state is State.PENDING else None


class Late(MemoryBackend):
    """Lets a lease last a second longer."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        return await super().heartbeat(worker, lease_ms + 1_000, notes)


class Leaking(MemoryBackend):
    """Keeps the slots of jobs that ended."""

    async def settle(self, settlements):
        running = dict(self.store.limits.running)
        verdicts = await super().settle(settlements)
        self.store.limits.running.update(running)
        return verdicts


class Orphaning(MemoryBackend):
    """Tells no child of a job that is deleted."""

    async def delete(self, ids):
        for job_id in ids:
            if job_id in self.store.jobs and self.store.jobs[job_id].state is not State.RUNNING:
                self.store.jobs[job_id].children = {}
        return await super().delete(ids)


class Unfair(MemoryBackend):
    """Forgets how far the keys of a queue have come."""

    async def claim(self, *args):
        claimed = await super().claim(*args)
        for lanes in self.store.lanes.values():
            lanes.front_ms = 0 if lanes.front_ms is not None else None
        return claimed


VARIANTS = [Refunding, Careless, Late, Leaking, Orphaning, Unfair]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_the_machine_catches(variant: type[MemoryBackend]) -> None:
    with pytest.raises(AssertionError):
        _run(lambda: MemoryHarness(variant), examples=600, steps=40, shrink=False)


def test_the_machine_takes_the_factory_of_a_url() -> None:
    with tempfile.TemporaryDirectory() as directory:
        _run(harness_factory("memory://", Path(directory)), examples=3, steps=10)
