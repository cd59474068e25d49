"""Moves inside of a transaction that belongs to the caller: what `Backend.bind` answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from ..errors import InvalidOption
from ..job import JobRecord, JobSpec
from .messages import Capabilities, Enqueued, Settlement, Verdict

T = TypeVar("T")


class Bound(ABC):
    """A connection of the caller's, with verbs that are part of the transaction that is open on it.

    Each verb does what the verb of `Backend` does, but takes effect when the caller's transaction commits, and leaves
    nothing when it is rolled back: no job, no held key, no room taken, no child freed. Until the commit others see
    nothing of it; those who want a unique key that it took wait for its end. Who waits for jobs is woken at the commit.

    It never commits and never rolls the caller's work back. A verb that raises has undone its own part only, and the
    transaction can go on. It raises what the verb raises; InvalidOption where no transaction is open that the caller
    could commit, so that nothing is ever committed on its own; and Unavailable where the transaction cannot go on,
    with the remedy. A verb that was cancelled (asyncio) has done nothing, but the driver may have given the caller's
    transaction up.

    Used by one caller at a time, as the connection is.
    """

    #: Whether it is a connection for blocking code. Its verbs then never wait for an event loop, and `run` runs them.
    blocking: bool
    capabilities: Capabilities

    @abstractmethod
    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        """Store jobs when the transaction commits: all of them or, with an error, none. See `Backend.enqueue`."""

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """End attempts when the transaction commits. See `Backend.settle`.

        From here to the commit nobody else can move these jobs: do it last. Rolled back, the attempt goes on and its
        token holds. STALE says that another run has the job: then the caller must roll back.
        """

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        """Look jobs up by id as the transaction sees them. See `Backend.get`."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine made of these verbs here, in this thread, with or without an event loop.

        Raises InvalidOption if the connection is not one for blocking code.
        """
        if not self.blocking:
            coroutine.close()
            raise InvalidOption(
                "connection: this one is for async code; there `await` the same with an `a` before it (aenqueue), "
                "or use a blocking connection"
            )
        try:
            coroutine.send(None)
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        coroutine.close()
        raise RuntimeError("this waits for an event loop, which blocking code on the caller's connection has none of")
