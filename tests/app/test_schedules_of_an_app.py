"""Schedules in an app's code and from data, and how the store is kept in step with the code."""

from __future__ import annotations

import asyncio
import itertools
import logging
import runpy
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from packhorse import (
    ConfigurationError,
    Context,
    InvalidName,
    InvalidOption,
    InvalidPayload,
    NotFound,
    Packhorse,
    State,
    Unsupported,
)
from packhorse.backends.base import Capabilities, Schedule, ScheduleChange
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import register_backend
from packhorse.clock import SYSTEM_CLOCK
from packhorse.recurring import ScheduleHandle, sync
from packhorse.testing import drain, stored

_numbers = itertools.count()


class Client:
    """Something that the app provides."""


def in_step(app: Packhorse) -> dict[str, Schedule]:
    """What the store has after a worker of the app has started."""

    async def main() -> None:
        await sync(app, await app.backend())

    app.portal.call(main())
    return {one.name: one for one in app.list_schedules()}


_others: list[Packhorse] = []


def another(url: str, name: str, **settings: Any) -> Packhorse:
    _others.append(Packhorse(url, name=name, **settings))
    return _others[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No thread of an app goes on beside the tests that come after."""
    yield
    while _others:
        _others.pop().close()


# ---- in code ---------------------------------------------------------------------------------------------


def test_the_decorator_names_a_schedule_as_its_type(app: Packhorse) -> None:
    @app.schedule("0 9 * * *", tz="Europe/Paris", missed="all", overlap="skip", jitter="5s")
    @app.task("report", queue="mail", max_attempts=2)
    def make_report() -> None: ...

    assert make_report.type == "report"
    made = app.schedules["report"]
    assert (made.cron, made.tz, made.missed, made.overlap) == ("0 9 * * *", "Europe/Paris", "all", "skip")
    assert (made.jitter_ms, made.every_ms, made.paused, made.source) == (5_000, None, False, f"app:{app.name}")
    assert (made.spec.type, made.spec.queue, made.spec.max_attempts) == ("report", "mail", 2)
    assert in_step(app)["report"].cron == "0 9 * * *"


def test_one_task_with_several_schedules(app: Packhorse) -> None:
    @app.schedule(every="30s", name="ping-a", payload={"host": "a"}, priority="high", tags=["x"])
    @app.schedule(every=timedelta(minutes=5), name="ping-b", payload={"host": "b"}, paused=True)
    @app.task
    async def ping(host: str) -> None: ...

    made = app.schedules
    assert sorted(made) == ["ping-a", "ping-b"]
    assert [made[name].every_ms for name in sorted(made)] == [30_000, 300_000]
    assert [msgspec.json.decode(made[name].spec.payload) for name in sorted(made)] == [{"host": "a"}, {"host": "b"}]
    assert (made["ping-a"].spec.priority, made["ping-a"].spec.tags) == (2, ("x",))
    assert [one.paused for one in in_step(app).values()] == [False, True]


def test_what_is_wrong_in_code_is_said_where_it_is_written(app: Packhorse) -> None:
    @app.task
    def work() -> None: ...

    for fields in ({}, {"every": "5ms"}, {"every": "5s", "tz": "Europe/Paris"}, {"every": "5s", "missed": "some"}):
        with pytest.raises(InvalidOption):
            app.schedule(**fields)(work)
    with pytest.raises(InvalidOption, match="cron"):
        app.schedule("0 0 30 2 *")(work)
    with pytest.raises(InvalidName):
        app.schedule("@daily", name="every day")(work)
    assert app.schedules == {}


def test_the_order_of_the_decorators(app: Packhorse) -> None:
    with pytest.raises(ConfigurationError, match=r"above @app\.task"):

        @app.schedule("@daily")
        def work() -> None: ...

    with pytest.raises(ConfigurationError, match="same app"):
        app.schedule("@daily")(another("memory://", "other").task("work")(lambda: None))


def test_two_definitions_of_one_name(app: Packhorse) -> None:
    @app.schedule("@daily")
    @app.schedule("@daily")
    @app.task
    def work() -> None: ...

    assert list(app.schedules) == ["work"]
    with pytest.raises(ConfigurationError, match="name="):
        app.schedule("@hourly")(work)


def test_a_payload_that_the_task_does_not_take_stops_the_worker(app: Packhorse) -> None:
    @app.schedule("@daily")
    @app.task
    def work(n: int) -> None: ...

    with pytest.raises(InvalidPayload):
        _ = app.schedules

    async def main() -> None:
        async with app.worker():
            raise AssertionError("it started")

    with pytest.raises(InvalidPayload):
        asyncio.run(main())


def test_a_provider_may_come_after_the_schedule(app: Packhorse) -> None:
    @app.schedule("@daily")
    @app.task
    def work(ctx: Context, client: Client) -> None: ...

    app.provide(Client, Client)
    assert app.schedules["work"].spec.payload == b"{}"


def test_hooks_see_the_jobs_of_schedules(app: Packhorse) -> None:
    @app.schedule("@daily")
    @app.task
    def work() -> None: ...

    @app.on_enqueue
    def mark(spec: Any) -> Any:
        return msgspec.structs.replace(spec, meta={"by": "hook"})

    assert in_step(app)["work"].spec.meta == {"by": "hook"}


@pytest.mark.parametrize(
    "options", [{"delay": "5s"}, {"at": datetime(2030, 1, 1, tzinfo=UTC)}, {"after": ["x"]}, {"idempotency_key": "k"}]
)
def test_options_that_make_no_sense_for_slots(app: Packhorse, options: dict[str, Any]) -> None:
    @app.schedule("@daily", **options)
    @app.task
    def work() -> None: ...

    with pytest.raises(InvalidOption, match=r"leave delay and at out|no parents|leave it out"):
        _ = app.schedules


def test_a_delay_of_the_task_itself_makes_no_sense_either(app: Packhorse) -> None:
    @app.schedule("@daily")
    @app.task(delay="5s")
    def work() -> None: ...

    with pytest.raises(InvalidOption, match="leave delay and at out"):
        _ = app.schedules


def test_a_backend_without_schedules_refuses_the_worker() -> None:
    class Without(MemoryBackend):
        capabilities = Capabilities(durable=False, shared=False)

    scheme = f"without{next(_numbers)}"
    register_backend(scheme, lambda url, clock: Without(MemoryStore(SYSTEM_CLOCK)))
    with Packhorse(f"{scheme}://") as app:

        @app.task
        def work() -> None: ...

        async def main() -> None:
            async with app.worker():  # an app without schedules is fine
                pass
            await app.aclose()

        asyncio.run(main())
        app.schedule("@daily")(work)
        with pytest.raises(Unsupported, match="schedules"):
            asyncio.run(main())


# ---- the store follows the code --------------------------------------------------------------------------


def test_what_is_new_changed_and_gone() -> None:
    url = f"memory://app-schedules-{next(_numbers)}"

    def deploy(**every: str) -> dict[str, Schedule]:
        app = another(url, "shop")

        @app.task
        def work() -> None: ...

        for name, interval in every.items():
            app.schedule(every=interval, name=name)(work)
        return in_step(app)

    first = deploy(a="1h", b="1h", c="1h")
    assert [one.revision for one in first.values()] == [1, 1, 1]
    second = deploy(a="1h", b="2h", d="1h")
    assert sorted(second) == ["a", "b", "d"]
    assert second["a"] == first["a"]
    assert (second["b"].revision, second["b"].every_ms) == (2, 7_200_000)
    assert deploy() == {}


def test_an_operators_pause_outlives_a_deploy() -> None:
    url = f"memory://app-schedules-{next(_numbers)}"
    app = another(url, "shop")
    app.schedule(every="1h", name="a")(app.task("work")(lambda: None))
    in_step(app)
    app.schedule_handle("a").pause()
    assert in_step(app)["a"].paused
    changed = another(url, "shop")
    changed.schedule(every="2h", name="a")(changed.task("work")(lambda: None))
    after = in_step(changed)["a"]
    assert (after.paused, after.every_ms) == (True, 7_200_000)


def test_the_schedules_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    url = f"memory://app-schedules-{next(_numbers)}"
    shop, blog = another(url, "shop"), another(url, "blog")
    for app in (shop, blog):
        app.schedule(every="1h" if app is shop else "2h", name="clean")(app.task("clean")(lambda: None))
        app.schedule(every="1h", name=f"only-{app.name}")(app.tasks["clean"])
    shop.define_schedule("clean", name="by-hand", cron="@daily")
    in_step(shop)
    with caplog.at_level(logging.WARNING, "packhorse.schedules"):
        found = in_step(blog)
    assert sorted(found) == ["by-hand", "clean", "only-blog", "only-shop"]
    assert (found["clean"].source, found["clean"].every_ms) == ("app:shop", 3_600_000)
    (record,) = [one for one in caplog.records if one.name == "packhorse.schedules"]
    assert "'shop'" in record.message
    assert "packhorse schedules remove clean" in record.message
    assert sorted(in_step(shop)) == sorted(found)


def test_of_runners_that_start_at_once_one_says_what_is_defined(caplog: pytest.LogCaptureFixture) -> None:
    """All look before the first has written."""
    store = MemoryStore()
    all_looked: asyncio.Barrier

    class Backend(MemoryBackend):
        async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
            answer = await super().schedules(changes)
            if not changes:
                await all_looked.wait()
            return answer

    async def start(every: str) -> None:
        app = Packhorse("memory://", name="shop")
        app.schedule(every=every, name="clean")(app.task("clean")(lambda: None))
        await sync(app, Backend(store))

    async def start_all(every: str) -> None:
        nonlocal all_looked
        all_looked = asyncio.Barrier(3)
        await asyncio.gather(*(start(every) for _ in range(3)))

    for every in ("1h", "2h"):  # a new one, and one that changes
        caplog.clear()
        with caplog.at_level(logging.INFO, "packhorse.schedules"):
            asyncio.run(start_all(every))
        told = [record.message for record in caplog.records if record.name == "packhorse.schedules"]
        assert told == ["the schedule clean is defined as the code says"]


def test_a_worker_brings_the_store_in_step(app: Packhorse) -> None:
    runs = []

    @app.schedule(every="1s")
    @app.task
    async def work() -> None:
        runs.append(1)

    async def main() -> None:
        async with app.worker(), asyncio.timeout(60):
            while not runs:
                await asyncio.sleep(0.01)
        backend = await app.backend()
        (one,) = await backend.schedules()
        assert one.source == f"app:{app.name}"
        await app.aclose()

    asyncio.run(main())


def test_the_test_kit_runs_what_a_test_enqueued_and_no_slots(app: Packhorse) -> None:
    @app.schedule(every="1s")
    @app.task
    def work() -> int:
        return 1

    with stored(app):
        work.using(delay="1h").enqueue()
        assert drain(app) == 1
        assert app.list_schedules() == []
        app.enqueue("work", recurring={"every": "1h"}).run()  # what a test defines is there
        assert drain(app) == 1


# ---- whose it is -----------------------------------------------------------------------------------------


def test_an_app_is_named_by_its_module(tmp_path: Path) -> None:
    class Mine(Packhorse):
        def __init__(self) -> None:
            super().__init__("memory://")

    assert Packhorse("memory://").name == Mine().name == __name__
    assert Packhorse("memory://", name="shop").name == "shop"
    with pytest.raises(InvalidName):
        Packhorse("memory://", name="my shop")
    script = tmp_path / "jobs.py"
    script.write_text("from packhorse import Packhorse\napp = Packhorse('memory://')\n")
    # as `python jobs.py`, and as `packhorse worker jobs` has it
    assert runpy.run_path(str(script), run_name="__main__")["app"].name == "jobs"
    assert runpy.run_path(str(script), run_name="jobs")["app"].name == "jobs"


# ---- from data -------------------------------------------------------------------------------------------


def test_define_look_and_steer(app: Packhorse) -> None:
    handle = app.define_schedule("email", {"to": "a"}, name="mail", cron="0 9 * * *", tz="Asia/Tokyo", queue="q")
    assert isinstance(handle, ScheduleHandle)
    record = handle.record()
    assert (record.name, record.cron, record.spec.queue, record.source) == ("mail", "0 9 * * *", "q", "")
    assert app.list_schedules() == [record]
    assert handle == app.schedule_handle("mail")
    assert len({handle, app.schedule_handle("mail")}) == 1
    assert repr(handle) == "<ScheduleHandle mail>"
    assert [slot.hour for slot in handle.next(3)] == [0, 0, 0]
    handle.pause()
    assert handle.record().paused
    handle.resume()
    assert not handle.record().paused
    job = handle.run()
    assert job.created
    assert (job.state, job.record().schedule, job.record().slot_at_ms) == (State.PENDING, "mail", None)
    handle.remove()
    for verb in (handle.record, handle.pause, handle.resume, handle.remove, handle.run, handle.next):
        with pytest.raises(NotFound, match="schedules list"):
            verb()


def test_defining_again_changes_it_and_keeps_its_place(app: Packhorse) -> None:
    first = app.define_schedule("work", name="s", every="1h").record()
    assert app.define_schedule("work", name="s", every="1h").record() == first
    second = app.define_schedule("work", {"n": 2}, name="s", every="1h").record()
    assert (second.revision, second.done_ms) == (2, first.done_ms)


def test_a_registered_task_checks_the_payload(app: Packhorse) -> None:
    @app.task(queue="q")
    def work(n: int) -> None: ...

    assert app.define_schedule(work, {"n": 1}, name="s", every="1h").record().spec.queue == "q"
    with pytest.raises(InvalidPayload):
        app.define_schedule("work", {"m": 1}, name="s", every="1h")
    with pytest.raises(InvalidOption, match="leave delay and at out"):
        app.define_schedule("work", {"n": 1}, name="s", every="1h", delay=5)


def test_data_does_not_change_what_code_says(app: Packhorse) -> None:
    app.schedule(every="1h", name="s")(app.task("work")(lambda: None))
    in_step(app)
    with pytest.raises(InvalidOption, match="code"):
        app.define_schedule("work", name="s", every="2h")


def test_enqueue_with_recurring_defines_a_schedule(app: Packhorse) -> None:
    handle = app.enqueue("email", {"to": "a"}, recurring={"cron_expression": "0 0 * * *"}, queue="mail")
    assert handle.name == "email"
    record = handle.record()
    assert (record.cron, record.tz, record.spec.queue, record.spec.payload) == (
        "0 0 * * *",
        "UTC",
        "mail",
        b'{"to":"a"}',
    )
    named = app.enqueue("email", recurring={"every": "5s", "name": "often", "overlap": "skip"})
    assert (named.name, named.record().every_ms, named.record().overlap) == ("often", 5_000, "skip")
    assert app.counts() == {}
    with pytest.raises(InvalidOption, match="cron_expression"):
        app.enqueue("email", recurring={"expr": "0 0 * * *"})
    with pytest.raises(InvalidOption, match="mapping"):
        app.enqueue("email", recurring="@daily")
    assert app.enqueue("email", recurring=None).created


def test_the_same_in_async_code(app: Packhorse) -> None:
    async def main() -> None:
        handle = await app.aenqueue("email", {"to": "a"}, recurring={"cron": "@daily"})
        assert (await handle.arecord()).cron == "@daily"
        assert len(await handle.anext(2)) == 2
        await handle.apause()
        await handle.aresume()
        job = await handle.arun()
        assert await job.astate() == State.PENDING
        assert [one.name for one in await app.alist_schedules()] == ["email"]
        await handle.aremove()
        assert await app.alist_schedules() == []
        await app.aclose()

    asyncio.run(main())


def test_run_keeps_to_overlap_skip(app: Packhorse) -> None:
    handle = app.define_schedule("work", name="s", every="1h", overlap="skip")
    first = handle.run()
    again = handle.run()
    assert (again.id, again.created) == (first.id, False)
    first.cancel()
    assert handle.run().created
