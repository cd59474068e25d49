"""A handler may raise or return anything: what comes out is a value that every store can keep."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from packhorse import codec
from packhorse.errors import InvalidPayload, UnknownType
from packhorse.outcome import (
    MESSAGE_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    Cancel,
    Fail,
    Kind,
    Outcome,
    Retry,
    Snooze,
    cancelled,
    crashed,
    from_exception,
    from_result,
    timed_out,
    unknown,
    unreadable,
)


def raised(error: BaseException) -> BaseException:
    """Raise and catch an error, so that it has a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def storable(outcome: Outcome) -> Outcome:
    """Check that every store can keep the texts of an outcome."""
    for text in (outcome.error_kind, outcome.message, outcome.traceback):
        text.encode()
        assert "\0" not in text
    assert len(outcome.error_kind) <= 128
    assert len(outcome.message) <= MESSAGE_CHARS_MAX + 100
    assert len(outcome.traceback) <= TRACEBACK_CHARS_MAX + 100
    return outcome


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Cancels(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class Endless(Exception):
    def __str__(self) -> str:
        return str(self)


class NotText(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307  # that is the point


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Undecided(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


@pytest.mark.parametrize(
    ("error", "kind", "delay_ms", "name"),
    [
        (ValueError("bad"), Kind.ERROR, None, "ValueError"),
        (KeyError("k"), Kind.ERROR, None, "KeyError"),
        (SystemExit(1), Kind.ERROR, None, "SystemExit"),
        (KeyboardInterrupt(), Kind.ERROR, None, "KeyboardInterrupt"),
        (GeneratorExit(), Kind.ERROR, None, "GeneratorExit"),
        (asyncio.CancelledError(), Kind.ERROR, None, "CancelledError"),
        (MemoryError(), Kind.ERROR, None, "MemoryError"),
        (ExceptionGroup("many", [ValueError("a")]), Kind.ERROR, None, "ExceptionGroup"),
        (Retry(), Kind.RETRY, None, "Retry"),
        (Retry(5), Kind.RETRY, 5_000, "Retry"),
        (Retry("250ms", "busy"), Kind.RETRY, 250, "Retry"),
        (Snooze("2m"), Kind.SNOOZE, 120_000, ""),
        (Fail("no use"), Kind.PERMANENT, None, "Fail"),
        (Cancel(), Kind.CANCELLED, None, "Cancel"),
        (Mute(), Kind.ERROR, None, "Mute"),
        (Exits(), Kind.ERROR, None, "Exits"),
        (Cancels(), Kind.ERROR, None, "Cancels"),
        (Endless(), Kind.ERROR, None, "Endless"),
        (NotText(), Kind.ERROR, None, "NotText"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else None,
)
def test_whatever_is_raised_becomes_a_value(error, kind, delay_ms, name):
    outcome = storable(from_exception(raised(error)))
    assert (outcome.kind, outcome.delay_ms, outcome.error_kind) == (kind, delay_ms, name)
    assert outcome.result is None


def test_the_permanent_errors_of_a_task_are_not_tried_again():
    fail_on = (ValueError, KeyError)
    assert from_exception(ValueError(), fail_on).kind is Kind.PERMANENT
    assert from_exception(UnicodeError(), fail_on).kind is Kind.PERMANENT, "subclasses too"
    assert from_exception(OSError(), fail_on).kind is Kind.ERROR
    assert from_exception(Retry(), (Exception,)).kind is Kind.RETRY, "what the handler asks for comes first"


def test_a_text_of_ten_megabytes_is_cut():
    outcome = storable(from_exception(raised(ValueError("x" * 10_000_000))))
    assert "characters left out" in outcome.message


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "ü🐴", "a\nb\x1b[31m", "\udcff" * 9_000])
def test_a_text_of_any_characters_is_storable(text):
    storable(from_exception(raised(ValueError(text))))
    storable(from_exception(raised(Fail(text))))
    storable(from_exception(raised(Snooze(1, text))))


def test_the_traceback_names_the_place_and_the_cause_but_no_values():
    secret = "hunter2"  # this is the canary
    try:
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        outcome = storable(from_exception(error))
    assert "test_outcome.py" in outcome.traceback
    assert "KeyError: 'missing'" in outcome.traceback
    assert "which led to" in outcome.traceback
    assert outcome.traceback.endswith("ValueError: outer")
    assert secret not in outcome.traceback.replace('secret = "hunter2"', "")


def test_an_error_that_is_false_still_counts_as_a_cause():
    for cause in (Falsy("why"), Undecided("why")):
        error = raised(ValueError("outer"))
        error.__cause__ = cause
        assert f"{type(cause).__name__}: why" in from_exception(error).traceback


def test_a_suppressed_context_is_not_shown():
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer") from None
    except ValueError as error:
        outcome = from_exception(error)
    assert "which led to" not in outcome.traceback


def test_a_cycle_of_causes_ends():
    first, second = raised(ValueError("first")), raised(ValueError("second"))
    first.__cause__, second.__cause__ = second, first
    storable(from_exception(first))
    first.__cause__ = first.__context__ = first
    storable(from_exception(first))


def test_a_deep_recursion_is_bounded():
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        outcome = storable(from_exception(error))
    assert outcome.error_kind == "RecursionError"


def test_an_error_is_not_kept_alive():
    """B6: the traceback of a failed job holds its frames, and they hold its data."""

    class Data:
        pass

    def handler() -> weakref.ref[Data]:
        data = Data()
        try:
            raise ValueError("x")
        except ValueError as error:
            from_exception(error)
        return weakref.ref(data)

    gc.disable()
    try:
        assert handler()() is None, "something keeps the frame of the handler"
    finally:
        gc.enable()


def test_a_long_name_of_an_error_is_cut():
    storable(from_exception(type("E" * 500, (Exception,), {})("x")))


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        (0, b"0"),
        (False, b"false"),
        ("", b'""'),
        ({"a": [1, 2.5, None]}, b'{"a":[1,2.5,null]}'),
        ((1, 2), b"[1,2]"),
        (Kind.ERROR, b'"error"'),
    ],
)
def test_a_result_is_plain_json(value, result):
    outcome = from_result(value)
    assert (outcome.kind, outcome.result) == (Kind.SUCCEEDED, result)


class Hostile:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def model_dump(self, mode: str) -> object:
        raise self.error


@pytest.mark.parametrize(
    "value",
    [
        object(),
        float("nan"),
        2**63,
        "\0",
        "\ud800",
        b"\xff" * 2_000_000,
        "x" * codec.RESULT_BYTES_MAX,
        {object(): 1},
        lambda: 1,
        Hostile(ValueError("x\0\ud800" * 100_000)),
        Hostile(RuntimeError("x\0\ud800" * 100_000)),
        Hostile(Mute()),
        Hostile(RecursionError()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_result_that_cannot_be_kept_is_a_permanent_failure(value):
    outcome = storable(from_result(value))
    assert (outcome.kind, outcome.error_kind, outcome.result) == (Kind.PERMANENT, "InvalidResult", None)
    assert "cannot be stored" in outcome.message


def test_a_result_at_its_limit_is_kept_and_one_past_it_is_not():
    assert from_result("x" * (codec.RESULT_BYTES_MAX - 2)).kind is Kind.SUCCEEDED
    assert from_result("x" * (codec.RESULT_BYTES_MAX - 1)).kind is Kind.PERMANENT


def test_outcomes_that_are_not_of_the_handlers_making():
    assert timed_out(1_500, "killed").message == "still running after 1.5 s, its time-out; killed"
    assert timed_out(1_500).kind is Kind.ERROR
    assert cancelled().kind is Kind.CANCELLED
    assert crashed("signal 9").kind is Kind.ERROR
    assert (unknown("nope").kind, "nope" in unknown("nope").message) == (Kind.UNKNOWN, True)
    for error in (InvalidPayload("no", "/a"), UnknownType("no")):
        assert storable(unreadable(error)).kind is Kind.UNKNOWN


@pytest.mark.parametrize("delay", [-1, "soon", float("inf"), True, None])
def test_a_delay_that_is_none_is_refused_where_it_is_written(delay):
    from packhorse.errors import InvalidOption

    with pytest.raises(InvalidOption):
        Snooze(delay)


def test_c20_a_password_in_a_url_is_not_kept_of_an_error():
    """Drivers write the URL that they cannot reach; the record of a job, its spans and its posts show it to many."""
    url = "postgresql://shop:canary@db.example/shop"
    try:
        try:
            raise OSError(f"no route to {url}?sslpassword=canary")
        except OSError as error:
            raise ConnectionError(f"{url} does not answer") from error
    except ConnectionError as error:
        outcome = from_exception(error)
    assert outcome.message == "postgresql://shop:***@db.example/shop does not answer"
    assert "no route to postgresql://shop:***@db.example/shop?sslpassword=***" in outcome.traceback
    assert "canary" not in outcome.traceback
    assert len(from_exception(ValueError("://a:b@ " * 10_000)).message) < MESSAGE_CHARS_MAX + 100
