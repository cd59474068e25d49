"""Enqueueing in a transaction of the caller's own: the jobs are there if it commits, and were never there if not."""

from __future__ import annotations

import threading
from collections.abc import Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .enqueueing import Store
from .errors import InvalidOption

if TYPE_CHECKING:
    from .app import Packhorse
    from .backends.base import Bound, Capabilities
    from .client import Job
    from .job import JobSpec
    from .task import Task

T = TypeVar("T")

_innermost: ContextVar[Transaction | None] = ContextVar("packhorse_transaction", default=None)


def current(app: Packhorse) -> Transaction | None:
    """Answer the innermost `app.transaction` block of this app that this thread runs in."""
    one = _innermost.get()
    while one is not None and not (one.app is app and one.covers_this_thread):
        one = one.outer
    return one


class Transaction:
    """What `app.transaction(connection)` answers: enqueues through `connection`, and tells the app to, in a block."""

    def __init__(self, app: Packhorse, connection: object) -> None:
        self.app = app
        self.outer: Transaction | None = None
        self._connection = connection
        self._bound: Bound | None = None
        self._thread = 0  # where its block runs; 0: it does not

    # ---- the block -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._refuse_again()
        self.bind()
        return self._begin()

    def __exit__(self, *exc_info: object) -> None:
        self._end()

    async def __aenter__(self) -> Self:
        self._refuse_again()
        await self.abind()
        return self._begin()

    async def __aexit__(self, *exc_info: object) -> None:
        self._end()

    def _refuse_again(self) -> None:
        if self._thread:
            raise RuntimeError("this block is entered already; call app.transaction(connection) again")

    def _begin(self) -> Self:
        self.outer = _innermost.get()
        self._thread = threading.get_ident()
        _innermost.set(self)
        return self

    def _end(self) -> None:
        # Tasks that were started in the block have a copy of the variable, and may live on: they look at the thread.
        self._thread = 0
        if _innermost.get() is self:  # the end of a generator's block may come in another context
            _innermost.set(self.outer)

    @property
    def covers_this_thread(self) -> bool:
        """Whether its block is not over, and runs in this thread: a connection belongs to one."""
        return self._thread == threading.get_ident()

    # ---- the connection --------------------------------------------------------------------------------

    def bind(self) -> Self:
        """Take the connection to the app's store, for blocking code. Raises InvalidOption, Unsupported."""
        self._bound = self.app.portal.call(self.app.backend()).bind(self._connection)
        return self

    async def abind(self) -> Self:
        """Take the connection to the app's store, in async code. Raises InvalidOption, Unsupported."""
        self._bound = (await self.app.backend()).bind(self._connection)
        return self

    @property
    def bound(self) -> Bound:
        """The connection with verbs. Only within the block."""
        if self._bound is None:
            raise RuntimeError("use it in its block: with app.transaction(connection) as tx: ...")
        return self._bound

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self.bound.capabilities

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that enqueues through this transaction, for blocking code: here, in its own thread."""
        try:
            bound = self.bound
        except RuntimeError:
            coroutine.close()
            raise
        return bound.run(coroutine)

    async def store(self, specs: list[JobSpec]) -> list[Job[Any]]:
        """Store jobs made before, in batches of 1,000. A full queue is QueueFull at once."""
        store = Store(self.bound, self.app.chance, 0, together=True, tracing=self.app.tracing())
        return self.app.handles(specs, await store(specs))

    # ---- enqueueing ------------------------------------------------------------------------------------

    def enqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Job[Any]:
        """Store a job by task or type when the transaction commits; see `Packhorse.enqueue`."""
        return self.run(self.aenqueue(task, payload, **options))

    async def aenqueue(self, task: Task[..., Any] | str, payload: object = None, /, **options: Any) -> Job[Any]:
        """Store a job by task or type when the transaction commits, in async code; see `Packhorse.enqueue`."""
        if "full_timeout" in options:
            raise InvalidOption("full_timeout: in a transaction no enqueue waits for room; leave it out")
        return (await self.store([self.app.spec(task, payload, options)]))[0]

    def enqueue_many(self, jobs: Iterable[JobSpec | Mapping[str, Any] | tuple[Any, ...]]) -> list[Job[Any]]:
        """Store many jobs when the transaction commits; see `Packhorse.enqueue_many`."""
        return self.run(self.aenqueue_many(jobs))

    async def aenqueue_many(self, jobs: Iterable[JobSpec | Mapping[str, Any] | tuple[Any, ...]]) -> list[Job[Any]]:
        """Store many jobs when the transaction commits, in async code; see `Packhorse.enqueue_many`."""
        return await self.store(self.app.specs(jobs))
