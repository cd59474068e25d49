"""Each test gets an empty directory, an environment without settings, and a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.backends import opening
from packhorse.backends.memory import MemoryStore
from packhorse.clock import SYSTEM_CLOCK

from .kit import Cli, clean_environ


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    kept = clean_environ()
    import os

    for name in set(os.environ) - set(kept):
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, with PACKHORSE_URL naming a store in this process."""
    found = Cli(MemoryStore(SYSTEM_CLOCK))
    monkeypatch.setitem(opening._registered, "clitest", lambda url, clock: found.backend())
    monkeypatch.setenv("PACKHORSE_URL", "clitest://store")
    return found
