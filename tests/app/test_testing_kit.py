"""How an application tests its own use of packhorse: `stored`, `inline`, `drain`, `assert_enqueued`, two fixtures."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from packhorse import Context, Fail, Packhorse, Retry, Snooze, State
from packhorse.clock import ManualClock
from packhorse.testing import adrain, ajobs, assert_enqueued, drain, inline, jobs, stored

pytest_plugins = ["pytester"]


@pytest.fixture
def app():
    """An application's app: on a store that no test may touch."""
    with Packhorse("nowhere://the.real.one") as real:
        yield real


@pytest.fixture
def ran():
    return []


@pytest.fixture
def work(app, ran):
    @app.task(max_attempts=3, backoff="10s")
    def work(n: int, fail: bool = False) -> int:
        ran.append(n)
        if fail:
            raise ValueError("failed")
        return n * 2

    return work


def test_stored_jobs_are_kept_and_not_run(app, work, ran):
    with stored(app) as kit:
        assert kit is app
        work.enqueue(1)
        app.enqueue("work", {"n": 2})
        app.enqueue("elsewhere", "text", queue="other")
        assert ran == []
        assert [job.type for job in jobs(app)] == ["work", "work", "elsewhere"]
        assert [job.type for job in jobs(app, queue="other")] == ["elsewhere"]
        assert len(jobs(app, states=(State.PENDING,))) == 3


def test_each_block_starts_empty_and_the_app_is_itself_again_afterwards(app, work):
    before = (app.settings, app.clock, app._backends)
    for _ in range(2):
        with stored(app):
            assert jobs(app) == []
            work.enqueue(1)
    assert (app.settings, app.clock, app._backends) == before
    with pytest.raises(ZeroDivisionError), inline(app):
        1 / 0  # noqa: B018
    assert (app.settings, app.clock, app._backends, app._after_enqueue) == (*before, None)


def test_the_store_of_a_block_is_gone_with_it(app, work):
    """Ten thousand tests must not keep the jobs of ten thousand stores."""
    with stored(app):
        work.enqueue(1)
        (backend,) = app._backends.values()
        store = weakref.ref(backend.inner.store.__class__ and backend.inner.store)
        del backend
    app.portal.stop()  # its thread may still hold the last call
    gc.collect()
    assert store() is None


def test_assert_enqueued_finds_jobs_by_task_name_and_payload(app, work):
    with stored(app):
        work.enqueue(1)
        work.enqueue(2)
        assert [job.payload for job in assert_enqueued(app, work)] == [b'{"n":1}', b'{"n":2}']
        assert len(assert_enqueued(app, "work", {"n": 2}, times=1)) == 1
        assert_enqueued(app, work, {"n": 3}, times=0)
        with pytest.raises(AssertionError, match=r"no work jobs with \{'n': 3\} were enqueued; there are work"):
            assert_enqueued(app, work, {"n": 3})
        with pytest.raises(AssertionError, match="2 work jobs were enqueued, not 1"):
            assert_enqueued(app, work, times=1)
        with pytest.raises(AssertionError, match="no mail jobs were enqueued"):
            assert_enqueued(app, "mail")


def test_drain_runs_what_is_pending_and_moves_the_clock_to_what_is_due(app, work, ran):
    with stored(app):
        work.enqueue(1)
        work.using(delay="3d").enqueue(2)
        assert drain(app, scheduled=False) == 1
        assert ran == [1]
        before_ms = app.clock.now_ms()
        assert drain(app) == 1
        assert ran == [1, 2]
        assert app.clock.now_ms() - before_ms >= 3 * 86_400_000


def test_drain_runs_retries_to_their_end(app, work, ran):
    with stored(app):
        job = work.enqueue(1, fail=True)
        assert drain(app) == 1
        assert ran == [1, 1, 1]
        record = job.record()
        assert record.state is State.FAILED
        assert [error.attempt for error in record.errors] == [1, 2, 3]


def test_drain_runs_every_queue_and_what_jobs_enqueue(app, work, ran):
    @app.task(queue="parents")
    def parent(ctx: Context) -> None:
        work.enqueue(1)
        ctx.then(work, {"n": 2}, queue="third")

    with stored(app):
        parent.enqueue()
        assert drain(app) == 3
        assert sorted(ran) == [1, 2]


