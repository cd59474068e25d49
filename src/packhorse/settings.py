"""Where settings come from, and how they are read.

Rank: keyword > `PACKHORSE_*` > the older names of other job engines > `packhorse.toml` or `[tool.packhorse]` in
`pyproject.toml` > default. Two names that disagree: the higher rank wins and a warning names both.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from .errors import ConfigurationError, InvalidOption, shown

DEFAULT_URL = "sqlite:///packhorse.db"

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, None: 1_000}


def duration_ms(value: object, what: str, max_ms: int = 10 * 366 * 86_400_000) -> int:
    """Read a duration: a number of seconds, or text as `250ms`, `30s`, `5m`, `2h`, `1d`. Answers ms, 0 to `max_ms`.

    Only 0 itself is 0: a part of a ms counts as one, since 0 often means "no limit".
    """
    ms: float
    if isinstance(value, str):
        match = _DURATION.fullmatch(value) if len(value) <= 40 else None
        if match is None:
            raise InvalidOption(
                f"{what}: {shown(value)} is not a duration; write seconds or '250ms', '30s', '5m', '2h', '1d'"
            )
        ms = float(match[1]) * _UNIT_MS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        ms = value * 1000  # whole: an int may be too large for a float
    elif isinstance(value, float) and math.isfinite(value):
        ms = value * 1000.0
    elif hasattr(value, "total_seconds"):
        ms = value.total_seconds() * 1000.0
    else:
        raise InvalidOption(f"{what}: {shown(value)} is not a duration; write seconds or text as '30s'")
    if not 0 <= ms <= max_ms:
        raise InvalidOption(f"{what}: {shown(value)} is out of bounds; allowed is 0 to {max_ms // 1000} seconds")
    return max(1, round(ms)) if ms > 0 else 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a process, read and checked. Durations are ms."""

    url: str = DEFAULT_URL
    store: str | None = None
    namespace: str = "packhorse"
    queues: tuple[str, ...] = ("default",)
    concurrency: int = 100
    processes: int = 1
    max_attempts: int | None = None
    enqueue_timeout_ms: int = 30_000
    capacity: int | None = None
    lease_ms: int = 30_000
    shutdown_timeout_ms: int = 30_000
    poll_interval_ms: int = 1_000
    park_ms: int = 600_000
    keep_succeeded_ms: int = 86_400_000
    keep_failed_ms: int = 30 * 86_400_000
    keep_cancelled_ms: int = 86_400_000
    log_level: str = "info"
    log_format: str = "console"


def _positive(text: object, what: str) -> int:
    number = text if isinstance(text, int) and not isinstance(text, bool) else 0
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,6}", text.strip()):
        number = int(text)
    if not 1 <= number <= 100_000:
        raise ConfigurationError(f"{what}={shown(text)} must be a whole number from 1 to 100000")
    return number


def _capacity(text: object, what: str) -> int:
    number = text if isinstance(text, int) and not isinstance(text, bool) else 0
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,10}", text.strip()):
        number = int(text)
    if not 1 <= number <= 1_000_000_000:
        raise ConfigurationError(f"{what}={shown(text)} must be a whole number from 1 to 1000000000")
    return number


def _words(text: object, what: str) -> tuple[str, ...]:
    if isinstance(text, Mapping):
        text = [f"{name}={weight}" for name, weight in text.items()]
    items = text.split(",") if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    names = tuple(str(item).strip() for item in items if str(item).strip())
    if not names:
        raise ConfigurationError(f"{what} must name at least one queue, as 'a,b' or 'a=6,b=1'")
    return names


def _text(text: object, what: str) -> str:
    return str(text)


#: What other programs call our log levels.
_LEVEL_WORDS = {"warn": "warning", "critical": "error", "fatal": "error", "trace": "debug", "text": "console"}


def _choice(*allowed: str) -> Any:
    def read(text: object, what: str) -> str:
        word = str(text).strip().lower()
        word = _LEVEL_WORDS.get(word, word)
        if word not in allowed:
            raise ConfigurationError(f"{what}={word[:40]!r} must be one of {', '.join(allowed)}")
        return word

    return read


def _duration(text: object, what: str) -> int:
    try:
        return duration_ms(text, what)
    except InvalidOption as error:
        raise ConfigurationError(str(error)) from None


def _retries_as_attempts(text: object, what: str) -> int:
    try:
        number = int(str(text))
    except ValueError:
        number = -1
    return _positive(number + 1, what)


