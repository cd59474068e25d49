"""An app on an empty memory store for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from packhorse import Packhorse

_numbers = itertools.count()


@pytest.fixture
def app() -> Iterator[Packhorse]:
    """An app that nothing else shares its jobs with."""
    with Packhorse(f"memory://app-test-{next(_numbers)}") as fresh:
        yield fresh
