"""Limits in the app's code and by an operator: who wins, and that workers obey."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from packhorse import InvalidOption, Packhorse, Unsupported
from packhorse.backends.base import Capabilities, Limit
from packhorse.backends.memory import MemoryBackend
from packhorse.errors import Unavailable
from packhorse.rates import CODE
from packhorse.worker.declared import declare_limits

_numbers = itertools.count()


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    """An empty store of each kind."""
    return f"memory://limits-{next(_numbers)}" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def app(url):
    with Packhorse(url) as app:
        yield app


@pytest.fixture
def in_memory():
    with Packhorse(f"memory://limits-{next(_numbers)}") as app:
        yield app


def work(app):
    """Start a worker of the app until nothing is left."""

    async def run() -> None:
        await app.worker(burst=True).run()

    app.portal.call(run())


def rows(app):
    return [
        (one.type, one.key, one.rate, one.period_ms, one.burst, one.concurrency, one.source) for one in app.limits()
    ]


def test_a_worker_sets_what_the_code_says_and_clears_what_it_says_no_more(app):
    app.task("mail", rate="100/m", burst=5, concurrency=10, rate_per_key="1/s", concurrency_per_key=2)(lambda: None)
    app.task("free")(lambda: None)
    assert app.limits() == []  # nothing before a worker starts
    work(app)
    expected = [("mail", None, 100, 60_000, 5, 10, CODE), ("mail", "*", 1, 1_000, None, 2, CODE)]
    assert rows(app) == expected
    work(app)
    assert rows(app) == expected
    app.tasks["mail"].limits = ()
    work(app)
    assert rows(app) == []


def test_a_part_that_is_declared_no_more_is_lifted(app):
    task = app.task("mail", rate="100/m", burst=5, concurrency=10)(lambda: None)
    work(app)
    task.limits = (Limit(type="mail", rate=7, source=CODE),)
    work(app)
    assert rows(app) == [("mail", None, 7, 1_000, None, None, CODE)]


def test_an_operator_wins_and_other_apps_limits_stay(app):
    app.task("mail", concurrency=10)(lambda: None)
    app.set_limit("mail", concurrency=3)
    app.set_limit("other", rate="1/s")
    app.portal.call(_set_by_code(app, Limit(type="of-another-app", concurrency=1, source=CODE)))
    work(app)
    assert [(row[0], row[5], row[6]) for row in rows(app)] == [
        ("mail", 3, ""),
        ("of-another-app", 1, CODE),
        ("other", None, ""),
    ]
    assert app.clear_limit("mail")
    assert not app.clear_limit("mail")
    work(app)  # the code's own comes back
    assert rows(app)[0] == ("mail", None, None, 1_000, None, 10, CODE)


async def _set_by_code(app, limit):
    await (await app.backend()).limits([limit])


def test_set_limit_leaves_what_is_not_given(app):
    assert app.set_limit("mail", rate="50/s", burst=10).burst == 10
    limit = app.set_limit("mail", concurrency=3)
    assert (limit.rate, limit.burst, limit.concurrency, limit.source) == (50, 10, 3, "")
    assert app.set_limit("mail", burst=20).burst == 20
    with pytest.raises(InvalidOption, match="no rate that it belongs to"):
        app.set_limit("other", burst=20)
    with pytest.raises(InvalidOption, match="clear it"):
        app.set_limit("mail", concurrency=0)


def test_limits_of_one_type_come_with_their_state(app):
    app.set_limit("mail", concurrency=1)
    app.set_limit("mail", "*", rate="1/d")
    whole, each = app.limits("mail", "k")
    assert (whole.running, whole.opens_in_ms, each.key, each.opens_in_ms) == (0, 0, "*", 0)
    assert app.limits("other") == []
    assert [one.key for one in app.limits("mail")] == [None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate": "0/s"}, "clear it"),
        ({"rate": 50}, "write 50/s"),
        ({"rate_per_key": "x"}, "write 50/s"),
        ({"concurrency": 0}, "clear it"),
        ({"concurrency_per_key": -1}, "clear it"),
        ({"burst": 3}, "give rate too"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_when_the_task_is_registered(app, options, says):
    with pytest.raises(InvalidOption, match=says):
        app.task("mail", **options)(lambda: None)


def test_no_more_run_at_once_than_the_limit_says_and_others_are_not_held(url):
    async def run() -> None:
        running, most, seen = 0, 0, []

        async with Packhorse(url) as app:

            @app.task("slow", concurrency=2)
            async def slow() -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.002)
                running -= 1

            @app.task("quick")
            async def quick() -> None:
                seen.append(running)

            await app.aenqueue_many([("slow",)] * 40 + [("quick",)] * 40)
            await app.worker(burst=True).run()
            counts = (await app.acounts())["default"].states
            assert counts == {"succeeded": 80}
        assert most == 2
        assert len(seen) == 40

    asyncio.run(run())


def test_a_key_alone_is_limited(url):
    async def run() -> None:
        running: dict[str, int] = {"a": 0, "b": 0}
        most: dict[str, int] = {"a": 0, "b": 0}

        async with Packhorse(url) as app:

            @app.task("t", concurrency_per_key=1)
            async def t(key: str) -> None:
                running[key] += 1
                most[key] = max(most[key], running[key])
                await asyncio.sleep(0.001)
                running[key] -= 1

            items = [{"type": "t", "payload": {"key": key}, "key": key} for key in "ab" * 20]
            await app.aenqueue_many(items)
            await app.worker(burst=True).run()
        assert most == {"a": 1, "b": 1}

    asyncio.run(run())


def test_a_backend_without_limits_is_an_error_in_the_log_and_no_reason_not_to_work(in_memory, monkeypatch, caplog):
    app = in_memory
    monkeypatch.setattr(MemoryBackend, "capabilities", Capabilities(durable=False, shared=False))
    app.task("mail", concurrency=1)(lambda: None)
    job = app.enqueue("mail")
    with caplog.at_level(logging.ERROR):
        work(app)
    assert job.state == "succeeded"
    assert "does not support 'limits': those of mail are NOT kept" in caplog.text
    for call in (lambda: app.set_limit("mail", concurrency=1), lambda: app.clear_limit("mail")):
        with pytest.raises(Unsupported, match="limits"):
            call()


def test_a_store_that_refuses_the_limits_is_an_error_in_the_log(in_memory, monkeypatch, caplog):
    app = in_memory
    app.task("mail", concurrency=1)(lambda: None)

    async def refuse(self, changes=(), *, about=None):
        raise InvalidOption("not here")

    monkeypatch.setattr(MemoryBackend, "limits", refuse)
    job = app.enqueue("mail")
    with caplog.at_level(logging.ERROR):
        work(app)
    assert job.state == "succeeded"
    assert "the limits of the app are not declared: not here" in caplog.text


def test_a_capacity_that_the_backend_cannot_keep_is_an_error_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(MemoryBackend, "capabilities", Capabilities(durable=False, shared=False))
    with Packhorse(f"memory://limits-{next(_numbers)}", capacity=5) as app, caplog.at_level(logging.ERROR):
        work(app)
    assert "the setting capacity=5 is NOT kept" in caplog.text


def test_nothing_is_claimed_before_the_store_has_the_limits(in_memory, monkeypatch):
    """A store that is away is waited for, as every claim waits for it."""
    app = in_memory
    app.task("mail", concurrency=1)(lambda: None)
    calls = []
    limits = MemoryBackend.limits

    async def away(self, changes=(), *, about=None):
        calls.append(changes)
        if len(calls) < 3:
            raise Unavailable("away")
        return await limits(self, changes, about=about)

    monkeypatch.setattr(MemoryBackend, "limits", away)
    monkeypatch.setattr(app.chance, "uniform", lambda low, high: 0.0)

    async def run() -> None:
        await declare_limits(app, await app.backend())

    app.portal.call(run())
    assert len(app.limits()) == 1
