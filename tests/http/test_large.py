"""Large jobs: what is too much for one call or one answer goes in several, and nothing is lost on the way."""

from __future__ import annotations

import asyncio

import pytest

from packhorse import Packhorse
from packhorse.backends.base import Query, QueueChange, Settlement, Verdict
from packhorse.backends.http import wire
from packhorse.errors import InvalidOption, QueueFull, UniqueConflict
from packhorse.job import JobSpec, State, Unique
from packhorse.server import portioning

from .kit import opened, served, until

MEBIBYTE = b'"' + b"x" * ((1 << 20) - 2) + b'"'
LEASE_MS = 30_000


def large(count: int, first: int = 0) -> list[JobSpec]:
    return [JobSpec(id=f"job-{first + number:03}", type="t", payload=MEBIBYTE) for number in range(count)]


def test_jobs_of_the_largest_size_go_in_and_out_in_any_number() -> None:
    async def main() -> None:
        async with served() as url:
            app = Packhorse(url)
            jobs = await app.aenqueue_many([("t", "x" * ((1 << 20) - 2)) for _ in range(20)])
            assert all(job.created for job in jobs)
            await app.aclose()
            async with opened(url) as backend:
                ids = [job.id for job in jobs]
                for _ in range(2):  # the second time the server knows how large they are
                    records = await backend.get(ids)
                    assert [record.id for record in records if record is not None] == ids
                    page = await backend.find(Query(limit=100, oldest_first=True))
                    assert ([job.id for job in page.jobs], page.next) == (ids, None)
                claimed = []
                while batch := await backend.claim(["default"], 100, LEASE_MS, "w1"):
                    claimed += batch
                assert sorted(job.id for job in claimed) == sorted(ids)
                ends = [
                    Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, result=MEBIBYTE) for job in claimed
                ]
                assert await backend.settle(ends) == [Verdict.APPLIED] * 20
                assert (await backend.get(ids[:1]))[0].result == MEBIBYTE  # type: ignore[union-attr]

    asyncio.run(main())


def test_what_was_claimed_and_does_not_fit_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portioning, "CLAIMED_BYTES_MAX", 3 << 20)

    async def main() -> None:
        async with served() as url, opened(url) as backend:
            await backend.enqueue(large(8))
            claimed = await backend.claim(["default"], 8, LEASE_MS, "w1")
            assert len(claimed) == 2
            states = (await backend.counts())["default"].states
            assert (states[State.RUNNING], states[State.PENDING]) == (2, 6)
            await backend.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in claimed])
            (again,) = await backend.claim(["default"], 1, LEASE_MS, "w1")
            assert again.attempt == 1, "what was given back counts no attempt"

    asyncio.run(main())


def test_more_than_one_call_takes_is_refused_whole() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            with pytest.raises(InvalidOption, match="send fewer jobs a call"):
                await backend.enqueue(large(17))
            assert await backend.counts() == {}
            await backend.enqueue(large(15))

    asyncio.run(main())


def test_small_jobs_are_claimed_in_one_piece_however_many() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            await backend.enqueue([JobSpec(id=f"j{number}", type="t") for number in range(1_000)])
            assert len(await backend.claim(["default"], 1_000, LEASE_MS, "w1")) == 1_000

    asyncio.run(main())


def test_a_portion_learns_and_forgets() -> None:
    portion = portioning.Portion(len)
    assert portion.fit(1_000) == 1_000
    portion.learn([b"x" * (1 << 20)] * 4)
    assert portion.fit(1_000) == wire.ANSWER_BYTES // (1 << 20)
    assert portion.fit(0) == 0
    for _ in range(60):
        portion.learn([b"x"])
    assert portion.fit(1_000) == 1_000


def test_enqueues_at_the_same_time_travel_together_and_are_refused_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            calls = []
            ask = backend._enqueue

            async def counting(specs):
                calls.append(len(specs))
                return await ask(specs)

            monkeypatch.setattr(backend, "_enqueue", counting)
            await backend.queues([QueueChange(queue="small", capacity=3)])
            unique = Unique(key="k", on_conflict="refuse")
            wanted = [
                *[[JobSpec(id=f"free-{number}", type="t")] for number in range(40)],
                *[[JobSpec(id=f"key-{number}", type="t", unique=unique)] for number in range(3)],
                *[[JobSpec(id=f"small-{number}", type="t", queue="small")] for number in range(5)],
                *[[JobSpec(id="twice", type="t")] for _ in range(3)],
            ]
            answers = await asyncio.gather(*map(backend.enqueue, wanted), return_exceptions=True)
            assert all(answer[0].created for answer in answers[:40])  # type: ignore[index]
            assert [type(answer) for answer in answers[40:43]].count(UniqueConflict) == 2
            assert [type(answer) for answer in answers[43:48]].count(QueueFull) == 2
            assert [answer[0].created for answer in answers[48:]].count(True) == 1  # type: ignore[index]
            await asyncio.gather(*[backend.enqueue([JobSpec(id=f"more-{number}", type="t")]) for number in range(200)])
            assert max(calls) > 50, "callers travel together"

    asyncio.run(main())


def test_calls_together_keep_within_their_connections() -> None:
    async def main() -> None:
        async with served() as url, opened(url) as backend:
            answers = await asyncio.gather(
                *[backend.enqueue([JobSpec(id=f"j{number}", type="t")]) for number in range(300)]
            )
            assert all(answer[0].created for answer in answers)

            async def all_there() -> bool:
                return (await backend.counts())["default"].states[State.PENDING] == 300

            await until(all_there, "all are stored")

    asyncio.run(main())
