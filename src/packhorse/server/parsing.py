"""From the bytes of a body to a struct, strictly. Large ones are read beside the event loop, one at a time.

Parsed JSON is many times larger than its text, and 8 MiB of it take a second: whoever else asks would wait for that.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import msgspec

from .. import codec
from ..errors import InvalidPayload
from .problems import Fault, Problem

#: From this size on a body is read in the thread; below, handing it over costs more than reading it.
BESIDE_BYTES = 64 << 10

#: Objects and lists in a body, about: each is 64 bytes and more once it is read, though it may be 2 bytes of text. One
#: payload has fewer, whatever is in it.
CONTAINERS_MAX = 600_000

#: How many levels above a payload a body may have, for structs that do not say it as `payload_depth`.
_DEPTH = 4

T = TypeVar("T", bound=msgspec.Struct)


async def parse_body(data: bytes, kind: type[T], bytes_max: int) -> T:
    """Read JSON into a struct. Raises Problem (422), with the place, or (413).

    What lies in it at the struct's `payload_depth` has been checked as `codec` checks payloads, but for its size.
    """
    if len(data) < BESIDE_BYTES:
        return _parse(data, kind, bytes_max)
    return await asyncio.get_running_loop().run_in_executor(_reader(), _parse, data, kind, bytes_max)


@cache
def _reader() -> ThreadPoolExecutor:
    """Answer the one thread; more of them would only hold more parsed bodies in memory."""
    return ThreadPoolExecutor(1, thread_name_prefix="packhorse-parsing")


def _parse(data: bytes, kind: type[T], bytes_max: int) -> T:
    if len(data) > CONTAINERS_MAX and data.count(b"[") + data.count(b"{") > CONTAINERS_MAX:
        detail = f"more than {CONTAINERS_MAX:,} objects and lists are in it; send it in parts"
        raise Problem(413, "too-large", "The body is too large", detail)
    try:
        value = codec.parse(data, bytes_max, depth=1 - getattr(kind, "payload_depth", _DEPTH))
    except InvalidPayload as error:
        raise _refused(str(error), error.pointer) from None
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        pointer = place.rstrip("`").replace("[...]", "/-").replace("[", "/").replace("]", "").replace(".", "/")
        raise _refused(f"{message} (at {pointer or 'the top level'})", pointer) from None


def _refused(detail: str, pointer: str) -> Problem:
    fault = Fault(detail[:500], pointer=pointer)
    return Problem(422, "invalid-body", "The body is not what this takes", detail[:500], faults=(fault,))
