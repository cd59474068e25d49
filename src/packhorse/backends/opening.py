"""From a URL to a backend. Each backend is imported only when its URL is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ..clock import SYSTEM_CLOCK, Clock
from ..errors import ConfigurationError
from .base import Backend

if TYPE_CHECKING:
    from ..settings import Settings

BackendFactory = Callable[[str, Clock], Backend]

_POSTGRES = frozenset({"postgresql", "postgres"})
_HTTP = frozenset({"http", "https"})
#: With `+cluster` and `+sentinel` for those, an `s` for TLS, and Valkey's own names.
_REDIS = frozenset(
    {
        "redis",
        "rediss",
        "valkey",
        "valkeys",
        "unix+redis",
        "redis+sentinel",
        "rediss+sentinel",
        "redis+cluster",
        "rediss+cluster",
    }
)

#: What all backends on servers call their store where nobody names it.
DEFAULT_NAMESPACE = "packhorse"

#: Where an installed package names its backends, by scheme.
ENTRY_POINTS = "packhorse.backends"

#: Up to the last @ of all: people paste passwords with @ : / ? # in them.
_PASSWORD = re.compile(r"(://[^:/?#@]*):(.*)@", re.DOTALL)
_PASSWORD_BEFORE_PATH = re.compile(r"://[^/?#:]*:([^/?#]*)@")
#: host:port, and an @ somewhere later.
_NO_PASSWORD = re.compile(r"://[^:/?#@]*:[0-9]+[/?#]")
#: Drivers take passwords as parameters too: sslpassword, sentinel_password ...
_SECRET_PARAMETER = re.compile(r"([?&;][^=&#]*(?:password|passwd|pwd|token|secret)=)([^&#]*)", re.IGNORECASE)

#: A token may stand in place of the user's name: of a server of ours all before the @ is hidden.
_HTTP_USER = re.compile(r"^(\s*https?://)(.*)@", re.DOTALL | re.IGNORECASE)
#: A proxy's URL is a URL in a URL, perhaps with a password of its own, however it is written.
_PROXY = re.compile(r"([?&]proxy=)([^&#]*)", re.IGNORECASE)

_registered: dict[str, BackendFactory] = {}
_memory_stores: dict[tuple[str, int], object] = {}


def register_backend(scheme: str, factory: BackendFactory) -> None:
    """Make URLs of `scheme` open with `factory(url, clock)`. For backends made outside of packhorse.

    A package that is installed can do the same without being imported: an entry point of the group
    `packhorse.backends`, named as the scheme. docs/backends.md.
    """
    _registered[scheme] = factory


def open_backend(url: str, clock: Clock = SYSTEM_CLOCK) -> Backend:
    """Make the backend for `url`; its `open()` connects. Raises ConfigurationError for a URL that names none."""
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError:
        raise ConfigurationError("the URL cannot be read; use sqlite:///FILE or memory://") from None
    if scheme in _registered:
        return _registered[scheme](url, clock)
    if scheme == "memory":
        return _memory(url, clock)
    if scheme == "sqlite":
        from .sqlite import SQLiteBackend

        return SQLiteBackend(url, clock)
    if scheme in _POSTGRES or scheme in _REDIS:
        _refuse_raw_password(url)
    if scheme in _POSTGRES:
        return _from_extra("postgres", "psycopg", "PostgresBackend", url, clock)
    if scheme in _REDIS:
        return _from_extra("redis", "redis", "RedisBackend", url, clock)
    if scheme in _HTTP:
        return _from_extra("http", "aiohttp", "HTTPBackend", url, clock, module="http.backend")
    installed = _installed(scheme)
    if installed is not None:
        return installed(url, clock)
    raise ConfigurationError(
        f"{redact(url)!r} names no backend; use sqlite:///FILE (three slashes: relative, four: absolute), memory://, "
        "postgresql://…, redis://…, or https://… of a server"
    )


def _installed(scheme: str) -> BackendFactory | None:
    """Answer the factory that an installed package names for `scheme`, imported now; None if no package does."""
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINTS, name=scheme):
        try:
            factory: BackendFactory = entry_point.load()
        except Exception as error:  # the package is not ours, whatever it raises
            raise ConfigurationError(
                f"{scheme}:// is to be opened by {entry_point.value}, which cannot be imported: {error}; reinstall it"
            ) from error
        return factory
    return None


def _from_extra(extra: str, driver: str, name: str, url: str, clock: Clock, *, module: str | None = None) -> Backend:
    """Make a backend whose driver is an extra."""
    import importlib.util

    if importlib.util.find_spec(driver) is None:
        raise ConfigurationError(f"{redact(url)!r} needs the {extra} driver: pip install 'packhorse[{extra}]'")
    found = importlib.import_module(f".{module or extra}", __package__)
    backend: Backend = getattr(found, name)(url, clock)
    return backend


def in_namespace(url: str, namespace: str) -> str:
    """Answer the URL of a store among others on the same server: its schema or prefix, where the URL names none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # whoever opens it says so
    scheme = parts.scheme.lower()
    parameter = "schema" if scheme in _POSTGRES else "prefix" if scheme in _REDIS else None
    if parameter is None or namespace == DEFAULT_NAMESPACE or parameter in dict(parse_qsl(parts.query)):
        return url
    return f"{url}{'&' if parts.query else '?'}{parameter}={quote(namespace, safe='')}"


