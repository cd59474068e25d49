"""Where a server is: what a URL says, checked, before anything is connected."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ...errors import ConfigurationError
from ..opening import redact

DEFAULT_TIMEOUT_S = 10.0
TIMEOUT_S_MAX = 600.0

#: What a header may carry: no space, no line break, nothing that is not ASCII (RFC 6750, section 2.1, and a bit more).
_TOKEN = re.compile(r"[!-~]{1,1024}")
_PARAMETERS = frozenset({"timeout", "verify", "proxy"})


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A server. `base` is its URL without secrets and parameters, with the path that it is mounted at."""

    base: str
    shown: str  # the URL without its token, for messages
    token: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S  # to connect, and between two signs of life of an answer
    verify: str | None = None  # a file of certificates to trust, instead of the system's
    proxy: str | None = None
    is_secret_in_clear: bool = False  # a token, no TLS, and another machine


def parse_url(url: str) -> Location:
    """Read a URL; raises ConfigurationError that says what can be written instead."""
    shown = redact(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f"{shown!r} cannot be read; write https://:TOKEN@host:8080") from None
    scheme = parts.scheme.lower()
    if not host or parts.fragment or not _is_plain(host + parts.path):
        raise ConfigurationError(f"{shown!r} names no server; write https://:TOKEN@host:8080")
    if "@" in f"{parts.path}?{parts.query}":  # half of a token, and the other half is taken for the host
        raise ConfigurationError(f"{shown!r}: an @ behind the host; write @ / ? # of a token as %40 %2F %3F %23")
    given = _parameters(parts.query, shown)
    if scheme == "http" and "verify" in given:
        raise ConfigurationError(f"{shown!r}: verify= is for TLS; write https:// to use it")
    token = _token(parts.netloc, shown)
    place = f"[{host}]" if ":" in host else host
    return Location(
        base=f"{scheme}://{place}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}",
        shown=shown,
        token=token,
        timeout_s=_timeout_s(given.get("timeout", str(DEFAULT_TIMEOUT_S))),
        verify=given.get("verify"),
        proxy=given.get("proxy"),
        is_secret_in_clear=token is not None and scheme == "http" and not _is_loopback(host),
    )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text and "\\" not in text


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _token(netloc: str, shown: str) -> str | None:
    """Answer the token in a URL: `https://:TOKEN@host`, or with any name before the colon, or in place of the name."""
    user, _, password = netloc.rpartition("@")[0].partition(":")
    token = unquote(password or user)
    if not token:
        return None
    if not _TOKEN.fullmatch(token):
        raise ConfigurationError(f"{shown!r}: a token has up to 1,024 characters of ASCII and no space")
    return token


def _parameters(query: str, shown: str) -> dict[str, str]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in given.items():
        if name not in _PARAMETERS:
            raise ConfigurationError(
                f"{shown!r}: there is no parameter {name[:40]!r}; there are {', '.join(sorted(_PARAMETERS))}"
            )
        if not value:
            raise ConfigurationError(f"{shown!r}: {name}= has no value")
    if "proxy" in given and urlsplit(given["proxy"]).scheme not in {"http", "https"}:
        raise ConfigurationError(f"{shown!r}: proxy= must be the URL of a proxy, as http://proxy.example:3128")
    return given


def _timeout_s(text: str) -> float:
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0.01 <= timeout_s <= TIMEOUT_S_MAX:
        raise ConfigurationError(f"timeout={text[:40]!r}: give seconds, from 0.01 to {TIMEOUT_S_MAX:.0f}")
    return timeout_s
