"""Long lists in calls of a size that a server takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Bytes in one of several calls, about: a larger item travels alone.
PORTION_BYTES = 8 << 20


def portions(items: Sequence[T], bytes_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Divide items into calls, in their order; one call where all fit, also where there are none."""
    start = total = 0
    for place, item in enumerate(items):
        size = bytes_of(item)
        if place > start and total + size > PORTION_BYTES:
            yield items[start:place]
            start, total = place, 0
        total += size
    yield items[start:]
