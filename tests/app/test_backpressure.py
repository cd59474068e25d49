"""A queue that is full: enqueue waits for room, can be cancelled, and gives up."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from packhorse import InvalidOption, Packhorse, QueueFull, State
from packhorse.enqueueing import Store
from packhorse.job import JobSpec
from packhorse.testing import inline

_numbers = itertools.count()


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    """An empty store of each kind."""
    return f"memory://full-{next(_numbers)}" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def app(url):
    with Packhorse(url, enqueue_timeout="50ms") as app:
        app.task("t")(lambda: None)
        app.set_capacity("default", 3)
        yield app


def pending(app):
    counts = app.counts().get("default")
    return 0 if counts is None else counts.states.get(State.PENDING, 0)


def test_after_the_time_out_it_is_refused_and_nothing_is_stored(app):
    for _ in range(3):
        app.enqueue("t")
    with pytest.raises(QueueFull) as caught:
        app.enqueue("t")
    assert (caught.value.queue, caught.value.capacity, caught.value.stored) == ("default", 3, 0)
    with pytest.raises(QueueFull):
        app.enqueue("t", full_timeout=0)
    assert pending(app) == 3


def test_delayed_jobs_and_other_queues_are_let_in(app):
    for _ in range(3):
        app.enqueue("t")
    assert app.enqueue("t", delay="1h", full_timeout=0).created
    assert app.enqueue("t", queue="other", full_timeout=0).created


def test_a_blocked_enqueue_goes_on_when_there_is_room(app):
    first, _, _ = (app.enqueue("t") for _ in range(3))
    waiting = threading.Thread(target=lambda: app.enqueue("t", full_timeout="60s"))
    waiting.start()
    first.cancel()
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert pending(app) == 3


def test_many_jobs_go_in_pieces_as_room_appears(url):
    async def run() -> None:
        async with Packhorse(url) as app:
            app.task("t")(lambda: None)
            await app.aset_capacity("default", 7)
            worker = asyncio.create_task(app.worker().run())
            try:
                made = await app.aenqueue_many([("t",)] * 100, full_timeout="60s")
            finally:
                worker.cancel()
                await asyncio.wait([worker])
            assert len({job.id for job in made}) == 100
            counts = (await app.acounts())["default"].states
            assert sum(counts.values()) == 100

    asyncio.run(run())


def test_how_many_were_stored_is_told_and_repeating_the_same_specs_is_safe(app):
    specs = [app.spec("t") for _ in range(10)]
    with pytest.raises(QueueFull) as caught:
        app.enqueue_many(specs)
    assert caught.value.stored == pending(app) == 3
    app.set_capacity("default", 0)
    assert [job.created for job in app.enqueue_many(specs)] == [False] * 3 + [True] * 7


def test_refused_at_once_means_all_or_none(app):
    with pytest.raises(QueueFull):
        app.enqueue_many([("t",)] * 4, full_timeout=0)
    assert pending(app) == 0


def test_jobs_that_wait_for_each_other_stay_together(app):
    parents = [app.spec("t") for _ in range(3)]
    child = app.spec("t", None, {"after": [spec.id for spec in parents]})
    app.enqueue("t")
    with pytest.raises(QueueFull):
        app.enqueue_many([child, *parents])
    assert pending(app) == 1
    with pytest.raises(QueueFull):  # more than the queue ever holds: not worth a wait
        app.enqueue_many([child, *parents, app.spec("t")], full_timeout="1h")


def test_cancelling_the_wait_stores_nothing(url):
    async def run() -> None:
        async with Packhorse(url) as app:
            await app.aset_capacity("default", 1)
            await app.aenqueue("t")
            waiting = asyncio.create_task(app.aenqueue("t", full_timeout="1h"))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await app.acounts())["default"].states == {State.PENDING: 1}
            async with asyncio.timeout(60):  # a time-out of the caller's own
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await app.aenqueue("t")

    asyncio.run(run())


class Counting:
    """A backend that is full until it was asked so often."""

    def __init__(self, refusals):
        self.refusals = refusals
        self.asked = 0

    async def enqueue(self, specs):
        from packhorse.backends.base import Enqueued

        self.asked += 1
        if self.asked <= self.refusals:
            raise QueueFull("q", 5)
        return [Enqueued(spec.id, True) for spec in specs]


class SlowLoop(asyncio.SelectorEventLoop):
    """A loop whose timers all fire at once, by a clock that jumps to them."""

    jumped = 0.0

    def time(self):
        return super().time() + self.jumped

    def call_at(self, when, callback, *args, **kwargs):
        self.jumped += max(0.0, when - self.time())
        return super().call_at(when, callback, *args, **kwargs)


def test_the_wait_is_never_busy():
    """From 10 to 250 ms with jitter: an hour of waiting is some ten thousand calls, not millions."""
    from packhorse.chance import Chance

    backend = Counting(10**9)
    store = Store(backend, Chance(7), 3_600_000)
    with asyncio.Runner(loop_factory=SlowLoop) as runner, pytest.raises(QueueFull):
        runner.run(store([JobSpec(id="x", type="t", queue="q")]))
    assert 3_600_000 / 250 <= backend.asked <= 3_600_000 / 125 + 10


def test_a_full_timeout_belongs_to_the_call(app):
    task = app.tasks["t"]
    for way_in in (
        lambda: task.using(full_timeout="1s").job(),
        lambda: app.spec("t", None, {"full_timeout": "1s"}),
        lambda: app.enqueue_many([{"type": "t", "full_timeout": "1s"}]),
    ):
        with pytest.raises(InvalidOption, match="full_timeout: give it to enqueue"):
            way_in()
    quick = app.task("quick", full_timeout=0)(lambda: None)
    assert quick.job().type == "quick"  # a task's own is for its enqueue
    for _ in range(3):
        app.enqueue("t")
    with pytest.raises(QueueFull):
        quick.enqueue()
    with pytest.raises(QueueFull):
        app.enqueue("quick")


@pytest.mark.parametrize("capacity", [-1, 10**12, True, "3"])
def test_a_capacity_that_makes_no_sense_is_refused(app, capacity):
    with pytest.raises(InvalidOption, match="capacity"):
        app.set_capacity("default", capacity)


def test_inline_jobs_make_room_as_they_run():
    app = Packhorse("memory://")
    ran = []
    app.task("t")(lambda: ran.append(1))
    with inline(app):
        app.set_capacity("default", 2)
        app.enqueue_many([("t",)] * 9)
    assert len(ran) == 9


def test_the_setting_gives_the_queues_of_a_worker_their_capacity(url):
    async def run() -> None:
        async with Packhorse(url, capacity=5) as app:
            await app.aset_capacity("b", 7)
            await app.worker(queues=["a", "b"], burst=True).run()
            settings = await (await app.backend()).queues()
            assert {name: one.capacity for name, one in settings.items()} == {"a": 5, "b": 7}

    asyncio.run(run())
