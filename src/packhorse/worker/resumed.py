"""Driving a coroutine that was started elsewhere, step by step in a context of its own."""

from __future__ import annotations

import contextvars
from collections.abc import Generator
from typing import Any

from .forking import end_copy


class Resumed:
    """The rest of a coroutine that was started in `context` and waits for `waiting`."""

    __slots__ = ("_context", "_coroutine", "_forks", "_waiting")

    def __init__(self, coroutine: Any, context: contextvars.Context, waiting: Any, forks_at_start: int) -> None:
        self._forks = forks_at_start
        self._coroutine = coroutine
        self._context = context
        self._waiting = waiting

    @property
    def coroutine(self) -> Any:
        """The coroutine that waits."""
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw, waiting = self._context.run, self._coroutine.send, self._coroutine.throw, self._waiting
        while True:
            try:
                value = yield waiting
            except BaseException as error:  # passed on, not handled
                step, argument = throw, error
            else:
                step, argument = send, value
            try:
                waiting = run(step, argument)
            except StopIteration as stop:
                return stop.value
            end_copy(self._forks)  # a copy must not wait in a copy of the loop. test_a_copy_that_waits_ends
