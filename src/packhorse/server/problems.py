"""Errors as `application/problem+json` (RFC 9457): one table from the product's errors to HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .. import errors
from .access import Unauthorized

MEDIA_TYPE = "application/problem+json"

#: How long a client that asks again at once is told to wait, ms, where the error does not know better.
RETRY_AFTER_MS = 1_000


class Fault(msgspec.Struct, frozen=True):
    """One wrong place of a request: `pointer` (RFC 6901) into the body, or `parameter` of the URL or header."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(errors.PackhorseError):
    """An error that says itself how it looks over HTTP."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str = "",
        *,
        faults: tuple[Fault, ...] = (),
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = detail
        self.faults = faults
        self.fields = dict(fields or {})
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Answer the document."""
        document: dict[str, Any] = {"type": f"urn:packhorse:{self.kind}", "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        if self.faults:
            document["errors"] = [
                {name: value for name, value in msgspec.structs.asdict(fault).items() if value is not None}
                for fault in self.faults
            ]
        return msgspec.json.encode(document | self.fields)


#: Status, kind and title of each error, the most special first.
_TABLE: tuple[tuple[type[Exception], int, str, str], ...] = (
    (errors.PayloadTooLarge, 413, "too-large", "The payload is too large"),
    (errors.InvalidPayload, 422, "invalid-payload", "The payload is not accepted"),
    (errors.InvalidName, 422, "invalid-name", "A name has characters that are not allowed"),
    (errors.InvalidOption, 422, "invalid-option", "An option is out of bounds"),
    (errors.UnknownType, 422, "unknown-type", "No task of this type is registered"),
    (errors.UnknownParent, 422, "unknown-parent", "A parent is not there"),
    (errors.ResultsTooLarge, 422, "results-too-large", "The results of the parents are too large"),
    (errors.UniqueConflict, 409, "unique-conflict", "A live job holds the unique key"),
    (errors.IdempotencyConflict, 409, "idempotency-conflict", "The idempotency key belongs to another job"),
    (errors.QueueFull, 429, "queue-full", "The queue is full"),
    (errors.OutOfScope, 403, "out-of-scope", "This caller is for other queues"),
    (errors.Unsupported, 501, "unsupported", "This store cannot do it"),
    (errors.NotFound, 404, "not-found", "There is no such thing"),
    (Unauthorized, 401, "unauthorized", "A token is needed"),
    (errors.Forbidden, 403, "forbidden", "This caller may not do it"),
    (errors.StoreFull, 503, "store-full", "The store has no room"),
    (errors.Unavailable, 503, "unavailable", "The store does not answer"),
    (errors.SchemaMismatch, 503, "schema-mismatch", "The store was made by another version"),
    (errors.ConfigurationError, 503, "misconfigured", "The server cannot work as it is configured"),
    (errors.Refused, 422, "refused", "The request was refused"),
)

#: Fields of errors that a program on the other end needs.
_FIELDS = (
    "unique",
    "holder",
    "job_id",
    "parent",
    "queue",
    "capacity",
    "retry_after_ms",
    "stored",
    "flag",
    "parents",
    "bytes_max",
    "found",
    "wanted",
)


def as_problem(error: Exception, *, in_query: bool = False) -> Problem | None:
    """Answer how an error looks over HTTP; None for one that is not of ours. What is wrong with the URL is a 400."""
    if isinstance(error, Problem):
        return error
    found = next((row for row in _TABLE if isinstance(error, row[0])), None)
    if found is None:
        return None
    _, status, name, title = found
    fields = {field: value for field in _FIELDS if (value := getattr(error, field, None)) is not None}
    headers = {}
    if status in {429, 503}:
        retry_after_ms = fields.get("retry_after_ms") or RETRY_AFTER_MS
        headers["Retry-After"] = str(-(-retry_after_ms // 1_000))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="packhorse"'
    pointer = getattr(error, "pointer", None)
    faults = () if pointer is None else (Fault(str(error), pointer=pointer),)
    if in_query and status == 422:
        status = 400
    return Problem(status, name, title, str(error), faults=faults, fields=fields, headers=headers)
