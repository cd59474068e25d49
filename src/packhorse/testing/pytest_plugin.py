"""What pytest loads from packhorse: two fixtures that put an app on a fresh memory store for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from packhorse import Packhorse


@pytest.fixture
def packhorse_inline() -> Iterator[Callable[[Packhorse], Packhorse]]:
    """Call it with an app: until the test ends, its jobs run right when they are enqueued."""
    from packhorse.testing.inline import inline

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(inline(app))


@pytest.fixture
def packhorse_stored() -> Iterator[Callable[[Packhorse], Packhorse]]:
    """Call it with an app: until the test ends, its jobs are kept and run only by `drain`."""
    from packhorse.testing.inline import stored

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(stored(app))
