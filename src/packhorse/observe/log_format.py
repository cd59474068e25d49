"""How a log line looks: for people (console) or programs (JSON). What jobs say cannot forge one (FAILURES C22).

JSON is one line an event, whatever is in it. On the console an event is one line too, and a traceback stands below it
in lines that begin with `  | `, as no event does. Secrets are hidden (C20): values under keys that look secret,
passwords in URLs, and the passwords and tokens of the store itself. Payloads and locals are never written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, TextIO

import msgspec

from ..clock import to_datetime, to_rfc3339
from ..redaction import HIDDEN, looks_secret, redacted, without_passwords
from ..wording import quantity

#: What log records carry about a job, in the order it is written.
FIELDS = ("job_id", "job_type", "queue", "attempt", "worker", "duration_ms", "error", "trace_id")

#: The attribute of a record that has a traceback as text: of a run that ended, perhaps in another process.
TRACEBACK = "_traceback"

#: What a line holds at most; what is beyond that is cut out of the middle.
MESSAGE_CHARS_MAX = 8_192
TRACEBACK_CHARS_MAX = 16_384
_VALUE_CHARS_MAX = 2_048
#: Fields of `extra=` that are written, and characters of their values as JSON.
_EXTRAS_MAX = 32
_EXTRA_CHARS_MAX = 2_048
_EXTRAS_CHARS_MAX = 8_192
_NAME_CHARS_MAX = 64

#: What every record has: all else came from `extra=`, or from a record factory.
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_TAKEN = _USUAL | frozenset(FIELDS) | {"time", "level", "logger", "traceback"}

#: Shorter than that, a password is likely to be a word of other texts too.
_SECRET_CHARS_MIN = 4
_secrets: frozenset[str] = frozenset()


def hide(secrets: Iterable[str]) -> None:
    """Hide these passwords and tokens in all lines of this process from now on."""
    global _secrets
    _secrets |= {secret for secret in secrets if len(secret) >= _SECRET_CHARS_MIN}


def one_line(text: str) -> str:
    """Escape what could start a new line or steer a terminal (FAILURES C22)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def without_secrets(text: str) -> str:
    """Answer `text` without the store's secrets and without passwords in URLs. Takes time as its length, no more."""
    for secret in _secrets:
        if secret in text:
            from ..backends.opening import scrub

            text = scrub(text, [secret])
    return without_passwords(text)


