"""Another store beside that of a case, and moves between the two. In memory, so that backends meet one another."""

from __future__ import annotations

from ...backends.base import (
    Backend,
    Settlement,
    Transfer,
    Verdict,
)
from ...backends.memory import MemoryBackend
from ...backends.memory_store import MemoryStore
from ...clock import SYSTEM_CLOCK
from ...job import State
from .case import equal
from .harness import ROUNDS_MAX, Harness


def other_store(h: Harness) -> Backend:
    """Answer another store, empty, on the same clock."""
    return MemoryBackend(MemoryStore(h.clock or SYSTEM_CLOCK))


async def move_all(source: Backend, target: Backend, batch: int = 100) -> list[Transfer]:
    """Move all that does not run; answers the batches."""
    to = (await target.take_over()).store
    transfers: list[Transfer] = []
    stored = None
    for _ in range(ROUNDS_MAX):
        transfer = await source.hand_over(to, batch, stored)
        arrival = await target.take_over(transfer)
        equal(arrival.verdict, Verdict.APPLIED, "verdict on a batch")
        stored = transfer.number
        if not transfer.jobs and not transfer.schedules:
            return transfers
        transfers.append(transfer)
    raise AssertionError(f"a move has no end after {ROUNDS_MAX} batches")


async def state_in(backend: Backend, job_id: str) -> State | None:
    """Look up the state of a job in a store; None if there is no such job."""
    found = (await backend.get([job_id]))[0]
    return found.state if found is not None else None


async def run_one(backend: Backend, state: State = State.SUCCEEDED, queue: str = "default") -> str:
    """Claim one job and settle it; answers its id, empty if there is none."""
    claimed = await backend.claim([queue], 1, 30_000, "other")
    for job in claimed:
        await backend.settle([Settlement(id=job.id, token=job.token, state=state, result=b"1")])
    return claimed[0].id if claimed else ""
