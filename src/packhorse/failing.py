"""The app's word for failures. What is told is in `observe.failures`, imported when a hook is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from .observe.failures import Failure, FailureHook
    from .task import Task

AnyHook = TypeVar("AnyHook", bound="Callable[[Failure], Any]")


class Failing:
    """The part of an app that has to do with failures."""

    failure_hooks: list[FailureHook]
    middlewares: list[Callable[..., Any]]

    @overload
    def on_failure(
        self, hook: AnyHook, /, *, final: bool = False, types: Iterable[str | Task[..., Any]] = ()
    ) -> AnyHook: ...
    @overload
    def on_failure(
        self, /, *, final: bool = False, types: Iterable[str | Task[..., Any]] = ()
    ) -> Callable[[AnyHook], AnyHook]: ...
    def on_failure(self, hook: Any = None, /, *, final: bool = False, types: Iterable[object] = ()) -> Any:
        """Call a function for each attempt that failed, once the store has taken it: `def hook(failure): ...`.

        `async def` or `def` (in a thread), with a `packhorse.Failure`. `final=True`: only when the job goes to the dead
        letter queue; `types`: only of these. In workers that start later; at least once while they live, and it cannot
        delay or change a job. Raises ConfigurationError for what is no such function.
        """
        from .observe.failures import FailureHook

        chosen = tuple(types) if not isinstance(types, str) else types

        def register(function: Any) -> Any:
            self.failure_hooks.append(FailureHook(function, final=final, types=chosen))
            middleware = getattr(function, "middleware", None)
            if callable(middleware) and middleware not in self.middlewares:
                self.middlewares.insert(0, middleware)  # outermost: it may keep what the run leaves behind
            return function

        return register if hook is None else register(hook)
