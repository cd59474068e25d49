"""The feed: who comes back, a store that goes away, too much to follow. Nothing is told twice or left out unsaid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.base import CHANGES_MAX, Backend, Changes, Settlement
from packhorse.backends.opening import open_backend
from packhorse.chance import CHANCE
from packhorse.errors import Unavailable
from packhorse.job import JobRecord, State
from packhorse.server.feed import following as feed_module
from packhorse.server.feed.events import Batch, Position, read_position
from packhorse.server.feed.following import Feed

from ..worker.working import until
from .feeding import Hearer, Watched, feeding, joined, numbers, spec
from .hearing import in_loop

# ---- going on --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind."""
    if request.param == "memory":
        return f"memory://feed-{next(numbers)}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return request.getfixturevalue(f"{request.param}_url")


@in_loop
async def test_who_comes_back_again_and_again_to_other_servers_hears_each_move_once(url: str) -> None:
    """Resuming is exact, in the midst of a round too, while others write. Each server has a connection of its own."""
    store, of_one, of_two = backends = [open_backend(url) for _ in range(3)]
    await store.migrate()
    for backend in backends:
        await backend.open()
    moves = 0
    done = asyncio.Event()

    async def write() -> None:
        nonlocal moves
        for _ in range(60):
            jobs = [spec() for _ in range(5)]
            await store.enqueue(jobs)
            claimed = await store.claim(["default"], 5, 30_000, "w")
            await store.settle([Settlement(id=c.id, token=c.token, state=State.SUCCEEDED) for c in claimed])
            moves += 5 + 2 * len(claimed)
            await asyncio.sleep(0.01)
        done.set()

    class Leaving(Hearer):
        """Goes away after a few events, in the midst of a batch."""

        def take(self, batch: Batch) -> None:
            room = max(0, 40 - len(self.told))
            self.told += batch.events[:room]

    heard: list[tuple[str, Any]] = []
    async with feeding(of_one) as one, feeding(of_two) as two:
        servers = [one, two]
        steady = await joined(one, Hearer())
        hearer = await joined(two, Leaving())
        mark = two.mark
        writer = asyncio.get_running_loop().create_task(write())
        for turn in range(200):
            rest = len(heard)
            await until(lambda h=hearer, r=rest: len(h.told) == 40 or (done.is_set() and r + len(h.told) == moves))
            servers[(turn + 1) % 2].remove(hearer)
            heard += hearer.moves()
            mark = hearer.told[-1].mark if hearer.told else mark
            if done.is_set() and len(heard) >= moves:
                break
            hearer = await joined(servers[turn % 2], Leaving(after=mark))
            assert hearer.resumed
        await writer
        await until(lambda: len(steady.told) >= moves)
    for backend in backends:
        await backend.close()
    assert len(heard) == len(set(heard)) == moves, "each move once"
    by_job: dict[str, list[Any]] = {}
    for job_id, state in heard:
        by_job.setdefault(job_id, []).append(state)
    assert all(states == [State.PENDING, State.RUNNING, State.SUCCEEDED] for states in by_job.values())
    assert sorted(steady.moves()) == sorted(heard)


@pytest.mark.parametrize(
    "after", ["nonsense", "0123456789abcdef.5", "~", "~~1", "0123456789abcdef.5~3", "x~99999999", "\x00\n", "é" * 200]
)
@in_loop
async def test_a_place_that_the_store_does_not_know_is_a_gap(after: str) -> None:
    async with feeding(Watched()) as feed:
        hearer = await joined(feed, Hearer(after=after))
        assert (hearer.resumed, len(hearer.gaps)) == (False, 1)


@in_loop
async def test_who_missed_more_than_is_told_again_looks_anew() -> None:
    store = Watched()
    async with feeding(store) as feed:
        first = await joined(feed, Hearer())
        mark = feed.mark
        await store.enqueue([spec() for _ in range(1_000)])
        await store.enqueue([spec(type="sms"), spec(type="sms")])
        await until(lambda: len(first.told) == 1_002)
        assert (await joined(feed, Hearer(after=mark))).gaps
        last = await joined(feed, Hearer(after=first.told[-3].mark))
        assert (last.resumed, len(last.told)) == (True, 2)


def test_a_place_is_read_as_it_is_written() -> None:
    for position in (Position("abc.12"), Position("abc.12", 7, 99), Position("a~b", CHANGES_MAX, 0xFFFFFFFF)):
        assert read_position(str(position)) == position
    for text in (f"abc~{CHANGES_MAX + 1}~0", "abc~0~1", "abc~1~123456789", "abc~1"):
        assert read_position(text) == Position(text)


