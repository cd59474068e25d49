"""`Admin` itself: what only shows when something happens between its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from packhorse.admin import PURGE_WALKS_MAX, Admin, job_json, read_query, read_states
from packhorse.backends.base import BATCH_MAX, Page, Query, Steered
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.errors import InvalidName, InvalidOption, NotFound, Unavailable
from packhorse.job import JobSpec, State

NOW_MS = 1_700_000_000_000


class Busy(MemoryBackend):
    """A store where something happens at every delete."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(ManualClock(NOW_MS)))
        self.chance = Chance(1)
        self.deletes = 0
        self.batches: list[int] = []

    async def add(self, count: int) -> list[str]:
        ids = self.chance.ids(NOW_MS, count)
        for start in range(0, count, BATCH_MAX):
            await self.enqueue([JobSpec(id=job_id, type="t") for job_id in ids[start : start + BATCH_MAX]])
        return ids

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        self.deletes += 1
        self.batches.append(len(ids))
        answers = await super().delete(ids)
        await self.meanwhile()
        return answers

    async def meanwhile(self) -> None:
        """What happens after a delete."""


def test_purge_deletes_in_batches_until_none_is_left() -> None:
    async def main() -> None:
        backend = Busy()
        await backend.add(2_500)
        purged = await Admin(backend).purge("default")
        assert (purged.deleted, purged.running, purged.added) == (2_500, 0, 0)
        assert backend.batches == [1000, 1000, 500]

    asyncio.run(main())


def test_purge_meets_a_job_that_was_running_when_it_walked_by() -> None:
    class Releasing(Busy):
        async def meanwhile(self) -> None:
            if self.deletes == 1:
                await self.retire("w", "its runner died")

    async def main() -> None:
        backend = Releasing()
        await backend.add(3)
        await backend.claim(["default"], 1, 30_000, "w")
        purged = await Admin(backend).purge("default")
        assert (purged.deleted, purged.running) == (3, 0)

    asyncio.run(main())


def test_purge_ends_although_a_producer_goes_on_and_says_so() -> None:
    class Producing(Busy):
        async def meanwhile(self) -> None:
            await self.add(5)

    async def main() -> None:
        backend = Producing()
        await backend.add(5)
        purged = await Admin(backend).purge("default")
        assert purged.deleted == 5 * PURGE_WALKS_MAX
        assert purged.added == 5

    asyncio.run(main())


def test_a_rerun_job_that_fails_at_once_is_not_rerun_twice() -> None:
    class Failing(Busy):
        async def rerun(self, reruns):
            answers = await super().rerun(reruns)
            await self.cancel([rerun.id for rerun in reruns])
            return answers

    async def main() -> None:
        backend = Failing()
        ids = await backend.add(1_500)
        await backend.cancel(ids[:1000])
        await backend.cancel(ids[1000:])
        sweep = await Admin(backend).rerun_matching(Query(states=(State.CANCELLED,)))
        assert (sweep.matched, sweep.answers[Steered.DONE]) == (1_500, 1_500)

    asyncio.run(main())


def test_an_id_is_acted_upon_once_and_answers_come_in_order() -> None:
    async def main() -> None:
        backend = Busy()
        first, second = await backend.add(2)
        answers = await Admin(backend).delete([second, "no such id!", first, second])
        assert [(answer.id, answer.answer) for answer in answers] == [
            (second, Steered.DONE),
            ("no such id!", Steered.MISSING),
            (first, Steered.DONE),
        ]
        assert backend.batches == [2]

    asyncio.run(main())


@pytest.mark.parametrize("job_id", ["", "*", "a\0b", "../x", "x" * 129, "' OR 1=1 --", "\ud800"])
def test_what_cannot_be_an_id_never_reaches_the_store(job_id: str) -> None:
    """C9, C10."""

    class Closed(Busy):
        async def get(self, ids):
            raise AssertionError(ids)

        cancel = delete = rerun = get

    async def main() -> None:
        admin = Admin(Closed())
        with pytest.raises(NotFound):
            await admin.show(job_id)
        for verb in (admin.cancel, admin.rerun, admin.delete):
            assert [answer.answer for answer in await verb([job_id])] == [Steered.MISSING]

    asyncio.run(main())


def test_health_of_a_store_that_does_not_answer() -> None:
    class Down(Busy):
        async def workers(self):
            raise Unavailable("the server went away; start it")

    async def main() -> None:
        health = await Admin(Down()).health()
        assert (health.status, health.latency_ms) == ("UNAVAILABLE", None)
        assert health.problems == ("the server went away; start it",)

    asyncio.run(main())


def test_health_of_a_store_that_hangs_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.admin.HEALTH_TIMEOUT_MS", 20)

    class Hung(Busy):
        async def workers(self):
            await asyncio.Event().wait()

    health = asyncio.run(Admin(Hung()).health())
    assert health.status == "UNAVAILABLE"
    assert "no answer within" in health.problems[0]


def test_progress_counts_what_was_seen() -> None:
    async def main() -> None:
        backend = Busy()
        await backend.add(1_200)
        seen: list[int] = []
        await Admin(backend).delete_matching(Query(), progress=seen.append)
        assert seen == [1000, 1200]

    asyncio.run(main())


def test_a_dry_run_of_each_verb_changes_nothing() -> None:
    async def main() -> None:
        backend = Busy()
        ids = await backend.add(3)
        await backend.cancel(ids[:1])
        admin = Admin(backend)
        before: Page = await backend.find(Query())
        assert (await admin.cancel_matching(Query(), dry_run=True)).matched == 2
        assert (await admin.delete_matching(Query(), dry_run=True)).matched == 3
        assert (await admin.rerun_matching(Query(states=(State.CANCELLED,)), dry_run=True)).matched == 1
        assert await backend.find(Query()) == before

    asyncio.run(main())


def test_reading_a_filter() -> None:
    query = read_query(states=["failed", "pending,failed"], queue="q", limit=1000, created_from="1970-01-01T00:00:01Z")
    assert query.states == (State.FAILED, State.PENDING)
    assert (query.queue, query.limit, query.created_from_ms) == ("q", 1000, 1000)
    with pytest.raises(InvalidOption, match="none is named"):
        read_states([])
    with pytest.raises(InvalidOption, match="none is named"):
        read_query(states=[])
    with pytest.raises(InvalidName):
        read_query(queue="a\n")
    for wrong in ({"limit": 0}, {"limit": 1001}, {"key": "\0"}, {"cursor": "é"}, {"states": ["?"]}):
        with pytest.raises(InvalidOption):
            read_query(**wrong)


def test_the_error_of_a_retry_is_shown_while_it_waits_and_gone_once_it_succeeds() -> None:
    from packhorse.job import JobError, JobRecord

    error = JobError(attempt=1, at_ms=0, kind="E", message="m")
    record = JobRecord(
        id="i", type="t", queue="q", state=State.SCHEDULED, payload=b"1", priority=5, attempt=1, max_attempts=2,
        timeout_ms=0, created_at_ms=0, due_at_ms=0, errors=(error,),
    )  # fmt: skip
    assert job_json(record)["error"] == "E: m"
    record.state = State.SUCCEEDED
    assert job_json(record)["error"] is None
    assert len(job_json(record)["errors"]) == 1
