"""What the memory backend keeps of other stores: jobs that are there, and how far moves from and to them have come."""

from __future__ import annotations

import msgspec

from ..chance import CHANCE


class Absent(msgspec.Struct):
    """A job that is in another store: it left since `at_ms`, or is to come from the store `source`."""

    at_ms: int
    children: dict[str, None]
    source: str | None = None


class Transfers:
    """What a store keeps of moves: where it stands with each other store, and what is on the way."""

    def __init__(self) -> None:
        self.store_id = ""
        self.numbers: dict[str, int] = {}  # store → number of the last batch handed over to it
        self.departing: tuple[str, bytes] | None = None  # to which store, and the batch
        self.arrived: dict[str, int] = {}  # store → number of the last batch taken over from it
        self.held: dict[str, bytes] = {}  # store → that batch, while it is not live

    def identity(self, now_ms: int) -> str:
        """Answer the identity of this store."""
        if not self.store_id:
            self.store_id = CHANCE.id(now_ms)
        return self.store_id
