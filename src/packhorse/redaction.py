"""Hiding what looks secret by its key, wherever payloads, results and meta are shown (FAILURES C20).

By substrings of the key, never by patterns: no key can make it slow (C24). The value itself is not judged, so a secret
in a text stays: `{"to": "…", "password": "***"}`, but `"my password is …"`. In texts of errors and in log lines
passwords of URLs are hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from . import codec
from .errors import InvalidPayload
from .job import JobRecord

#: What is shown instead.
HIDDEN = "***"

#: Parts of keys whose values are hidden; case and separators do not matter: `api_key` is also `API-Key` and `apiKey`.
WORDS = (
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "authorization",
    "cookie",
    "privatekey",
    "credential",
)

_SEPARATORS = str.maketrans("", "", "_- .")
_KEY_CHARS_REMEMBERED = 80


def words_with(own: Iterable[str] = ()) -> tuple[str, ...]:
    """Answer the parts of keys to hide: the usual ones and one's own, as the setting `redact` names them."""
    return tuple(dict.fromkeys([*WORDS, *filter(None, map(_squeezed, own))]))


def looks_secret(key: str, words: tuple[str, ...] = WORDS) -> bool:
    """Answer whether the value of a key is to be hidden."""
    return _judged(key, words) if len(key) <= _KEY_CHARS_REMEMBERED else _judge(key, words)


def redacted(value: Any, words: tuple[str, ...] = WORDS) -> Any:
    """Answer a JSON value with what is secret hidden; the value itself is left as it is.

    All that stands under such a key is hidden, whatever it is; only null, true, false and "" say nothing.
    """
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(key, str) and looks_secret(key, words) and not _says_nothing(item)
            else redacted(item, words)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item, words) for item in value]
    return value


def redacted_json(data: bytes, words: tuple[str, ...] = WORDS) -> bytes:
    """Answer stored JSON with what is secret hidden; the very same bytes where nothing is, or where it is no JSON."""
    if not data or b"{" not in data:
        return data
    try:
        value = codec.decode(data)
    except (InvalidPayload, RecursionError):
        return data
    shown = redacted(value, words)
    return data if shown == value else msgspec.json.encode(shown)


def redacted_record(record: JobRecord, words: tuple[str, ...] = WORDS) -> JobRecord:
    """Answer a job with what is secret in its payload, result, steps and meta hidden."""
    steps = record.steps
    return msgspec.structs.replace(
        record,
        payload=redacted_json(record.payload, words),
        result=None if record.result is None else redacted_json(record.result, words),
        meta=None if record.meta is None else redacted(record.meta, words),
        steps=None if steps is None else {name: redacted_json(result, words) for name, result in steps.items()},
    )


def _says_nothing(value: Any) -> bool:
    return value is None or value is True or value is False or value == ""


def _squeezed(text: str) -> str:
    return text.lower().translate(_SEPARATORS)


def _judge(key: str, words: tuple[str, ...]) -> bool:
    squeezed = _squeezed(key)
    return any(word in squeezed for word in words)


_judged = lru_cache(4_096)(_judge)


def without_passwords(text: str) -> str:
    """Answer `text` without passwords and tokens in URLs. Takes time as its length, no more."""
    if "://" not in text or ("@" not in text and "?" not in text):
        return text
    head, *rest = text.split("://")
    return "://".join(
        [head, *(_hidden_in_url(part, before) for part, before in zip(rest, [head, *rest], strict=False))]
    )


def _hidden_in_url(part: str, before: str) -> str:
    """Hide what is secret in what follows a `://`, up to the first white space."""
    end = next((place for place, char in enumerate(part) if char.isspace()), len(part))
    url, rest = part[:end], part[end:]
    path = min((place for char in "/?#" if (place := url.find(char)) >= 0), default=len(url))
    at = url.rfind("@", 0, path)
    if at < 0 and not _is_port(url[:path].rpartition(":")[2]):
        at = url.rfind("@")  # people paste passwords with / ? # in them
    if at >= 0:
        user, colon, _ = url[:at].partition(":")
        if colon:
            url = f"{user}:{HIDDEN}{url[at:]}"
        elif before[-5:].lower().endswith(("http", "https")) and at < path:  # a token in place of a name
            url = f"{HIDDEN}{url[at:]}"
    if "?" in url:
        url, _, query = url.partition("?")
        url += "?" + "&".join(_hidden_parameter(pair) for pair in query.split("&"))
    return url + rest


def _is_port(text: str) -> bool:
    return text.isdigit()


def _hidden_parameter(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={HIDDEN}" if value and looks_secret(name) else name + equals + value
