"""What goes over the wire to wake others."""

from __future__ import annotations

import asyncio

from packhorse.backends.base import queue_topic
from packhorse.backends.postgres.wake import name_of, write_payload

from .helpers import new, opened, run, until


def test_topics_are_one_text_below_the_limit_of_a_notification() -> None:
    assert write_payload(["queue:a", "due"], "me") == "me\nqueue:a\ndue"
    many = write_payload([f"job:{number:036}" for number in range(1_000)] + ["queue:a"], "me")
    assert many == "me\nqueue:a\njobs"
    assert write_payload([f"queue:{number:0128}" for number in range(1_000)], "me") == "me\nall"
    long = write_payload([f"job:{'é' * 500}"] * 150, "me")
    assert len(long.encode()) < 8_000


def test_a_topic_that_cannot_be_sent_goes_by_its_hash() -> None:
    for topic in ("job:with\nline", "job:\0", f"job:{'x' * 5_000}", "job:é"):
        name = name_of(topic)
        assert name.startswith("job:#")
        assert len(name) < 50
        assert name == name_of(topic)
    assert name_of("queue:default") == "queue:default"


def test_what_comes_in_quick_succession_is_told_together_and_all_of_it(postgres_url: str) -> None:
    """A NOTIFY makes all commits of the database wait in a row."""

    async def main() -> None:
        async with opened(postgres_url) as waiter, opened(postgres_url) as other:
            bells = [waiter.watch([queue_topic(f"q{number}")]) for number in range(40)]
            await until(lambda: waiter._wake.delivers, "the listener has tried itself")
            for bell in bells:
                await bell.wait(0)
            told = 0
            real = other._wake._notify

            async def counted(payload: str) -> None:
                nonlocal told
                told += 1
                await real(payload)

            other._wake._notify = counted
            await asyncio.gather(*(other.enqueue(new(1, queue=f"q{number}", key="k")) for number in range(40)))
            for bell in bells:
                assert await bell.wait(30_000)
            assert told < 20
            for bell in bells:
                bell.close()

    run(main())


def test_nobody_listens_where_nobody_waits(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as backend:
            await backend.enqueue(new(1))
            assert backend._wake._listener is None
            with backend.watch(["due"]):
                await until(lambda: backend._wake.delivers, "the listener has tried itself")
            assert backend._wake._listener is not None

    run(main())