def test_drain_gives_up_on_a_job_that_never_ends(app):
    @app.task
    def again() -> None:
        raise Snooze("1s")

    with stored(app):
        again.enqueue()
        with pytest.raises(RuntimeError, match="still jobs to run"):
            drain(app)


def test_the_clock_of_a_stored_app_is_advanced_by_hand(app, work, ran):
    with stored(app):
        assert isinstance(app.clock, ManualClock)
        job = work.using(delay="10s").enqueue(1)
        app.clock.advance(9_999)
        drain(app, scheduled=False)
        assert job.state is State.SCHEDULED
        app.clock.advance(1)
        drain(app, scheduled=False)
        assert job.state is State.SUCCEEDED


def test_inline_runs_each_job_when_it_is_enqueued(app, work, ran):
    with inline(app):
        job = work.enqueue(4)
        assert ran == [4]
        assert job.result() == 8
        assert [job.result() for job in app.enqueue_many([work.job(5), ("work", {"n": 6})])] == [10, 12]


def test_inline_raises_nothing_and_leaves_retries_to_drain(app, work, ran):
    with inline(app):
        job = work.enqueue(1, fail=True)
        assert job.state is State.SCHEDULED
        later = work.using(delay="1h").enqueue(2)
        assert ran == [1]
        drain(app)
        assert (job.state, later.state) == (State.FAILED, State.SUCCEEDED)


def test_inline_jobs_enqueue_jobs(app, ran):
    @app.task
    def leaf(n: int) -> None:
        ran.append(n)

    @app.task
    def blocking() -> None:
        leaf.enqueue(1)
        assert ran[-1] == 1  # inline, so it has run

    @app.task
    async def on_loop() -> None:
        await leaf.aenqueue(2)
        assert ran[-1] == 2

    with inline(app):
        assert blocking.enqueue().state is State.SUCCEEDED
        assert on_loop.enqueue().state is State.SUCCEEDED


def test_the_kit_in_async_code(app, work, ran):
    async def main():
        with stored(app):
            await work.aenqueue(1)
            assert await adrain(app) == 1
            assert [job.state for job in await ajobs(app)] == [State.SUCCEEDED]
        with inline(app):
            job = await work.aenqueue(2)
            assert await job.aresult() == 4
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert ran == [1, 2]


def test_what_handlers_raise_means_what_it_means_in_production(app):
    seen: list[Any] = []

    @app.task(max_attempts=5)
    async def moody(ctx: Context) -> str:
        seen.append((ctx.attempt, app.clock.now_ms()))
        match len(seen):
            case 1:
                raise Retry("1m")
            case 2:
                raise Snooze("1h")
            case 3:
                raise Fail("enough")
        return "never"

    with stored(app):
        job = moody.enqueue()
        start_ms = app.clock.now_ms()
        drain(app)
        assert [attempt for attempt, _ in seen] == [1, 2, 2]  # a snooze costs no attempt
        assert [at_ms - start_ms for _, at_ms in seen] == [0, 60_000, 3_660_000]
        assert job.record().errors[-1].message == "enough"


@pytest.fixture
def loaded(app, work):
    """What `pytester` sees imported for the first time, it takes away again: others would meet two of each class."""
    with inline(app):
        work.enqueue(1)


def test_the_fixtures_of_the_plugin(loaded, pytester):
    pytester.makepyfile(
        """
        from packhorse import Packhorse
        from packhorse.testing import assert_enqueued, drain

        app = Packhorse("nowhere://")
        ran = []

        @app.task
        def work(n: int) -> int:
            ran.append(n)
            return n + 1

        def test_inline(packhorse_inline):
            assert packhorse_inline(app) is app
            assert work.enqueue(1).result() == 2
            assert ran == [1]

        def test_stored(packhorse_stored):
            packhorse_stored(app)
            work.enqueue(2)
            assert ran == [1]
            assert_enqueued(app, work, {"n": 2}, times=1)
            drain(app)
            assert ran == [1, 2]

        def test_and_the_app_is_itself_again():
            assert app.settings.url == "nowhere://"
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)
