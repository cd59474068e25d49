"""Where a store is: what a URL says, checked, before anything is connected."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ...errors import ConfigurationError
from ..opening import redact

DEFAULT_PREFIX = "packhorse"
DEFAULT_TIMEOUT_S = 5.0
TIMEOUT_S_MAX = 600.0
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Parameters that go to the driver as they are.
_TLS = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs"})
_TEXTS = frozenset({"username", "password", "client_name"})
_SENTINEL = frozenset({"sentinel_username", "sentinel_password"})
_OWN = frozenset({"prefix", "timeout", "db", "ssl_check_hostname"})


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A store on a server. `options` are the driver's, `hosts` those that the URL names."""

    kind: str  # single, unix, sentinel or cluster
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""  # of a Unix socket
    master: str = ""  # its name, as the sentinels know it
    prefix: str = DEFAULT_PREFIX
    timeout_s: float = DEFAULT_TIMEOUT_S
    options: dict[str, Any] = {}
    sentinel_options: dict[str, Any] = {}
    shown: str = ""  # the URL without its password

    def key(self, name: str) -> str:
        """Answer the full name of a key. All of a store lie in one slot of a Cluster."""
        return f"{{{self.prefix}}}:{name}"


def parse_url(url: str) -> Location:
    """Read a URL; raises ConfigurationError that says what can be written instead."""
    shown = redact(url)
    try:
        parts = urlsplit(url)
        hosts = _hosts(parts.netloc.rpartition("@")[2], shown, parts.scheme)
    except ValueError:
        raise ConfigurationError(f"{shown!r} cannot be read; write redis://user:password@host:6379/0") from None
    scheme = parts.scheme.lower()
    given = _parameters(parts.query, shown)
    sentinel_options = {name[len("sentinel_") :]: given.pop(name) for name in sorted(_SENTINEL & given.keys())}
    own = {name: given.pop(name) for name in sorted(_OWN & given.keys())}
    options: dict[str, Any] = dict(given)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    kind = "unix" if scheme == "unix+redis" else scheme.partition("+")[2] or "single"
    if scheme.startswith(("rediss", "valkeys")):
        options["ssl"] = True
        if "ssl_check_hostname" in own:
            options["ssl_check_hostname"] = own["ssl_check_hostname"].lower() not in {"0", "false", "no"}
    elif any(name.startswith("ssl_") for name in [*options, *own]):
        raise ConfigurationError(f"{shown!r} has TLS parameters; write rediss:// to use TLS")
    path = unquote(parts.path)
    master = ""
    if kind == "sentinel":
        master, _, path = path.lstrip("/").partition("/")
        if not master:
            raise ConfigurationError(f"{shown!r} names no master; write redis+sentinel://host:26379/MASTERNAME/0")
    elif kind == "unix":
        hosts, path = (), ""
    options["db"] = _database(own.get("db", path.strip("/")), kind, shown)
    return Location(
        kind=kind,
        hosts=hosts,
        path=unquote(parts.path) if kind == "unix" else "",
        master=unquote(master),
        prefix=_prefix(own.get("prefix", DEFAULT_PREFIX)),
        timeout_s=_timeout_s(own.get("timeout", str(DEFAULT_TIMEOUT_S))),
        options=options,
        sentinel_options=sentinel_options,
        shown=shown,
    )


def _hosts(netloc: str, shown: str, scheme: str) -> tuple[tuple[str, int], ...]:
    port = DEFAULT_SENTINEL_PORT if scheme.endswith("+sentinel") else DEFAULT_PORT
    hosts = []
    for part in netloc.split(","):
        one = urlsplit(f"//{part}")
        hosts.append((one.hostname or "localhost", one.port or port))
    if len(hosts) > 1 and "+" not in scheme:
        raise ConfigurationError(f"{shown!r} names several hosts; only redis+sentinel:// and redis+cluster:// can")
    return tuple(hosts)


def _parameters(query: str, shown: str) -> dict[str, str]:
    known = _TLS | _TEXTS | _SENTINEL | _OWN
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"{shown!r}: there is no parameter {name[:40]!r}; there are {', '.join(sorted(known))}"
            )
    return given


def _database(text: str, kind: str, shown: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ConfigurationError(f"{shown!r}: the database must be a number, as in redis://host/0")
    if kind == "cluster" and int(text):
        raise ConfigurationError(f"{shown!r}: a Cluster has only database 0; tell stores apart by prefix=")
    return int(text)


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ConfigurationError(f"prefix={text[:80]!r}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return text


def _timeout_s(text: str) -> float:
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0.01 <= timeout_s <= TIMEOUT_S_MAX:
        raise ConfigurationError(f"timeout={text[:40]!r}: give seconds, from 0.01 to {TIMEOUT_S_MAX:.0f}")
    return timeout_s
