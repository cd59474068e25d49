"""Where settings come from, and how they are read.

Rank: keyword > `PACKHORSE_*` > the older names of other job engines > `packhorse.toml` or `[tool.packhorse]` in
`pyproject.toml` > default. Two names that disagree: the higher rank wins and a warning names both.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import ConfigurationError, InvalidOption, shown
from .wording import quantity

if TYPE_CHECKING:
    from .webhook import Webhook

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
        raise InvalidOption(
            f"{what}: {shown(value)} is out of bounds; allowed is 0 to {quantity(max_ms // 1000, 'second')}"
        )
    return max(1, round(ms)) if ms > 0 else 0


class SettingsWarning(UserWarning):
    """Two names of the environment say different things of one setting."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a process, read and checked. Durations are ms."""

    url: str = DEFAULT_URL
    token: str | None = None
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
    log_jobs: str = "some"
    keep_log: str = "info"
    metrics: str | None = None
    tracing: str = "off"
    tracing_sample: float = 1.0
    blocked_ms: int = 500
    host: str = "127.0.0.1"
    port: int = 8080
    tokens: tuple[str, ...] = ()
    tokens_file: str = "packhorse-tokens.json"
    allowed_hosts: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    read_timeout_ms: int = 30_000
    write_timeout_ms: int = 30_000
    webhooks: tuple[Webhook, ...] = ()
    webhooks_allow: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Write all but secrets (FAILURES C20): of the URL the scheme only, passwords may be anywhere in the rest."""
        hidden = {"url": f"{self.url.partition('://')[0][:40]}://…", "token": self.token and "***"}
        if "@" in self.tracing:
            hidden["tracing"] = "…"
        fields = msgspec.structs.asdict(self) | hidden
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


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


def _port(text: object, what: str) -> int:
    number = text if isinstance(text, int) and not isinstance(text, bool) else -1
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,5}", text.strip()):
        number = int(text)
    if not 0 <= number <= 65_535:
        raise ConfigurationError(f"{what}={shown(text)} must be a port, from 1 to 65535, or 0 for a free one")
    return number


def _host(text: object, what: str) -> str:
    host = str(text).strip()
    if host.startswith("[") and host.endswith("]"):  # as in a URL
        host = host[1:-1]
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", host):
        raise ConfigurationError(f"{what}={shown(text)} must be an address or a name, as 127.0.0.1, ::1 or localhost")
    return host


def _address(text: object, what: str) -> str:
    """Read `PORT` or `ADDRESS:PORT`; answers `ADDRESS:PORT`, 127.0.0.1 unless another is named."""
    host, _, port = str(text).strip().rpartition(":")
    return f"{_host(host or '127.0.0.1', what)}:{_port(port, what)}"


def _tracing(text: object, what: str) -> str:
    """Read `off`, `on` or the http(s) URL of an OTLP receiver."""
    word = str(text).strip()
    if word.lower() in {"off", "on"}:
        return word.lower()
    if not re.fullmatch(r"https?://[^\s]{1,500}", word):
        raise ConfigurationError(
            f"{what}={shown(text)} must be off, on (then OTEL_EXPORTER_OTLP_ENDPOINT or the program says where to), "
            "or the URL of an OTLP receiver, as http://127.0.0.1:4318"
        )
    return word


def _share(text: object, what: str) -> float:
    try:
        share = float(str(text))
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ConfigurationError(f"{what}={shown(text)} must be from 0 to 1: the share of traces that are kept")
    return share


def _seconds_at_least(lowest_ms: int) -> Any:
    def read(text: object, what: str) -> int:
        ms = _duration(text, what)
        if not lowest_ms <= ms <= 3_600_000:
            raise ConfigurationError(f"{what}={shown(text)} must be from {lowest_ms // 1000}s to 1h")
        return ms

    return read


def _words(text: object, what: str) -> tuple[str, ...]:
    if isinstance(text, Mapping):
        text = [f"{name}={weight}" for name, weight in text.items()]
    items = text.split(",") if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
    names = tuple(str(item).strip() for item in items if str(item).strip())
    if not names:
        raise ConfigurationError(f"{what} must name at least one queue, as 'a,b' or 'a=6,b=1'")
    return names


def _list_of(what_it_is: str, pattern: str) -> Any:
    """Answer a reader of a list of words, each matching `pattern`; an empty list is fine."""

    def read(text: object, what: str) -> tuple[str, ...]:
        items = text.split(",") if isinstance(text, str) else text if isinstance(text, list | tuple) else [text]
        words = tuple(str(item).strip() for item in items if str(item).strip())
        for word in words:
            if not re.fullmatch(pattern, word):
                raise ConfigurationError(f"{what}: {shown(word)} is no {what_it_is}")
        return words

    return read


#: Characters of a token, and how many of them at least: 22 carry 128 bits where all are as likely.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{22,512}", re.ASCII)
_TOKEN_PREFIX = re.compile(
    r"((?:read|submit|work|admin)(?:@[A-Za-z0-9._-]{1,128}(?:\+[A-Za-z0-9._-]{1,128})*)?):", re.ASCII
)
_TOKEN_VARIETY_MIN = 8


def _tokens(text: object, what: str) -> tuple[str, ...]:
    """Read `[ROLE[@queue+queue]:]TOKEN, …` and keep only the hash of each token: `ROLE[@queue+queue]:sha256:HEX`.

    So no value of the settings ever holds a token. No message repeats one either.
    """
    items = text.split(",") if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else [text]
    read = []
    for number, item in enumerate((str(item).strip() for item in items if str(item).strip()), start=1):
        prefix = _TOKEN_PREFIX.match(item)
        scope, token = (prefix[1], item[prefix.end() :]) if prefix is not None else ("admin", item)
        digest = token.removeprefix("sha256:").lower()
        if not token.startswith("sha256:"):
            if not _TOKEN.fullmatch(token) or len(set(token)) < _TOKEN_VARIETY_MIN:
                raise ConfigurationError(
                    f"{what}: token {number} must be 22 to 512 characters of A-Z a-z 0-9 . _ ~ + / = - that nobody can "
                    "guess, after an optional role and queues, as read: or work@mail+default: ; "
                    "make one with: packhorse tokens create NAME"
                )
            digest = sha256(token.encode()).hexdigest()
        elif not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ConfigurationError(f"{what}: token {number} must have 64 hexadecimal digits after sha256:")
        read.append(f"{scope}:sha256:{digest}")
    return tuple(read)


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


# Webhooks are the server's: whoever has none loads nothing of them.
def _webhooks(value: object, what: str) -> tuple[Webhook, ...]:
    from .webhook import read_webhooks

    return read_webhooks(value, what)


def _webhooks_allow(value: object, what: str) -> tuple[str, ...]:
    from .webhook import read_networks

    return read_networks(value, what)


_READERS: dict[str, Any] = {
    "url": _text,
    "token": _text,
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
    "log_jobs": _choice("some", "all", "none"),
    "keep_log": _choice("debug", "info", "warning", "error", "off"),
    "metrics": _address,
    "tracing": _tracing,
    "tracing_sample": _share,
    "blocked_ms": _duration,
    "host": _host,
    "port": _port,
    "tokens": _tokens,
    "tokens_file": _text,
    "allowed_hosts": _list_of(
        "host name; write names or addresses as a URL has them, as jobs.example.com, *.example.com, 10.0.0.5:8080",
        r"(\*\.)?[A-Za-z0-9_-]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?",
    ),
    "redact": _list_of("part of a key; write words of 2 to 64 letters, digits, _ or -", r"[A-Za-z0-9_-]{2,64}"),
    "read_timeout_ms": _seconds_at_least(1_000),
    "write_timeout_ms": _seconds_at_least(1_000),
    "webhooks": _webhooks,
    "webhooks_allow": _webhooks_allow,
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
    "SERVER_HOST": ("host", _host),
    "SERVER_PORT": ("port", _port),
    "SERVER_READ_TIMEOUT": ("read_timeout_ms", _seconds_at_least(1_000)),
    "SERVER_WRITE_TIMEOUT": ("write_timeout_ms", _seconds_at_least(1_000)),
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
            warnings.warn(f"{name} and {other_name} disagree; {name} is used", SettingsWarning, stacklevel=4)
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
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}") from None
