"""Every option of a job: what it takes, what it refuses, and that all ways in read it alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from packhorse import ConfigurationError, InvalidName, InvalidOption, Packhorse, Unique, Unsupported
from packhorse.backends.base import Capabilities
from packhorse.backends.memory import MemoryBackend
from packhorse.clock import ManualClock
from packhorse.testing import stored

NOW_MS = 1_700_000_000_000
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC)


@pytest.fixture
def app():
    """An app whose clock stands still."""
    return Packhorse("memory://options", clock=ManualClock(NOW_MS))


@pytest.fixture
def task(app):
    @app.task
    def noop() -> None: ...

    return noop


#: (options, fields of the spec)
GOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"queue": "default", "priority": 5, "max_attempts": 4, "timeout_ms": 30_000, "delay_ms": 0}),
    ({"queue": "mail.out-1_A"}, {"queue": "mail.out-1_A"}),
    ({"queue": "q" * 128}, {"queue": "q" * 128}),
    ({"queue": None}, {"queue": "default"}),
    ({"priority": "high"}, {"priority": 2}),
    ({"priority": "normal"}, {"priority": 5}),
    ({"priority": "low"}, {"priority": 8}),
    ({"priority": 0}, {"priority": 0}),
    ({"priority": 9}, {"priority": 9}),
    ({"priority": "7"}, {"priority": 7}),
    ({"max_attempts": 1}, {"max_attempts": 1}),
    ({"max_attempts": 1_000}, {"max_attempts": 1_000}),
    ({"max_retries": 0}, {"max_attempts": 1}),
    ({"max_retries": 3}, {"max_attempts": 4}),
    ({"max_attempts": 4, "max_retries": 3}, {"max_attempts": 4}),
    ({"timeout": 1.5}, {"timeout_ms": 1_500}),
    ({"timeout": "250ms"}, {"timeout_ms": 250}),
    ({"timeout": None}, {"timeout_ms": 0}),
    ({"timeout": 0}, {"timeout_ms": 0}),
    ({"timeout": "0.1ms"}, {"timeout_ms": 1}),  # not 0, which is no limit
    ({"timeout": "7d"}, {"timeout_ms": 7 * 86_400_000}),
    ({"timeout": timedelta(minutes=2)}, {"timeout_ms": 120_000}),
    ({"delay": 0}, {"delay_ms": 0}),
    ({"delay": "1h"}, {"delay_ms": 3_600_000}),
    ({"delay": " 1.5 m "}, {"delay_ms": 90_000}),
    ({"delay": None}, {"delay_ms": 0}),
    ({"at": NOW + timedelta(seconds=10)}, {"delay_ms": 10_000}),
    ({"at": (NOW + timedelta(seconds=10)).astimezone(timezone(timedelta(hours=-7)))}, {"delay_ms": 10_000}),
    ({"at": "2023-11-14T22:13:30Z"}, {"delay_ms": 10_000}),
    ({"at": "2023-11-14T23:13:30+01:00"}, {"delay_ms": 10_000}),
    ({"at": NOW - timedelta(days=400)}, {"delay_ms": 0}),
    ({"at": datetime.min.replace(tzinfo=UTC)}, {"delay_ms": 0}),
    ({"unique": "welcome:1"}, {"unique": Unique(key="welcome:1")}),
    ({"unique": Unique(key="k", on_conflict="refuse")}, {"unique": Unique(key="k", on_conflict="refuse")}),
    ({"after": []}, {"after": ()}),
    ({"after": "some-id"}, {"after": ("some-id",)}),
    ({"after": ["a", "b"]}, {"after": ("a", "b")}),
    ({"key": "tenant 7 / ü"}, {"key": "tenant 7 / ü"}),
    ({"tags": "one"}, {"tags": ("one",)}),
    ({"tags": ["b", "a", "b"]}, {"tags": ("b", "a")}),
    ({"tags": {"a"}}, {"tags": ("a",)}),
    ({"meta": {"trace": "x" * 1_024}}, {"meta": {"trace": "x" * 1_024}}),
]


@pytest.mark.parametrize(("options", "fields"), GOOD, ids=[str(options)[:50] for options, _ in GOOD])
def test_an_option_becomes_a_field_on_every_way_in(app, task, options, fields):
    as_default = app.task("with.defaults", **options)(lambda: None)
    specs = {
        "using": task.using(**options).job(),
        "by name": app.spec("noop", None, options),
        "unregistered": app.spec("unregistered", None, options),
        "mapping": app.specs([{"type": "noop", **options}])[0],
        "default of the task": as_default.job(),
    }
    for way, spec in specs.items():
        for name, value in fields.items():
            assert getattr(spec, name) == value, way


HUGE = 10**5_000

#: (options, what the message says)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"queues": "a"}, "no option 'queues'; there are after, after_failed, at, delay, full_timeout"),
    ({"retries": 3}, "there is no option 'retries'"),
    ({"queue": "a b"}, "cannot name a queue"),
    ({"queue": ""}, "cannot name a queue"),
    ({"queue": "q" * 129}, "cannot name a queue"),
    ({"queue": "a*"}, "cannot name a queue"),
    ({"queue": "../etc"}, "cannot name a queue"),
    ({"queue": 7}, "cannot name a queue"),
    ({"queue": HUGE}, "cannot name a queue"),
    ({"priority": -1}, "must be high, normal, low or 0"),
    ({"priority": 10}, "must be high, normal, low or 0"),
    ({"priority": "urgent"}, "must be high, normal, low or 0"),
    ({"priority": True}, "must be high, normal, low or 0"),
    ({"priority": 2.0}, "must be high, normal, low or 0"),
    ({"priority": "٣"}, "must be high, normal, low or 0"),
    ({"priority": HUGE}, "must be high, normal, low or 0"),
    ({"max_attempts": 0}, "whole number from 1 to 1000"),
    ({"max_attempts": 1_001}, "whole number from 1 to 1000"),
    ({"max_attempts": "3"}, "whole number from 1 to 1000"),
    ({"max_attempts": True}, "whole number from 1 to 1000"),
    ({"max_attempts": 2.0}, "whole number from 1 to 1000"),
    ({"max_attempts": HUGE}, "whole number from 1 to 1000"),
    ({"max_retries": -1}, "whole number from 0 to 999"),
    ({"max_retries": 1_000}, "whole number from 0 to 999"),
    ({"max_attempts": 3, "max_retries": 3}, "give max_attempts or max_retries"),
    ({"timeout": -1}, "out of bounds"),
    ({"timeout": "8d"}, "out of bounds"),
    ({"timeout": float("nan")}, "not a duration"),
    ({"timeout": float("inf")}, "not a duration"),
    ({"timeout": HUGE}, "out of bounds"),
    ({"timeout": 10**400}, "out of bounds"),
    ({"timeout": "soon"}, "write seconds or '250ms'"),
    ({"timeout": "-5s"}, "not a duration"),
    ({"timeout": ""}, "not a duration"),
    ({"timeout": "30s" + " " * 60 + "junk"}, "not a duration"),
    ({"timeout": True}, "not a duration"),
    ({"timeout": [1]}, "not a duration"),
    ({"delay": -0.001}, "out of bounds"),
    ({"delay": timedelta(seconds=-1)}, "out of bounds"),
    ({"delay": "11000d"}, "out of bounds"),
    ({"delay": "٣s"}, "not a duration"),
    ({"delay": 10**400}, "out of bounds"),
    ({"at": datetime(2030, 1, 1)}, "no time zone; write datetime"),  # noqa: DTZ001  # the case under test
    ({"at": "2030-01-01T00:00:00"}, "no time zone"),
    ({"at": "tomorrow"}, "not an instant; write 2030-01-31T09:00:00Z"),
    ({"at": 1_700_000_000}, "pass an aware datetime or RFC 3339 text"),
    ({"at": "9999-12-31T23:59:59Z"}, "ten years"),
    ({"at": NOW, "delay": 1}, "give delay or at, not both"),
    ({"unique": ""}, "1 to 256 printable"),
    ({"unique": "x" * 257}, "1 to 256 printable"),
    ({"unique": "a\nb"}, "1 to 256 printable"),
    ({"unique": 7}, "key as text"),
    ({"unique": Unique(key="k", on_conflict="panic")}, "existing, replace or refuse"),
    ({"unique": Unique(key="k", for_ms=-1)}, "must not be negative"),
    ({"unique": Unique(key="k", for_ms="1h")}, "must not be negative"),  # type: ignore[arg-type]
    ({"unique": Unique(key="k", states=("nowhere",))}, "states of a job"),  # type: ignore[arg-type]
    ({"unique": Unique(key=5)}, "1 to 256 printable"),  # type: ignore[arg-type]
    ({"after": 5}, "a job, its id, or a list"),
    ({"after": [5]}, "a job, its id, or a list"),
    ({"after": [""]}, "a job, its id, or a list"),
    ({"after": ["x"] * 10_001}, "up to 10000"),
    ({"key": ""}, "1 to 256 printable"),
    ({"key": "a\0"}, "1 to 256 printable"),
    ({"key": "\ud800"}, "1 to 256 printable"),
    ({"key": HUGE}, "1 to 256 printable"),
    ({"tags": ["a b"]}, "cannot name a tag"),
    ({"tags": [7]}, "cannot name a tag"),
    ({"tags": [f"t{number}" for number in range(33)]}, "up to 32"),
    ({"tags": 7}, "up to 32"),
    ({"meta": {"a": 7}}, "must be text"),
    ({"meta": {"a": "x" * 1_025}}, "up to 1024 characters"),
    ({"meta": {"a": "\0"}}, "without NUL"),
    ({"meta": {"a b": "x"}}, "cannot name a meta entry"),
    ({"meta": {f"m{number}": "x" for number in range(33)}}, "up to 32"),
    ({"meta": [("a", "b")]}, "up to 32"),
]


@pytest.mark.parametrize(
    ("options", "message"), BAD, ids=[f"{number}-{next(iter(options))}" for number, (options, _) in enumerate(BAD)]
)
def test_a_wrong_option_is_refused_on_every_way_in(app, task, options, message):
    """C6, C10, C13: clamped, named, with the remedy; never a ValueError from inside."""
    for way_in in (
        lambda: task.using(**options).job(),
        lambda: app.spec("noop", None, options),
        lambda: app.enqueue("unregistered", None, **options),
        lambda: app.specs([{"type": "noop", **options}]),
        lambda: Packhorse("memory://other").task("other", **options)(lambda: None).job(),
    ):
        with pytest.raises((InvalidOption, InvalidName)) as caught:
            way_in()
        assert message in str(caught.value)
        assert len(str(caught.value)) < 400


def test_options_given_at_the_call_win_over_the_task_s_own(app):
    task = app.task("mail", queue="mail", priority="low", max_attempts=2, delay="1h", tags=["a"])(lambda: None)
    spec = task.using(priority="high", max_retries=0, at=NOW + timedelta(seconds=5)).job()
    assert (spec.queue, spec.priority, spec.max_attempts, spec.delay_ms, spec.tags) == ("mail", 2, 1, 5_000, ("a",))


def test_a_delay_at_the_call_wins_over_an_instant_of_the_task(app):
    task = app.task("later", at=NOW + timedelta(days=1))(lambda: None)
    assert task.job().delay_ms == 86_400_000
    assert task.using(delay="1s").job().delay_ms == 1_000


def test_an_instant_is_measured_when_the_job_is_made(app):
    task = app.task("later", at=NOW + timedelta(seconds=60))(lambda: None)
    app.clock.advance(50_000)
    assert task.job().delay_ms == 10_000
    app.clock.advance(50_000)
    assert task.job().delay_ms == 0


def test_max_attempts_of_the_settings_is_the_default_below_the_task_s(monkeypatch):
    app = Packhorse("memory://", max_attempts=7)
    assert app.task("a")(lambda: None).job().max_attempts == 7
    assert app.task("b", max_attempts=2)(lambda: None).job().max_attempts == 2
    assert app.spec("unregistered").max_attempts == 7


def test_backoff_is_checked_when_the_task_is_registered(app):
    for options in ({"backoff": "soon"}, {"backoff": -1}, {"backoff_max": float("nan")}, {"backoff": 10**400}):
        with pytest.raises(InvalidOption, match="backoff"):
            app.task("x", **options)(lambda: None)
    task = app.task("y", backoff="50ms", backoff_max=1)(lambda: None)
    assert (task.backoff.base_ms, task.backoff.max_ms) == (50, 1_000)


def test_an_app_refuses_settings_it_does_not_know():
    with pytest.raises(ConfigurationError, match="no setting 'conccurency'"):
        Packhorse("memory://", conccurency=3)


def test_what_the_backend_cannot_do_is_refused_by_name(app, task, monkeypatch):
    monkeypatch.setattr(MemoryBackend, "capabilities", Capabilities(durable=False, shared=False))
    with stored(app):
        for options, flag in [
            ({"after": ["x"]}, "dependencies"),
            ({"unique": Unique(key="a", for_ms=1_000)}, "unique_windows"),
            ({"unique": Unique(key="a", on_conflict="replace")}, "unique_windows"),
        ]:
            with pytest.raises(Unsupported) as caught:
                task.using(**options).enqueue()
            assert caught.value.flag == flag
        assert app.counts() == {}
    app.close()


def test_the_holder_of_a_unique_key_answers_for_the_others(app, task):
    with stored(app):
        first = task.using(unique="one").enqueue()
        again = task.using(unique="one").enqueue()
        other_queue = task.using(unique="one", queue="other").enqueue()
        assert (first.created, again.created, other_queue.created) == (True, False, True)
        assert again == first
        first.cancel()
        assert task.using(unique="one").enqueue().created  # the key is free when its job has ended
    app.close()