def cut(text: str, chars_max: int) -> str:
    """Answer `text` with its middle cut out where it has more than `chars_max` characters."""
    if len(text) <= chars_max:
        return text
    half = max(1, (chars_max - 40) // 2)
    return f"{text[:half]} … {quantity(len(text) - 2 * half, 'character')} left out … {text[-half:]}"


def message_of(record: logging.LogRecord, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Answer the message of a record, bounded, without secrets; of one whose arguments do not fit, its template."""
    try:
        text = record.getMessage()
    except Exception as error:  # arguments are the caller's: their text is code too
        text = f"{record.msg} ({type(error).__name__} while this was written)" if isinstance(record.msg, str) else "?"
    return without_secrets(cut(text, chars_max))


def error_of(record: logging.LogRecord) -> str | None:
    """Answer the exception of a record as `ValueError: no such address`."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    try:
        text = str(error)
    except Exception:  # the user's __str__ is the user's code
        text = "?"
    return f"{type(error).__name__}: {without_secrets(cut(text, _VALUE_CHARS_MAX))}"


class _Formatter(logging.Formatter):
    """What both forms share: reading a record."""

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        found = record.__dict__
        stamped = getattr(found, "stamped", found)  # what runs here; `extra=` of the same name says something else
        fields: dict[str, Any] = {}
        for name in FIELDS:
            value = stamped.get(name)
            if value is None:
                value = found.get(name)
            if value is not None:
                fields[name] = _plain(value)
        return fields

    def _extras(self, record: logging.LogRecord) -> dict[str, Any]:
        """Answer what `extra=` gave, as JSON; bounded."""
        found = record.__dict__
        if len(found) <= len(_USUAL) - 3 and _USUAL.issuperset(found):
            return {}
        stamped = getattr(found, "stamped", None)
        extras: dict[str, Any] = {}
        room = _EXTRAS_CHARS_MAX
        for name, value in [(str(name), value) for name, value in found.items()]:
            if name in _USUAL or name.startswith("_"):
                continue
            key = name
            if name in _TAKEN:
                if stamped is None or name not in stamped or stamped[name] == value:
                    continue
                key = f"extra_{name}"
            text = _extra(name, value)
            room -= len(text)
            if room < 0 or len(extras) >= _EXTRAS_MAX:
                break
            extras[cut(key, _NAME_CHARS_MAX)] = msgspec.Raw(text)
        return extras

    def _traceback(self, record: logging.LogRecord) -> str | None:
        text = str(record.__dict__.get(TRACEBACK, ""))
        if record.exc_info and record.exc_info[0] is not None:
            try:
                text = self.formatException(record.exc_info)
            except Exception as error:  # the user's error may refuse to be written
                text = f"(no traceback: {type(error).__name__})"
        if record.stack_info:
            text += f"\n{record.stack_info}" if text else record.stack_info
        return without_secrets(cut(text, TRACEBACK_CHARS_MAX)) if text else None


class JSON(_Formatter):
    """One JSON object a line, in which every character that does not print is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": to_rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        event |= self._fields(record)
        for name, value in self._extras(record).items():
            event.setdefault(name, value)
        if (traceback := self._traceback(record)) is not None:
            event["traceback"] = traceback
        return _json_line(event)


class Console(_Formatter):
    """Time, level, logger, message, fields. `terminal`: a short local time and colours, for somebody who looks on."""

    def __init__(self, *, terminal: bool = False, colour: bool = False) -> None:
        super().__init__()
        self._terminal = terminal
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        at_ms = int(record.created * 1000)
        level = record.levelname.lower()
        if self._terminal:
            when = to_datetime(at_ms).astimezone().isoformat(timespec="milliseconds")[11:23]
            head = f"{when} {one_line(level):<7} {one_line(record.name)}: "
        else:
            when = to_rfc3339(at_ms)
            head = f"{when} {one_line(level)} {one_line(record.name)} "
        fields = self._fields(record)
        fields |= {name: value for name, value in self._extras(record).items() if name not in fields}
        tail = "".join(f" {one_line(str(name))}={_shown(value)}" for name, value in fields.items())
        message = one_line(message_of(record))
        if self._colour:
            start = _COLOURS.get(record.levelno // 10 * 10, "")
            line = f"{start}{head}{_RESET if start else ''}{message}{_DIM}{tail}{_RESET}"
        else:
            line = head + message + tail
        if (traceback := self._traceback(record)) is not None:
            line += "".join(f"\n  | {one_line(part)}" for part in traceback.split("\n"))
        return line


_RESET, _DIM = "\x1b[0m", "\x1b[2m"
_COLOURS = {
    logging.DEBUG: _DIM,
    logging.INFO: "\x1b[36m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}


def formatter(form: str, stream: TextIO) -> logging.Formatter:
    """Make the formatter of a form, `json` or `console`, for lines that go to `stream`."""
    if form == "json":
        return JSON()
    terminal = stream.isatty()
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return Console(terminal=terminal, colour=terminal and not plain)


# ---- values ----------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Answer the value of a field as a number or a bounded text."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, int):
        return value
    text = value if isinstance(value, str) else _text(value)
    return without_secrets(cut(text, _VALUE_CHARS_MAX))


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # the user's __str__ is the user's code
        return f"<{type(value).__name__}>"


def _extra(name: str, value: Any) -> bytes:
    """Answer a value of `extra=` as JSON; what JSON cannot hold, by its type: its own text may say too much."""
    if looks_secret(name) and value not in (None, True, False, ""):
        return _encode(HIDDEN)
    try:
        if isinstance(value, str):
            return _encode(_whole(without_secrets(cut(value, _EXTRA_CHARS_MAX))))
        data = _encode(redacted(value))
        text = data.decode()
        return data if len(text) <= _EXTRA_CHARS_MAX else _encode(cut(text, _EXTRA_CHARS_MAX))
    except Exception:  # cycles, lone surrogates, keys that are no text
        return _encode(f"<{type(value).__name__}>"[:_NAME_CHARS_MAX])


def _unknown(value: Any) -> str:
    return f"<{type(value).__name__}>"


_encode = msgspec.json.Encoder(enc_hook=_unknown, decimal_format="number").encode
_decode = msgspec.json.Decoder().decode


def _whole(text: str) -> str:
    """Answer text that is valid Unicode: lone surrogates become escapes."""
    return text.encode(errors="backslashreplace").decode()


def _json_line(event: dict[str, Any]) -> str:
    try:
        text = _encode(event).decode()
    except UnicodeEncodeError:
        text = _encode(
            {_whole(name): _whole(value) if isinstance(value, str) else value for name, value in event.items()}
        ).decode()
    return text if text.isprintable() else "".join(map(_json_escape, text))


def _json_escape(char: str) -> str:
    """Escape a character inside a JSON text; outside of those there is none that does not print."""
    if char.isprintable():
        return char
    data = char.encode("utf-16-be")
    return "".join(f"\\u{data[place : place + 2].hex()}" for place in range(0, len(data), 2))


def _shown(value: Any) -> str:
    """Answer a value for the console: as it is if it is one word, else as JSON, in which nothing looks like a field."""
    if isinstance(value, msgspec.Raw):
        value = _decode(value)
    if isinstance(value, str):
        if value and value.isprintable() and not any(char in ' ="\\' for char in value):
            return value
        value = _whole(value)
    text = _encode(value).decode()
    return text if text.isprintable() else "".join(map(_json_escape, text))
