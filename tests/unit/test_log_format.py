"""Log lines: one event a line whatever is in it, bounded, without secrets."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from packhorse.clock import process_cpu_ms
from packhorse.observe import log_format
from packhorse.observe.job_log import AttemptLog, LogLine, RunLog, line_of
from packhorse.observe.log_format import JSON, Console, cut, formatter, hide, one_line, without_secrets
from packhorse.observe.logs import configure, take_root

HOSTILE = [
    "a\n2026-01-01T00:00:00.000Z info paid",
    "a\r\nb",
    "\x1b]0;owned\x07\x1b[31mred",
    "\u202egnp.exe",
    "nul\0",
    "lone \ud800 and \udfff",
    "line\u2028separator\u2029paragraph\x85next\x0b\x0c",
    "\x7f\x9b31m",
    "\U000e0001tag\ufeffbom",
    '"},{"level":"error',
    "a=b job_id=1",
]


def record(message: str = "hello", *args: Any, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("shop", level, "shop.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def with_error(error: BaseException) -> logging.LogRecord:
    made = record("it broke")
    try:
        raise error
    except BaseException:
        made.exc_info = sys.exc_info()
    return made


def is_plain(line: str) -> bool:
    return line.isprintable() and "\n" not in line


def parsed(made: logging.LogRecord) -> Any:
    line = JSON().format(made)
    assert is_plain(line)
    return json.loads(line)


# ---- one line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_c22_an_event_is_one_line_in_both_forms(text: str) -> None:
    made = record("%s", text, job_id=text, job_type=text, error=text, own=text, nested={"k": [text]}, **{text: text})
    made.name = text
    found = parsed(made)
    expected = text.encode(errors="backslashreplace").decode()
    assert found["message"] == found["job_id"] == found["error"] == found["logger"] == expected
    assert found["level"] == "info"
    line = Console().format(made)
    assert is_plain(line)
    assert Console(terminal=True).format(made).isprintable()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_c22_a_traceback_forges_no_event(text: str) -> None:
    made = with_error(ValueError(text))
    assert text.encode(errors="backslashreplace").decode() in parsed(made)["traceback"]
    head, *rest = Console().format(made).split("\n")
    assert head.endswith(" info shop it broke")
    assert rest
    for line in rest:
        assert line.startswith("  | ")
        assert is_plain(line)


def test_json_has_the_fields_of_the_job_and_those_of_the_program() -> None:
    made = record(
        "sold %d",
        3,
        job_id="j1",
        job_type="sell",
        queue="q",
        attempt=2,
        worker="w1",
        duration_ms=1.23456,
        error="ValueError: no",
        trace_id="abc",
        article="cup",
        price=Decimal("1.50"),
        at=datetime(2026, 1, 1, tzinfo=UTC),
        order=UUID(int=7),
        tags=["a", {"b": None}],
        ok=True,
    )
    made.created = 1_700_000_000.25
    assert parsed(made) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "shop",
        "message": "sold 3",
        "job_id": "j1",
        "job_type": "sell",
        "queue": "q",
        "attempt": 2,
        "worker": "w1",
        "duration_ms": 1.235,
        "error": "ValueError: no",
        "trace_id": "abc",
        "article": "cup",
        "price": 1.5,
        "at": "2026-01-01T00:00:00Z",
        "order": "00000000-0000-0000-0000-000000000007",
        "tags": ["a", {"b": None}],
        "ok": True,
    }


def test_the_console_reads_well() -> None:
    made = record("sold", job_type="sell", error="ValueError: no such", empty="", article="cup", n=3)
    made.created = 1_700_000_000.25
    assert Console().format(made) == (
        '2023-11-14T22:13:20.250Z info shop sold job_type=sell error="ValueError: no such" empty="" article=cup n=3'
    )


def test_a_terminal_gets_a_short_time_and_colours_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    made = record("sold")
    coloured = formatter("console", Terminal()).format(made)
    assert "\x1b[36m" in coloured
    assert coloured.endswith("\x1b[0m")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            plain = formatter("console", Terminal()).format(made)
            assert is_plain(plain)
            assert plain[12:] == " info    shop: sold"
    assert "\x1b" not in formatter("console", io.StringIO()).format(made)


# ---- bounds ------------------------------------------------------------------------------------------------


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Secretive:
    def __repr__(self) -> str:
        return "canary"


_CYCLE: list[Any] = []
_CYCLE.append(_CYCLE)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Secretive(), "<Secretive>"),
        ([Secretive()], ["<Secretive>"]),
        (Rude(), "<Rude>"),
        (_CYCLE, "<list>"),
        ("\ud800", "\\ud800"),
        (["\ud800"], "<list>"),
        (2**80, 2**80),
        (float("nan"), None),
        ({1: 2}, {"1": 2}),
        (b"\x00", "AA=="),
    ],
)
def test_values_that_are_no_json_are_shown_by_their_type(value: Any, shown: Any) -> None:
    assert parsed(record(own=value))["own"] == shown
    assert is_plain(Console().format(record(own=value)))


def test_everything_is_bounded() -> None:
    made = with_error(ValueError("x" * 100_000))
    made.msg = "m" * 100_000
    made.__dict__.update({f"extra{n}": "y" * 10_000 for n in range(100)}, **{"n" * 10_000: 1}, job_id="j" * 100_000)
    line = JSON().format(made)
    assert len(line) < 40_000
    found = json.loads(line)
    assert 8_000 < len(found["message"]) <= log_format.MESSAGE_CHARS_MAX
    assert "characters left out" in found["message"]
    assert len(found["traceback"]) <= log_format.TRACEBACK_CHARS_MAX
    assert len([name for name in found if name.startswith("extra")]) <= 4
    assert len(Console().format(made)) < 40_000


@pytest.mark.parametrize("length", [99, 100, 101, 5_000])
def test_what_is_too_long_loses_its_middle(length: int) -> None:
    text = "".join(chr(97 + n % 26) for n in range(length))
    shown = cut(text, 100)
    assert len(shown) <= 100
    assert (shown == text) == (length <= 100)
    assert shown[:20] == text[:20]
    assert shown[-20:] == text[-20:]


def test_arguments_that_do_not_fit_are_said_and_raise_nothing() -> None:
    assert parsed(record("%d of %d", 1))["message"] == "%d of %d (TypeError while this was written)"
    assert parsed(record("%s", Rude()))["message"] == "%s (RuntimeError while this was written)"
    assert "no traceback" not in parsed(with_error(ValueError(Rude())))["traceback"]


def test_fields_that_are_taken_are_not_overwritten() -> None:
    made = record("real")
    made.__dict__.update(time="x", level="x", logger="x", traceback="x")
    found = parsed(made)
    assert (found["message"], found["level"], found["logger"]) == ("real", "info", "shop")
    assert found["time"] != "x"
    assert "traceback" not in found


# ---- secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://u:canary@h/p now", "to https://u:***@h/p now"),
        ("to https://canary@h/p now", "to https://***@h/p now"),
        ("postgresql://u:can/ary#1@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("redis://:canary@h", "redis://:***@h"),
        ("a://u:canary@h,b://v:canary@h", "a://u:***@h,b://v:***@h"),
        ("https://h/x?a=1&api_key=canary&b=2", "https://h/x?a=1&api_key=***&b=2"),
        ("https://h:80/mail/a@example.com", "https://h:80/mail/a@example.com"),
        ("see http://h/x and a@example.com", "see http://h/x and a@example.com"),
        ("ssh://git@h/x", "ssh://git@h/x"),
        ("nothing here", "nothing here"),
        ("https://h/x?", "https://h/x?"),
    ],
)
def test_c20_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert parsed(record("%s", text, error=text, own=text)) | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "shop",
        "message": shown,
        "error": shown,
        "own": shown,
    }
    assert parsed(with_error(ValueError(text)))["traceback"].endswith(f"ValueError: {shown}")


def test_c20_extra_under_secret_names_is_hidden() -> None:
    made = record(password="canary", own={"api_key": "canary", "n": [{"Token": "canary"}]}, authToken=b"canary")
    assert "canary" not in JSON().format(made)
    assert "canary" not in Console().format(made)


def test_c20_locals_are_never_written() -> None:
    def inner(password: str) -> None:
        raise ValueError("no entry")

    made = record("it broke")
    try:
        inner("canary" + str(len("x")))
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "canary1" not in JSON().format(made)


def test_the_stores_own_secrets_are_hidden_as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_format, "_secrets", frozenset())
    hide({"postgres", "a", "tok/en+1"})
    assert without_secrets("the password is postgres, not postgresql; a tok/en+1") == (
        "the password is ***, not postgresql; a ***"
    )


def test_c24_no_text_makes_it_slow() -> None:
    texts = ["://" * 100_000, "a://" + ":" * 300_000 + "@", "?;" * 150_000 + "://@", "://?" + "&token=" * 50_000]
    began_ms = process_cpu_ms()
    for text in texts:
        without_secrets(text)
    assert process_cpu_ms() - began_ms < 2_000


# ---- a job's own log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_of_a_jobs_log_can_be_stored_everywhere(text: str) -> None:
    log = RunLog(3, 0)
    made = record("%s", text)
    made.name = text
    log.add(line_of(made))
    data = log.value()
    data.decode()  # valid UTF-8
    assert b"\0" not in data
    (line,) = AttemptLog(**json.loads(data)).lines
    _, level, logger, message = line
    assert (level, "\0" in message, "\0" in logger) == ("info", False, False)


def test_a_line_names_the_error_that_goes_with_it() -> None:
    assert json.loads(line_of(with_error(KeyError("k"))))[3] == "it broke (KeyError: 'k')"
    assert LogLine(*json.loads(line_of(record("x" * 5_000)))).message.count("x") > 1_900


def test_one_line_leaves_plain_text_alone() -> None:
    assert one_line("grün 日本 ok") == "grün 日本 ok"
    assert one_line("a\nb\x1b") == "a\\nb\\x1b"


# ---- where lines go ----------------------------------------------------------------------------------------


@pytest.fixture
def loggers() -> Any:
    """The root logger as a program finds it that has configured nothing."""
    root, ours = logging.getLogger(), logging.getLogger("packhorse")
    before = [(one, list(one.handlers), one.level, one.propagate) for one in (root, ours)]
    root.setLevel("WARNING")
    yield root, ours
    for one, handlers, level, propagate in before:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


def test_lines_of_a_program_that_configured_nothing_come_out_once(
    loggers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers[0].handlers[:] = []  # pytest has put its own there
    configure("info", "json")
    take_root("info")
    take_root("info")
    logging.getLogger("shop").info("mine")
    logging.getLogger("packhorse.worker").info("ours")
    logging.getLogger("shop").debug("too low")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [("shop", "mine"), ("packhorse.worker", "ours")]


def test_a_program_that_configured_its_logging_keeps_it(loggers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = loggers
    own = io.StringIO()
    configure("info", "json")
    logging.getLogger("packhorse.worker")
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"own": {"class": "logging.StreamHandler", "stream": own}},
            "root": {"handlers": ["own"], "level": "ERROR"},
        }
    )
    take_root("info")
    assert root.level == logging.ERROR
    logging.getLogger("shop").disabled = False  # dictConfig silenced what it did not name
    logging.getLogger("shop").error("mine")
    logging.getLogger("packhorse.worker").info("ours")
    assert own.getvalue() == "mine\n"
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "ours"
