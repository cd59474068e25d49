"""The backends that the suite runs on here, each with an empty store for every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.testing.conformance import HarnessFactory, harness_factory
from tests.servers import BACKENDS, is_left_behind, new_name, with_parameter


@pytest.fixture(scope="session")
def directory_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where files are made: in memory if there is such a place, for no case here pulls the plug (tests/sqlite does)."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("stores")
        return
    for old in memory.iterdir():
        if is_left_behind(old.name):
            shutil.rmtree(old, ignore_errors=True)
    found = memory / new_name()
    found.mkdir(0o700)
    try:
        yield found
    finally:
        shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def directory(directory_of_this_run: Path) -> Path:
    """A directory of this test's own."""
    return Path(tempfile.mkdtemp(dir=directory_of_this_run))


@pytest.fixture(params=BACKENDS)
def make_harness(request: pytest.FixtureRequest, directory: Path) -> HarnessFactory:
    """What makes a harness on an empty store of each backend."""
    if request.param in {"memory", "sqlite"}:
        return harness_factory(f"{request.param}://", directory)
    from packhorse.testing.conformance.stores import PostgresHarness, RedisHarness

    if request.param == "postgres":
        # One schema for all cases: each empties it, which is quicker than to make one.
        url = with_parameter(request.getfixturevalue("database_of_this_run"), "schema", "conformance")
        return lambda: PostgresHarness(url)
    prefix = request.getfixturevalue("prefix_of_this_run")
    return lambda: RedisHarness(prefix)
