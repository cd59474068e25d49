"""What a case is: one rule of the contract, named by its function, and the few checks it is written with.

The checks are functions, not `assert`: the suite ships, and must judge the same under `python -O`.
"""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from ...errors import PackhorseError
from .harness import Harness

Body = Callable[[Harness], Coroutine[Any, Any, None]]
Raised = TypeVar("Raised", bound=BaseException)

#: No case may take longer: a backend that hangs is reported like one that answers wrongly.
CASE_SECONDS_MAX = 60


class Broken(AssertionError):
    """A backend did not do what the contract says."""


class Case(msgspec.Struct, frozen=True):
    """One rule. `rows` are the rows of FAILURES.md it answers, `needs` what it cannot be asked without."""

    topic: str
    name: str
    body: Body
    rows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.topic}:{self.name}"


_registered: dict[str, Case] = {}


def case(*rows: str, needs: tuple[str, ...] = ()) -> Callable[[Body], Body]:
    """Register a function as a case; its module is the topic and its name the rule."""

    def register(body: Body) -> Body:
        add_case(Case(body.__module__.rpartition(".")[2], body.__name__, body, rows, needs))
        return body

    return register


def add_case(new: Case) -> None:
    """Register a case that was derived, for instance from the table of transitions."""
    if str(new) in _registered:
        raise ValueError(f"two cases are named {new}")
    _registered[str(new)] = new


def registered() -> list[Case]:
    """Answer all cases registered so far, in the order of their files."""
    return list(_registered.values())


async def run_on(one: Case, harness: Harness) -> None:
    """Run a case on a harness; raises Broken (or whatever the backend raised), SkipTest where it cannot be asked."""
    async with harness:
        missing = [need for need in one.needs if not harness.has(need)]
        if missing:
            raise unittest.SkipTest(f"needs {', '.join(missing)}")
        async with asyncio.timeout(CASE_SECONDS_MAX):
            await one.body(harness)


# ---- checks ----------------------------------------------------------------------------------------------


def equal(actual: object, expected: object, what: str) -> None:
    """Fail unless both are equal; `what` says what was compared."""
    if actual != expected:
        raise Broken(f"{what}: expected {_shown(expected)}, got {_shown(actual)}")


def true(condition: object, what: str) -> None:
    """Fail unless `condition` holds; `what` says the rule."""
    if not condition:
        raise Broken(what)


async def raises(kind: type[Raised], call: Awaitable[object], what: str) -> Raised:
    """Fail unless the call raises `kind`; answers the error."""
    try:
        answer = await call
    except kind as error:
        return error
    except PackhorseError as error:
        raise Broken(f"{what}: expected {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise Broken(f"{what}: expected {kind.__name__}, got the answer {_shown(answer)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:400]} … {text[-180:]}"
