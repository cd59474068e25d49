"""From what a server, or something on the way to it, answers in place of an answer to the error that it stands for."""

from __future__ import annotations

from typing import Any

import msgspec

from ... import errors
from ...errors import ConfigurationError, PackhorseError, Refused, Unavailable
from . import wire

#: The errors of a server's problem documents, by the last part of `type`, each with the fields it carries there.
KINDS: dict[str, tuple[type[PackhorseError], dict[str, Any]]] = {
    "too-large": (errors.PayloadTooLarge, {"pointer": ""}),
    "invalid-payload": (errors.InvalidPayload, {"pointer": ""}),
    "invalid-name": (errors.InvalidName, {}),
    "invalid-option": (errors.InvalidOption, {}),
    "unknown-type": (errors.UnknownType, {}),
    "unknown-parent": (errors.UnknownParent, {"parent": ""}),
    "results-too-large": (errors.ResultsTooLarge, {"parents": 0, "bytes_max": 0}),
    "unique-conflict": (errors.UniqueConflict, {"unique": "", "holder": ""}),
    "idempotency-conflict": (errors.IdempotencyConflict, {"job_id": ""}),
    "queue-full": (errors.QueueFull, {"queue": "", "capacity": 0, "retry_after_ms": 1_000, "stored": 0}),
    "forbidden": (errors.Forbidden, {}),
    "out-of-scope": (errors.OutOfScope, {"queue": None}),
    "unsupported": (errors.Unsupported, {"flag": ""}),
    "not-found": (errors.NotFound, {}),
    "unavailable": (errors.Unavailable, {}),
    "store-full": (errors.StoreFull, {}),
    "schema-mismatch": (errors.SchemaMismatch, {"found": 0, "wanted": 0}),
    "misconfigured": (errors.ConfigurationError, {}),
    "refused": (errors.Refused, {}),
    "internal": (errors.PackhorseError, {}),
}

PREFIX = "urn:packhorse:"
MEDIA_TYPE = "application/problem+json"
_TEXT_CHARS_MAX = 2_000


class _Fault(msgspec.Struct):
    detail: str = ""
    pointer: str | None = None


class _Document(msgspec.Struct):
    """The fields of a problem document that are read; what else it has belongs to its kind."""

    type: str = ""
    title: str = ""
    detail: str = ""
    errors: list[_Fault] = []


_read = msgspec.json.Decoder(_Document).decode
_read_fields = msgspec.json.Decoder(dict[str, Any]).decode


class Answered(msgspec.Struct, frozen=True):
    """What came back: a status, what the body says it is, and the body, or its beginning."""

    status: int
    media_type: str
    body: bytes
    location: str = ""  # where a redirect leads


def error_of(answer: Answered, shown: str, *, opened: bool) -> PackhorseError:
    """Answer the error of an answer that is none. `shown` names the server, `opened` says that it has answered before.

    What is wrong when a program starts is a wrong setting; later on, the same passes or is for somebody to mend while
    we try again, and no outcome of a job must depend on it.
    """
    document = _document(answer) if answer.media_type == MEDIA_TYPE else None
    if document is None:
        return _of_stranger(answer, shown, opened=opened)
    words = _short(document.detail or document.title or f"status {answer.status}")
    if answer.status == 401:
        kind: type[PackhorseError] = Unavailable if opened else ConfigurationError
        return kind(
            f"{shown!r} refuses the token, or there is none; give one that is good there in PACKHORSE_TOKEN, "
            "or as https://:TOKEN@host (`packhorse tokens create` makes one, beside that server)"
        )
    found = KINDS.get(document.type.removeprefix(PREFIX))
    if found is not None and document.type.startswith(PREFIX):
        return _restored(*found, words, document, answer.body)
    if answer.status in {408, 425, 429} or answer.status >= 500:
        title = f"{_short(document.title)}: " if document.title and document.detail else ""
        return Unavailable(f"{shown!r}: {title}{words}")
    return Refused(f"{shown!r}: {words}")


def _document(answer: Answered) -> _Document | None:
    try:
        return _read(answer.body)
    except wire.UNREADABLE:
        return None


def _restored(
    kind: type[PackhorseError], fields: dict[str, Any], words: str, document: _Document, body: bytes
) -> PackhorseError:
    """Make an error with the words and fields it had at the server. Its own `__init__` would word it anew."""
    error = kind.__new__(kind, words)
    given = _read_fields(body)
    if document.errors and document.errors[0].pointer is not None:
        given["pointer"] = document.errors[0].pointer
    for name, default in fields.items():
        value = given.get(name)
        kind_of_field = str if default is None else type(default)
        setattr(error, name, value if type(value) is kind_of_field else default)
    return error


def _of_stranger(answer: Answered, shown: str, *, opened: bool) -> PackhorseError:
    """Answer the error of an answer that no server of ours gave: a proxy, another program, a wrong path."""
    status = answer.status
    if status in {502, 503, 504} or status >= 500:
        return Unavailable(f"{shown!r}: something in between answered {status}; the server itself may be away")
    if status == 413:
        return Refused(
            f"{shown!r}: something in between takes no body of this size; let it pass 16 MiB "
            "(client_max_body_size of nginx), or send fewer jobs a call"
        )
    if opened:
        return Unavailable(f"{shown!r}: something in between answered {status}, not the server")
    if 300 <= status < 400:
        where = f" to {_short(answer.location)!r}" if answer.location else ""
        return ConfigurationError(f"{shown!r} redirects{where}, which is not followed; give the URL it leads to")
    if status == 407:
        return ConfigurationError(f"{shown!r}: the proxy wants a login; write proxy=http://user:password@host:port")
    if status in {401, 403}:
        return ConfigurationError(f"{shown!r}: something in between refuses us ({status}), not the server")
    return ConfigurationError(
        f"{shown!r} is no server of packhorse (status {status}, {_short(answer.media_type) or 'no type'}); "
        "give the URL where `packhorse serve` listens, with the path it is mounted at"
    )


def _short(text: str) -> str:
    clean = "".join(char if char.isprintable() else " " for char in text[:_TEXT_CHARS_MAX])
    return clean if len(text) <= _TEXT_CHARS_MAX else f"{clean}…"