_READERS: dict[str, Any] = {
    "url": _text,
    "store": _text,
    "namespace": _text,
    "queues": _words,
    "concurrency": _positive,
    "processes": _positive,
    "max_attempts": _positive,
    "enqueue_timeout_ms": _duration,
    "capacity": _capacity,
    "lease_ms": _duration,
    "shutdown_timeout_ms": _duration,
    "poll_interval_ms": _duration,
    "park_ms": _duration,
    "keep_succeeded_ms": _duration,
    "keep_failed_ms": _duration,
    "keep_cancelled_ms": _duration,
    "log_level": _choice("debug", "info", "warning", "error"),
    "log_format": _choice("console", "json"),
}

#: Names of other engines (REQUIREMENTS section C) that mean one of ours.
ALIASES: dict[str, tuple[str, Any]] = {
    "REDIS_URL": ("url", _text),
    "WORKER_CONCURRENCY": ("concurrency", _positive),
    "WORKER_COUNT": ("concurrency", _positive),
    "WORKERS": ("concurrency", _positive),
    "WORKER_POLL_INTERVAL": ("poll_interval_ms", _duration),
    "WORKER_MAX_RETRIES": ("max_attempts", _retries_as_attempts),
    "MAX_ATTEMPTS": ("max_attempts", _positive),
    "WORKER_SHUTDOWN_TIMEOUT": ("shutdown_timeout_ms", _duration),
    "BUFFER_SIZE": ("capacity", _capacity),
    "LOG_LEVEL": ("log_level", _choice("debug", "info", "warning", "error")),
    "LOG_FORMAT": ("log_format", _choice("console", "json")),
}


def own_name(field: str) -> str:
    """Answer the environment's name of a setting, e.g. `PACKHORSE_LEASE` for `lease_ms`."""
    return "PACKHORSE_" + field.removesuffix("_ms").upper()


def load(
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """Read all settings. `overrides` are keywords by field name (without `_ms`); None counts as not given.

    Raises ConfigurationError for a value that cannot be read or a name that does not exist.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, list[tuple[str, object]]] = {}
    fields = {name.removesuffix("_ms"): name for name in _READERS}
    for name, value in (overrides or {}).items():
        if name not in fields:
            raise ConfigurationError(f"there is no setting {name!r}; there are {', '.join(sorted(fields))}")
        if value is not None:
            found.setdefault(fields[name], []).append((name, _READERS[fields[name]](value, name)))
    for field, reader in _READERS.items():
        own = own_name(field)
        if environ.get(own):
            found.setdefault(field, []).append((own, reader(environ[own], own)))
    for alias, (field, reader) in ALIASES.items():
        if environ.get(alias):
            found.setdefault(field, []).append((alias, reader(environ[alias], alias)))
    from_file, file_name = _read_file(environ, directory or Path.cwd())
    for name, value in from_file.items():
        if name not in fields:
            raise ConfigurationError(
                f"{file_name}: there is no setting {name!r}; there are {', '.join(sorted(fields))}"
            )
        place = f"{file_name}:{name}"
        found.setdefault(fields[name], []).append((place, _READERS[fields[name]](value, place)))
    if "store" in found:
        raise ConfigurationError(
            f"{found['store'][0][0]}: a store stands beside a URL that is a transport, and there is none yet; "
            "leave it out"
        )
    return Settings(**{field: _highest(ranked) for field, ranked in found.items()})


def _highest(ranked: list[tuple[str, object]]) -> Any:
    name, value = ranked[0]
    for other_name, other in ranked[1:]:
        # A keyword or file that differs is somebody's choice; two names of the environment are a contradiction.
        if other != value and name.isupper() and other_name.isupper():
            warnings.warn(f"{name} and {other_name} disagree; {name} is used", stacklevel=4)
    return value


def _read_file(environ: Mapping[str, str], directory: Path) -> tuple[dict[str, Any], str]:
    given = environ.get("PACKHORSE_CONFIG")
    if given:
        path = Path(given)
        if not path.is_file():
            raise ConfigurationError(f"PACKHORSE_CONFIG names {given}, which is not a file")
        return _toml(path), path.name
    if (directory / "packhorse.toml").is_file():
        return _toml(directory / "packhorse.toml"), "packhorse.toml"
    if (directory / "pyproject.toml").is_file():
        tools = _toml(directory / "pyproject.toml").get("tool", {})
        table = tools.get("packhorse", {}) if isinstance(tools, dict) else tools
        if not isinstance(table, dict):
            raise ConfigurationError("pyproject.toml: [tool.packhorse] must be a table")
        return table, "pyproject.toml"
    return {}, ""


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}") from None
