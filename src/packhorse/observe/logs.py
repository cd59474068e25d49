"""Log lines: one event a line, for people (console) or programs (JSON). What jobs say cannot forge a line."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec

from ..clock import to_rfc3339

#: Attributes that log records carry about a job, written as fields.
_FIELDS = ("job_id", "job_type", "queue", "worker", "attempt", "duration_ms", "error")


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [to_rfc3339(int(record.created * 1000)), record.levelname.lower(), record.name, record.getMessage()]
        parts += [f"{name}={value}" for name in _FIELDS if (value := getattr(record, name, None)) is not None]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        return one_line(" ".join(parts))


class _JSON(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": to_rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event, enc_hook=str).decode(errors="backslashreplace")


def one_line(text: str) -> str:
    """Escape what could start a new line or steer a terminal (FAILURES C22)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def configure(level: str = "info", form: str = "console") -> None:
    """Send the log lines of `packhorse` to stderr. `form` is console or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if form == "json" else _Console())
    logger = logging.getLogger("packhorse")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
