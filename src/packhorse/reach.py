"""What a run can reach of the store while it runs, wherever its handler is: on the loop, in a thread, in a child."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from .backends.base import Bound, Note
from .job import JobRecord


class Reach(Protocol):
    """Verbs of the store, each for async and for blocking code. `stop` is set when the run is to stop."""

    steps: bool  # whether the store remembers steps

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        """Look jobs up by id, at most 1,000. Raises Unavailable."""
        ...

    async def keep(self, note: Note) -> None:
        """Return once the note is durable. Raises LeaseLost if the job belongs to another run by now."""
        ...

    def get_blocking(self, ids: Sequence[str], stop: threading.Event) -> list[JobRecord | None]:
        """Look jobs up, from a thread that is not the loop's."""
        ...

    def bind(self, connection: object) -> Bound:
        """Take part in the handler's transaction on a connection of its own, in the process that has it."""
        ...

    def keep_blocking(self, note: Note, stop: threading.Event) -> None:
        """Return once the note is durable, from a thread that is not the loop's."""
        ...
