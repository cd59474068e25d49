"""The virtual loop: time, order, death and sleep."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.chance import Chance
from packhorse.testing.simulator.loop import US_PER_S, Kernel, SimLoop, Spinning

LIMIT_US = 3_600 * US_PER_S


class Worlds:
    """A kernel and what it reported."""

    def __init__(self, seed: int = 1) -> None:
        self.errors: list[str] = []
        self.kernel = Kernel(Chance(seed), lambda loop, text, error: self.errors.append(f"{loop.name}: {text}"))
        self.said: list[tuple[float, str]] = []

    def loop(self, name: str) -> SimLoop:
        return SimLoop(self.kernel, name)

    def say(self, text: str) -> None:
        self.said.append((self.kernel.now_us / US_PER_S, text))

    def run(self) -> None:
        self.kernel.run(LIMIT_US)


@pytest.fixture
def worlds():
    worlds = Worlds()
    yield worlds
    worlds.kernel.dispose()


def test_sleeping_takes_virtual_time_only(worlds):
    async def sleeper():
        await asyncio.sleep(1000)
        worlds.say("awake")

    worlds.loop("a").create_task(sleeper())
    worlds.run()
    assert worlds.said == [(1000.0, "awake")]


def test_callbacks_of_one_process_keep_their_order_whatever_the_seed():
    for seed in range(20):
        worlds = Worlds(seed)
        loop, other = worlds.loop("a"), worlds.loop("b")
        for number in range(5):
            loop.call_soon(worlds.say, f"a{number}")
            other.call_soon(worlds.say, f"b{number}")
        worlds.run()
        texts = [text for _, text in worlds.said]
        assert [text for text in texts if text[0] == "a"] == [f"a{number}" for number in range(5)]
        worlds.kernel.dispose()


def test_the_seed_decides_which_process_goes_first():
    firsts = set()
    for seed in range(20):
        worlds = Worlds(seed)
        for name in "abc":
            worlds.loop(name).call_soon(worlds.say, name)
        worlds.run()
        firsts.add(worlds.said[0][1])
        worlds.kernel.dispose()
    assert firsts == {"a", "b", "c"}


def test_a_killed_process_runs_nothing_any_more_not_even_its_finally_blocks(worlds):
    async def work():
        try:
            await asyncio.sleep(10)
        finally:
            worlds.say("cleaned up")

    loop = worlds.loop("a")
    loop.create_task(work())
    worlds.loop("world").call_in(US_PER_S, loop.kill)
    worlds.run()
    assert worlds.said == []
    assert worlds.errors == []


def test_a_task_belongs_to_its_process_even_in_an_empty_context(worlds):
    import contextvars

    async def child():
        await asyncio.sleep(5)
        worlds.say("child")

    async def parent():
        asyncio.get_running_loop().create_task(child(), context=contextvars.Context())

    loop = worlds.loop("a")
    loop.create_task(parent())
    worlds.loop("world").call_in(US_PER_S, loop.kill)
    worlds.run()
    assert worlds.said == []


def test_a_frozen_process_catches_up_with_its_timers_when_it_thaws(worlds):
    loop, world = worlds.loop("a"), worlds.loop("world")
    loop.call_later(1, worlds.say, "timer")
    world.call_in(US_PER_S // 2, loop.freeze)
    world.call_in(4 * US_PER_S, loop.thaw)
    worlds.run()
    assert worlds.said == [(4.0, "timer")]


def test_a_suspended_process_does_not_count_the_time_it_slept(worlds):
    loop, world = worlds.loop("a"), worlds.loop("world")
    loop.call_later(1, worlds.say, "timer")
    world.call_in(US_PER_S // 2, loop.freeze)
    world.call_in(4 * US_PER_S, loop.thaw, 7 * US_PER_S // 2)
    worlds.run()
    assert worlds.said == [(4.5, "timer")]


def test_a_process_that_freezes_itself_stops_at_the_next_callback(worlds):
    loop = worlds.loop("a")
    loop.call_soon(loop.freeze)
    loop.call_soon(worlds.say, "never")
    worlds.run()
    assert worlds.said == []


def test_a_timeout_of_asyncio_works(worlds):
    async def work():
        try:
            async with asyncio.timeout(2):
                await asyncio.sleep(60)
        except TimeoutError:
            worlds.say("timed out")

    worlds.loop("a").create_task(work())
    worlds.run()
    assert worlds.said == [(2.0, "timed out")]


def test_an_exception_nobody_looked_at_is_reported(worlds):
    async def fail():
        raise ValueError("unseen")

    worlds.loop("a").create_task(fail())
    worlds.run()
    assert len(worlds.errors) == 1
    assert "unseen" in worlds.errors[0]


def test_an_exception_that_somebody_handles_is_not(worlds):
    async def fail():
        raise ValueError("seen")

    async def parent():
        with pytest.raises(ValueError, match="seen"):
            await asyncio.get_running_loop().create_task(fail())

    worlds.loop("a").create_task(parent())
    worlds.run()
    assert worlds.errors == []


def test_a_raising_callback_is_reported(worlds):
    worlds.loop("a").call_soon(lambda: 1 / 0)
    worlds.run()
    assert "ZeroDivisionError" in worlds.errors[0]


def test_waiting_by_asking_again_is_noticed(worlds):
    async def spin():
        while True:
            await asyncio.sleep(0)

    worlds.loop("a").create_task(spin())
    with pytest.raises(Spinning, match="without time moving on"):
        worlds.run()


def test_tasks_left_over_are_named(worlds):
    async def wait():
        await asyncio.get_running_loop().create_future()

    loop = worlds.loop("a")
    task = loop.create_task(wait())
    worlds.run()
    assert loop.unfinished() == [task]


def test_taking_a_world_apart_ends_what_catches_everything_a_few_times(worlds):
    async def reluctant():
        for _ in range(5):
            try:
                await asyncio.sleep(1_000_000)
            except BaseException:
                continue

    loop = worlds.loop("a")
    task = loop.create_task(reluctant())
    worlds.kernel.run(US_PER_S)
    worlds.kernel.dispose()
    assert task.get_coro().cr_frame is None