@in_loop
async def test_what_happens_between_a_round_and_a_join_is_told_once() -> None:
    """The store's answer to who comes back has more than the feed has told so far: the next round leaves it out."""

    class Racing(Watched):
        racing: str | None = None

        async def changes(self, cursor: str | None = None) -> Changes:
            if self.racing is not None and cursor == self.racing:
                self.racing = None
                await self.enqueue([spec(id="racing")])
            return await super().changes(cursor)

    store = Racing()
    async with feeding(store) as feed:
        mark = (await store.changes()).cursor  # as another server gave it
        await store.enqueue([spec(id="missed")])
        other = await joined(feed, Hearer())
        store.racing = mark
        back = await joined(feed, Hearer(after=mark))
        await store.enqueue([spec(id="later")])
        await until(lambda: len(other.told) == 2 and back.states("later"))
        assert [job_id for job_id, _ in back.moves()] == ["missed", "racing", "later"]
        assert [job_id for job_id, _ in other.moves()] == ["racing", "later"]


@in_loop
async def test_who_was_cut_off_amidst_an_answer_that_reads_otherwise_now_looks_anew() -> None:
    """Transactions that overlap: what was committed late may come before what was told already."""

    class Late(Watched):
        late = False

        async def changes(self, cursor: str | None = None) -> Changes:
            found = await super().changes(cursor)
            return Changes(found.changes[::-1], found.cursor, found.gap) if self.late else found

    store = Late()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        await store.enqueue([spec() for _ in range(3)])
        await until(lambda: len(hearer.told) == 3)
        amidst = hearer.told[1].mark
        assert (await joined(feed, Hearer(after=amidst))).resumed
        store.late = True
        back = await joined(feed, Hearer(after=amidst))
        assert (back.resumed, len(back.gaps)) == (False, 1)


@in_loop
async def test_more_than_can_be_followed_is_a_gap() -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        for _ in range(CHANGES_MAX // 1_000 + 1):  # without a turn for the feed: nothing here waits
            await store.enqueue([spec() for _ in range(1_000)])
        await until(lambda: hearer.gaps)
        assert hearer.told == []
        job = spec()
        await store.enqueue([job])
        await until(lambda: hearer.states(job.id))


# ---- a store that is away --------------------------------------------------------------------------------------


@in_loop
async def test_a_store_that_was_away_for_a_while_costs_no_event(caplog) -> None:
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        store.away = True
        asked = store.asked
        await until(lambda: store.asked >= asked + 3)
        job = spec()
        await store.enqueue([job])
        store.away = False
        await until(lambda: hearer.states(job.id))
        assert hearer.gaps == []
    assert caplog.text.count("the store cannot be asked") == 1, "said once, not for each try"


@in_loop
async def test_a_store_that_goes_away_amidst_a_round_costs_no_event_and_tells_none_twice() -> None:
    class Halfway(Watched):
        fails = False

        async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
            if self.fails and len(self.got) >= 600:
                self.fails = False
                raise Unavailable("the store is away")
            return await super().get(ids)

    store = Halfway()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        store.fails = True
        await store.enqueue([spec() for _ in range(1_000)])
        await until(lambda: len(hearer.told) >= 1_000)
        assert not store.fails
        assert len(hearer.told) == len(set(hearer.moves())) == 1_000


@in_loop
async def test_who_joins_while_the_store_is_away_waits_and_the_store_is_not_hammered() -> None:
    store = Watched()
    store.away = True
    async with feeding(store) as feed:
        hearer = Hearer()
        feed.add(hearer)
        await until(lambda: store.asked >= 2)
        asked, before = store.asked, asyncio.get_running_loop().time()
        await until(lambda: store.asked >= asked + 2)
        assert asyncio.get_running_loop().time() - before > 0.1
        assert not hearer.began
        store.away = False
        await until(lambda: hearer.began)


@in_loop
async def test_a_bug_while_following_is_a_gap_and_not_the_end(caplog, monkeypatch) -> None:
    monkeypatch.setattr(feed_module, "_AWAY_MS_MAX", 10)
    store = Watched()
    async with feeding(store) as feed:
        hearer = await joined(feed, Hearer())
        store.bug = True
        await until(lambda: hearer.gaps)
        job = spec()
        await store.enqueue([job])
        await until(lambda: hearer.states(job.id))
    assert "this is a bug" in caplog.text


@in_loop
async def test_stopping_ends_all_who_listen_at_once() -> None:
    stopping = asyncio.Event()
    store = Watched()

    async def opened() -> Backend:
        return store

    feed = Feed(opened, stopping, CHANCE)
    hearers = [await joined(feed, Hearer()) for _ in range(3)]
    stopping.set()
    await until(lambda: all(hearer.ended for hearer in hearers))
    await feed.close()
