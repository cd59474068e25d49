"""Random histories on every backend against the model. PACKHORSE_FULL=1 runs many more and longer ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from packhorse.backends.memory import MemoryBackend
from packhorse.testing.conformance import HarnessFactory, harness_factory
from packhorse.testing.conformance.stores import MemoryHarness
from packhorse.testing.machine import machine_for

FULL = os.environ.get("PACKHORSE_FULL") == "1"


def _run(make: HarnessFactory, examples: int, steps: int, **options: bool) -> None:
    machine_for(make, examples=examples, steps=steps, **options)("runTest").runTest()


@pytest.mark.timeout(1_800 if FULL else 120)
def test_any_history_goes_as_the_model_says(make_harness: HarnessFactory, request: pytest.FixtureRequest) -> None:
    in_memory = request.node.callspec.id == "memory"
    if FULL:
        _run(make_harness, examples=800 if in_memory else 150, steps=80)
    else:
        _run(make_harness, examples=50 if in_memory else 30, steps=40)


class Refunding(MemoryBackend):
    """Gives every attempt back."""

    async def settle(self, settlements):
        return await super().settle([msgspec.structs.replace(each, refund=True) for each in settlements])


class Hoarding(MemoryBackend):
    """Frees no key when a job is deleted."""

    async def delete(self, ids):
        held = dict(self.store.unique)
        answers = await super().delete(ids)
        self.store.unique.update(held)
        return answers


class Late(MemoryBackend):
    """Lets a lease last a second longer."""

    async def heartbeat(self, worker, lease_ms, notes=()):
        return await super().heartbeat(worker, lease_ms + 1_000, notes)


@pytest.mark.parametrize("variant", [Refunding, Hoarding, Late], ids=lambda variant: variant.__name__)
def test_the_machine_catches(variant: type[MemoryBackend]) -> None:
    with pytest.raises(AssertionError):
        _run(lambda: MemoryHarness(variant), examples=300, steps=40, shrink=False)


def test_the_machine_takes_the_factory_of_a_url() -> None:
    with tempfile.TemporaryDirectory() as directory:
        _run(harness_factory("memory://", Path(directory)), examples=3, steps=10)
