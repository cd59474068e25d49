"""Every way to enqueue a job: blocking, async, by name, many at once, from threads, loops and handlers."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from packhorse import Context, InvalidName, InvalidOption, InvalidPayload, JobSpec, Packhorse, QueueFull, State
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.opening import register_backend
from packhorse.clock import Clock
from packhorse.testing import drain, jobs


def test_a_blocking_call_answers_a_stored_job(app):
    @app.task
    def greet(name: str) -> str:
        return f"Hello {name}"

    job = greet.enqueue("Ada")
    assert job.created
    assert job.state is State.PENDING
    assert job.record().payload == b'{"name":"Ada"}'
    assert greet("Ada") == "Hello Ada"  # calling the task calls the function


def test_async_code_awaits_the_same_methods_with_an_a(app):
    @app.task
    async def greet(name: str) -> str:
        return f"Hello {name}"

    async def main():
        first = await greet.aenqueue("Ada")
        second = await greet.using(priority="high").aenqueue(name="Bo")
        third = await app.aenqueue("greet", {"name": "Cy"})
        rest = await app.aenqueue_many([greet.job("Di"), (greet, {"name": "Ed"})])
        states = [await job.astate() for job in (first, second, third, *rest)]
        counts = await app.acounts()
        await app.aclose()
        return states, counts

    states, counts = asyncio.run(main())
    assert states == [State.PENDING] * 5
    assert counts["default"].states == {State.PENDING: 5}


def test_a_type_by_name_needs_no_task_here(app):
    job = app.enqueue("made.elsewhere", {"any": ["JSON", 1, None]}, queue="other", tags=["x"])
    record = job.record()
    assert (record.type, record.queue, record.tags) == ("made.elsewhere", "other", ("x",))
    assert record.payload == b'{"any":["JSON",1,null]}'


def test_a_type_must_be_a_plain_name(app):
    """C8, C10: nothing that could mean a module, a path or a wildcard."""
    for name in ("os:system", "a/b", "a*", "", "x" * 129, "a\n2026 INFO paid", "é"):
        with pytest.raises(InvalidName, match="cannot name a job type"):
            app.enqueue(name, {})


def test_many_jobs_in_every_spelling(app):
    @app.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    made = app.enqueue_many(
        [
            add.job(1),
            add.using(priority="low").job(2, b=3),
            (add, {"a": 4}),
            ("add", {"a": 5}),
            ("unknown.here", "text"),
            {"type": "add", "payload": {"a": 6}, "queue": "slow", "delay": "1h"},
            {"type": add, "payload": {"a": 7}},
        ]
    )
    records = [job.record() for job in made]
    assert [record.payload for record in records] == [
        b'{"a":1}',
        b'{"a":2,"b":3}',
        b'{"a":4}',
        b'{"a":5}',
        b'"text"',
        b'{"a":6}',
        b'{"a":7}',
    ]
    assert records[5].queue == "slow"
    assert records[5].state is State.SCHEDULED


def test_many_takes_a_generator_of_more_than_one_batch(app):
    @app.task
    def add(a: int) -> int:
        return a

    made = app.enqueue_many(add.job(number) for number in range(2_500))
    assert len({job.id for job in made}) == 2_500
    assert app.counts()["default"].states == {State.PENDING: 2_500}
    assert app.enqueue_many([]) == []


@pytest.mark.parametrize("wrong", [("add", {"a": "no"}), {"payload": {}}, (), ("add", {"a": 1}, 3), 7, {"type": "a b"}])
def test_many_checks_all_before_it_stores_the_first(app, wrong):
    @app.task
    def add(a: int) -> int:
        return a

    with pytest.raises((InvalidPayload, InvalidOption, InvalidName)):
        app.enqueue_many([add.job(1), wrong])
    assert app.counts() == {}


def test_a_batch_that_the_backend_refuses_is_refused_whole(app):
    @app.task
    def add(a: int) -> int:
        return a

    from packhorse import Unique, UniqueConflict

    taken = add.using(unique="one").enqueue(1)
    with pytest.raises(UniqueConflict) as caught:
        app.enqueue_many([add.job(2), add.using(unique=Unique(key="one", on_conflict="refuse")).job(3)])
    assert caught.value.holder == taken.id
    assert len(jobs(app)) == 1


def test_the_same_spec_twice_is_one_job(app):
    """Ids are made by the client, so a call whose answer was lost can simply be made again."""

    @app.task
    def add(a: int) -> int:
        return a

    spec = add.job(1)
    first, again = app.enqueue_many([spec])[0], app.enqueue_many([spec])[0]
    assert (first.created, again.created) == (True, False)
    assert first == again
    assert len({first, again}) == 1


def test_threads_enqueue_at_the_same_time(app):
    @app.task
    def add(a: int) -> int:
        return a

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(add.enqueue, range(400)))
    assert len({job.id for job in made}) == 400
    assert len(app._backends) == 1  # one connection, whatever the number of threads


def test_two_event_loops_share_the_jobs(app):
    @app.task
    def add(a: int) -> int:
        return a

    async def one():
        job = await add.aenqueue(1)
        await app.aclose()
        return job

    jobs_made = [asyncio.run(one()) for _ in range(3)]
    assert [job.state for job in jobs_made] == [State.PENDING] * 3


def test_loops_that_come_and_go_in_many_threads_do_not_disturb_each_other(app):
    """Each loop leaves its connection behind; whoever comes next closes it, and only once."""

    @app.task
    def add(a: int) -> int:
        return a

    def work(_: int) -> None:
        for number in range(25):
            asyncio.run(add.aenqueue(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert app.counts()["default"].states == {State.PENDING: 200}


class _SlowToOpen(MemoryBackend):
    """Takes a few turns of the loop to open, and cannot be used before."""

    is_open = False
    opened = 0

    async def open(self) -> None:
        if not self.is_open:
            type(self).opened += 1
            for _ in range(5):
                await asyncio.sleep(0)
            self.is_open = True

    async def enqueue(self, specs):
        assert self.is_open, "used before it was open"
        return await super().enqueue(specs)


def test_first_callers_at_once_all_wait_until_the_backend_is_open():
    def make(url: str, clock: Clock) -> _SlowToOpen:
        return _SlowToOpen(clock=clock)

    register_backend("slowtoopen", make)
    app = Packhorse("slowtoopen://")

    @app.task
    def add(a: int) -> int:
        return a

    async def main():
        made = await asyncio.gather(*[add.aenqueue(number) for number in range(20)])
        counts = await app.acounts()
        await app.aclose()
        return made, counts

    made, counts = asyncio.run(main())
    assert len(made) == 20
    assert counts["default"].states == {State.PENDING: 20}


class _CannotOpenAtFirst(MemoryBackend):
    tries = 0

    async def open(self) -> None:
        type(self).tries += 1
        await asyncio.sleep(0)
        if type(self).tries == 1:
            raise QueueFull("any", 0)


def test_an_open_that_failed_is_tried_again_by_the_next_call():
    register_backend("cannotopenatfirst", lambda url, clock: _CannotOpenAtFirst(clock=clock))
    app = Packhorse("cannotopenatfirst://")

    async def main():
        with pytest.raises(QueueFull):
            await app.aenqueue("a")
        await app.aenqueue("a")
        await app.aclose()

    asyncio.run(main())


def test_handlers_enqueue_in_their_own_way(app):
    """An async handler awaits, a blocking one blocks: either job is stored at once, whatever becomes of the run."""

    @app.task
    async def child(by: str) -> None: ...

    @app.task
    async def async_parent() -> None:
        await child.aenqueue("async")
        raise ValueError("a job enqueued directly stays")

    @app.task
    def blocking_parent() -> None:
        child.enqueue("thread")

    async def main():
        await app.aenqueue(async_parent, max_attempts=1)
        await app.aenqueue(blocking_parent)
        await app.worker(burst=True).run()
        from packhorse.testing import ajobs

        found = await ajobs(app, type="child")
        await app.aclose()
        return sorted(job.payload for job in found if job.state is State.SUCCEEDED)

    assert asyncio.run(main()) == [b'{"by":"async"}', b'{"by":"thread"}']


def test_a_blocking_call_on_the_background_loop_says_what_to_do(app):
    @app.task
    async def parent() -> None:
        app.enqueue("child")

    job = parent.using(max_attempts=1).enqueue()
    drain(app)  # runs the job on the background loop itself
    assert "use the async form" in job.record().errors[-1].message


def test_follow_ups_are_made_with_the_run_s_own_outcome(app):
    @app.task
    def child(n: int) -> None: ...

    @app.task
    async def parent(ctx: Context, fail: bool) -> None:
        ctx.then(child, {"n": 1})
        ctx.then("child", {"n": 2}, priority="high")
        with pytest.raises(InvalidPayload):
            ctx.then(child, {"n": "three"})
        if fail:
            raise ValueError("no")

    parent.using(max_attempts=1).enqueue(fail=True)
    drain(app)
    assert jobs(app, type="child") == []
    parent.enqueue(fail=False)
    drain(app)
    assert len(jobs(app, type="child")) == 2


def test_every_job_passes_the_hooks_once(app):
    import msgspec

    seen = []

    @app.on_enqueue
    def tag(spec: JobSpec) -> JobSpec:
        seen.append(spec.type)
        return msgspec.structs.replace(spec, tags=("hooked",))

    @app.on_enqueue
    def refuse(spec: JobSpec) -> JobSpec:
        if spec.type == "bad":
            raise InvalidOption("bad is not welcome")
        return spec

    @app.task
    def good() -> None: ...

    made = [good.enqueue(), app.enqueue("good"), *app.enqueue_many([good.job(), ("good",), {"type": "good"}])]
    assert seen == ["good"] * 5
    assert {job.record().tags for job in made} == {("hooked",)}
    with pytest.raises(InvalidOption, match="not welcome"):
        app.enqueue("bad")
    assert len(jobs(app)) == 5


def test_a_hook_that_forgets_to_answer_is_told(app):
    from packhorse import ConfigurationError

    @app.on_enqueue
    def forgetful(spec: JobSpec) -> JobSpec:  # type: ignore[return]
        pass

    with pytest.raises(ConfigurationError, match=r"forgetful.*must answer a JobSpec"):
        app.enqueue("a")


def test_closing_wakes_a_thread_that_waits_for_a_result(app):
    """Nobody may hang in a blocking call because somebody else closed the app."""
    job = app.enqueue("never.run")
    ended = []

    def wait():
        try:
            job.result()
        except BaseException as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    limit = threading.Event()
    for _ in range(6_000):
        if asyncio.all_tasks(app.portal._loop):  # else it would ask only after the close, and wait for ever
            break
        limit.wait(0.01)
    app.close()
    waiting.join(60)
    assert not waiting.is_alive()
    assert type(ended[0]).__name__ == "Unavailable"
    assert job.state is State.PENDING  # and the app can be used again


def test_an_app_is_named_once_and_shown_without_its_password():
    """B40, C20."""
    assert repr(Packhorse("sqlite:///jobs.db")) == "<Packhorse sqlite:///jobs.db>"
    assert "hunter2" not in repr(Packhorse("redis://user:hunter2@host/0"))
