"""A data directory of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.demo.files import DIRECTORY_VARIABLE


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's data directory, for handlers that are called in this process."""
    directory = tmp_path / "data"
    directory.mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))
    return directory
