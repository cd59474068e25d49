"""All chance goes through here, ids too: the lint forbids `random` and `uuid` everywhere else.

A seeded `Chance` makes a whole worker repeat itself, which is what the simulator lives on.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A source of random numbers and of UUIDv7 ids (RFC 9562) that rise within one process."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(int.from_bytes(os.urandom(16)) if seed is None else seed)
        self._lock = threading.Lock()
        self._last_ms = 0
        self._counter = 0

    def uniform(self, low: float, high: float) -> float:
        """Answer a number between `low` and `high`."""
        return self._random.uniform(low, high)

    def below(self, limit: int) -> int:
        """Answer a whole number from 0 to `limit - 1`."""
        return self._random.randrange(limit)

    def bits(self, count: int) -> int:
        """Answer `count` random bits."""
        return self._random.getrandbits(count)

    def happens(self, likelihood: float) -> bool:
        """Answer True with this likelihood, 0.0 to 1.0."""
        return self._random.random() < likelihood

    def choice(self, items: Sequence[T]) -> T:
        """Answer one of `items`, of which there is at least one."""
        return self._random.choice(items)

    def shuffle(self, items: list[object]) -> None:
        """Bring `items` into a random order, in place."""
        self._random.shuffle(items)

    def ids(self, now_ms: int, count: int) -> list[str]:
        """Make `count` new ids, each larger than any this object made before.

        Layout: 48 bits of ms, 12 + 14 bits of a counter that starts anew each ms (RFC 9562 section 6.2
        method 1), 48 random bits. A counter that overflows borrows the next ms.
        """
        ids = []
        getrandbits = self._random.getrandbits
        with self._lock:
            if now_ms > self._last_ms:
                self._last_ms = now_ms
                self._counter = getrandbits(24)  # half of the counter's range stays free
            last_ms, counter = self._last_ms, self._counter
            for _ in range(count):
                counter += 1
                if counter >= 1 << 26:
                    last_ms += 1
                    counter = 0
                time_hex = f"{last_ms:012x}"
                ids.append(
                    f"{time_hex[:8]}-{time_hex[8:]}-7{counter >> 14:03x}-"
                    f"{0x8000 | (counter & 0x3FFF):04x}-{getrandbits(48):012x}"
                )
            self._last_ms, self._counter = last_ms, counter
        return ids

    def id(self, now_ms: int) -> str:
        """Make one new id."""
        return self.ids(now_ms, 1)[0]


def named_id(*parts: str) -> str:
    """Answer the one id that belongs to these names: a UUIDv8 (RFC 9562) of a hash of them.

    Whoever asks for the same gets the same, so that enqueueing it twice makes one job.
    """
    digest = bytearray(
        blake2b(b"".join(b"%d:%b" % (len(p := part.encode()), p) for part in parts), digest_size=16).digest()
    )
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_named_id(job_id: str) -> bool:
    """Tell whether an id was made by `named_id`."""
    return len(job_id) == 36 and job_id[14] == "8"


def secret_hex(count_bytes: int = 16) -> str:
    """Answer bytes nobody can guess, from the operating system, as hex."""
    return os.urandom(count_bytes).hex()


CHANCE = Chance()


def _reseed_after_fork() -> None:
    # A forked child would otherwise make the very ids of its parent. test_ids_differ_after_fork.
    CHANCE.__init__()  # type: ignore[misc]  # the object is shared by reference, so it is renewed in place


os.register_at_fork(after_in_child=_reseed_after_fork)
