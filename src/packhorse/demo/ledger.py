"""The demo's own account of its jobs: what was acknowledged, and what the store says became of it."""

from __future__ import annotations

from collections import Counter

import msgspec

from ..backends.base import BATCH_MAX, Backend
from ..job import TERMINAL, JobRecord, State
from .planning import Planned

#: The kind of the error that a job gets when its worker was lost (the contract's lapse).
LAPSED = "LeaseLapsed"


class Entry(msgspec.Struct):
    """A planned job whose enqueue was acknowledged, and its latest record."""

    id: str
    planned: Planned
    record: JobRecord | None = None

    @property
    def state(self) -> State | None:
        """Where the job stands, as far as known."""
        return self.record.state if self.record is not None else None

    @property
    def retries(self) -> int:
        """How many of its runs ended badly and were, or will be, followed by another."""
        if self.record is None:
            return 0
        return len(self.record.errors) - (self.state in {State.FAILED, State.CANCELLED})

    @property
    def lapses(self) -> int:
        """How often the job's worker was lost while it ran."""
        return sum(error.kind == LAPSED for error in self.record.errors) if self.record is not None else 0


class Snapshot(msgspec.Struct, frozen=True):
    """The account at one moment."""

    acknowledged: int
    done: int
    states: Counter[State]
    retries: int  # runs that ended badly and are not the job's last
    runs_again: int  # runs beyond the first of each job
    lost: int  # jobs whose runner died while it held them
    recovered: int  # those of them that are pending or run again, or have succeeded


class Ledger:
    """All acknowledged jobs. Only those that have not ended are looked up again."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.entries: dict[str, Entry] = {}
        self._live: set[str] = set()

    def add(self, planned: list[Planned], ids: list[str]) -> None:
        """Take note of acknowledged enqueues."""
        for job, job_id in zip(planned, ids, strict=True):
            self.entries[job_id] = Entry(job_id, job)
            self._live.add(job_id)

    async def refresh(self) -> Snapshot:
        """Look up all jobs that had not ended; answers the account as it is now."""
        live = sorted(self._live)
        for start in range(0, len(live), BATCH_MAX):
            batch = live[start : start + BATCH_MAX]
            for job_id, record in zip(batch, await self._backend.get(batch), strict=True):
                self.entries[job_id].record = record
                if record is not None and record.state in TERMINAL:
                    self._live.discard(job_id)
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """Answer the account as last looked up."""
        entries = self.entries.values()
        return Snapshot(
            acknowledged=len(self.entries),
            done=len(self.entries) - len(self._live),
            states=Counter(entry.state for entry in entries if entry.state is not None),
            retries=sum(entry.retries for entry in entries),
            runs_again=sum(max(0, entry.record.attempt - 1) for entry in entries if entry.record is not None),
            lost=sum(entry.lapses > 0 for entry in entries),
            recovered=sum(entry.lapses > 0 and entry.state is not State.FAILED for entry in entries),
        )

    def of(self, job_type: str, *states: State) -> list[Entry]:
        """Answer the jobs of a type in one of `states`."""
        return [entry for entry in self.entries.values() if entry.planned.type == job_type and entry.state in states]

    def in_state(self, *states: State) -> list[Entry]:
        """Answer the jobs in one of `states`."""
        return [entry for entry in self.entries.values() if entry.state in states]
