"""The backends that the suite runs on here, each with an empty store for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.testing.conformance import HarnessFactory, harness_factory


@pytest.fixture(params=["memory://", "sqlite://"], ids=["memory", "sqlite"])
def make_harness(request: pytest.FixtureRequest, tmp_path: Path) -> HarnessFactory:
    """What makes a harness on an empty store of each backend."""
    return harness_factory(request.param, tmp_path)
