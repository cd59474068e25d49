"""The parts that the JSON shapes of all things are made of, the same in every shell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import codec
from .clock import to_rfc3339
from .errors import InvalidPayload

UNDECODABLE_BYTES_SHOWN = 64


def value_json(data: bytes) -> Any:
    """Answer stored JSON as a value. What is not JSON must not keep the other jobs of a page from being shown."""
    try:
        return codec.decode(data)
    except (InvalidPayload, RecursionError):
        shown = bytes(data[:UNDECODABLE_BYTES_SHOWN]).hex()
        return {"undecodable": shown + ("…" if len(data) > UNDECODABLE_BYTES_SHOWN else "")}


def instant_json(instant_ms: int | None) -> str | None:
    """Answer an instant as RFC 3339 in UTC; None stays None."""
    if instant_ms is None:
        return None
    try:
        return to_rfc3339(instant_ms)
    except (ValueError, OverflowError, OSError):  # a year past 9999, which a store can hold and RFC 3339 cannot say
        return f"{instant_ms} ms"


def list_json(items: Iterable[dict[str, Any]], next_cursor: str | None = None) -> dict[str, Any]:
    """Answer the one JSON of a list: `items`, and the cursor of the `next` page or null."""
    return {"items": list(items), "next": next_cursor}
