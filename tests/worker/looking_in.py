"""What the tests that look into live workers share: workers whose sockets no other worker's are beside."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.worker import control
from packhorse.worker.control import Answer, Question, ask, runners_here
from tests.crash.harness import Lab, Worker


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own, with a path short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="ph-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setattr(control, "directories", lambda: [directory / "packhorse", directory / "packhorse-other"])
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def lab(tmp_path: Path, runtime: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()


def ready(lab: Lab, *options: str) -> Worker:
    """Start a worker of the crash app and wait until it can be asked."""
    worker = lab.worker(*options)
    lab.until(lambda: bool(lab.live_workers()) and bool(runners_here()), 30, "the worker is ready")
    return worker


def ask_runner(question: type[Question], *args: object) -> Answer:
    """Ask about the one runner there is."""
    (found,) = runners_here()
    return ask(found.path, question(found.kept.worker, *args), 30)


def trouble(lab: Lab) -> str:
    """What the store shows to be wrong with the one worker there is."""
    return "".join(worker.trouble for worker in lab.live_workers())