def store_url(settings: Settings) -> str:
    """Answer the URL of the store that the settings mean, with all that stands beside it: namespace and token."""
    return with_token(in_namespace(settings.url, settings.namespace), settings.token)


def with_token(url: str, token: str | None) -> str:
    """Answer the URL of a server with its token, where it has none of its own. Other URLs stay as they are."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # whoever opens it says so
    if not token or parts.scheme.lower() not in _HTTP or "@" in parts.netloc:
        return url
    return parts._replace(netloc=f":{quote(token, safe='')}@{parts.netloc}").geturl()


def _memory(url: str, clock: Clock) -> Backend:
    """One store per URL and process: `memory://` is shared by all who name it, `memory://a` is another."""
    from .memory import MemoryBackend, MemoryStore

    store = _memory_stores.setdefault((url, id(clock)), MemoryStore(clock))
    assert isinstance(store, MemoryStore)
    return MemoryBackend(store)


def forget_memory(url: str, clock: Clock) -> None:
    """Let the memory store of `url` go: its jobs are gone once nobody uses them. For tests, which make many."""
    _memory_stores.pop((url, id(clock)), None)


def redact(url: str) -> str:
    """Write a URL without its password or token, for messages and logs (FAILURES B40)."""
    if _is_http(url):
        shown = _HTTP_USER.sub(r"\1***@", _PROXY.sub(r"\1***", url))
    else:
        shown = url if _NO_PASSWORD.search(url) else _PASSWORD.sub(r"\1:***@", url)
    return _SECRET_PARAMETER.sub(r"\1***", shown)


def secrets_of(url: str) -> set[str]:
    """Answer the passwords and tokens a URL carries, as written and as meant."""
    found = {match[2] for match in _SECRET_PARAMETER.finditer(url)}
    if _is_http(url):
        proxies = [unquote(match[2]) for match in _PROXY.finditer(url)]
        found |= {match[2] for proxy in proxies for match in _PASSWORD.finditer(proxy)}
        user = _HTTP_USER.match(_PROXY.sub(r"\1", url))
        if user is not None:
            name, colon, password = user[2].partition(":")
            found.add(password if colon and password else name)
    elif not _NO_PASSWORD.search(url):
        found |= {match[2] for match in _PASSWORD.finditer(url)}
        found |= {match[1] for match in _PASSWORD_BEFORE_PATH.finditer(url)}
    return {secret for raw in found for secret in (raw, unquote(raw)) if secret}


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Answer `text`, mostly of an error, without these passwords and tokens (FAILURES B40, C20)."""
    for secret in sorted(secrets, key=len, reverse=True):
        # As a word of its own: the password `postgres` is no reason to maim `postgresql`.
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", "***", text)
    return text


def _is_http(url: str) -> bool:
    return url.lstrip()[:8].lower().startswith(("http://", "https://"))


def _refuse_raw_password(url: str) -> None:
    """Refuse a password that a driver would cut in two: what it takes for the host then stands in its messages."""
    match = None if _NO_PASSWORD.search(url) else _PASSWORD.search(url)
    if match is not None and any(char in match[2] for char in "@/?#"):
        raise ConfigurationError(
            f"{redact(url)!r}: the password has one of @ / ? # in it; write these as %40 %2F %3F %23"
        )
