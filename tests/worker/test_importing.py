"""What is imported: an app that cannot be is shown as the operator's own code; a worker loads little at its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from packhorse.errors import ConfigurationError
from packhorse.worker.importing import import_app, own_traceback


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def shown_of(path: str) -> str:
    with pytest.raises(Exception) as raised:
        import_app(path)
    return "".join(traceback.format_exception(raised.type, raised.value, own_traceback(raised.value)))


def test_only_the_lines_of_the_app_are_shown(here: Path) -> None:
    (here / "app_one.py").write_text("import app_two\n")
    (here / "app_two.py").write_text("def load():\n    return {}['key']\nload()\n")
    shown = shown_of("app_one:app")
    assert [line.split('"')[1] for line in shown.splitlines() if line.startswith("  File")] == [
        str(here / "app_one.py"),
        str(here / "app_two.py"),
        str(here / "app_two.py"),
    ]
    assert shown.endswith("KeyError: 'key'\n")


def test_a_file_that_is_no_python_is_shown_at_its_place(here: Path) -> None:
    (here / "app_three.py").write_text("app = (\n")
    shown = shown_of("app_three")
    assert shown.count("  File ") == 1
    assert 'app_three.py", line 1' in shown


def test_an_error_from_elsewhere_is_shown_whole() -> None:
    with pytest.raises(LookupError) as raised:
        {}["key"]
    assert own_traceback(raised.value) is raised.value.__traceback__


def test_a_module_that_ends_the_program_is_refused_with_the_remedy(here: Path) -> None:
    (here / "app_four.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ConfigurationError, match=r"app_four ends the program .*exit code 3.*__main__"):
        import_app("app_four:app")


#: What a worker must not wait for at its start, with what would load it.
LOADED_LATER = {
    "tomllib": "a file of settings",
    "sqlite3": "a sqlite:// URL",
    "ctypes": "a sqlite:// URL",
    "zoneinfo": "a schedule",
    "email": "nothing",
    "http": "nothing",
    "multiprocessing": "nothing",
    "opentelemetry": "an app whose tracing is on",
    "uvloop": "the event loop",
    "click": "the command line",
    "rich": "the command line",
    "packhorse.admin": "the command line",
    "packhorse.cli": "the command line",
    "packhorse.server": "the server, or metrics of a worker",
    "packhorse.posting": "an app that posts failures",
    "packhorse.worker.telling": "an app with failure hooks",
    "packhorse.observe.spans": "an app whose tracing is on",
    "packhorse.workflow": "a workflow",
    "packhorse.steps": "a durable step",
    "packhorse.testing": "a test",
}


@pytest.mark.parametrize("process", ["runner_process", "keeper"])
def test_a_worker_loads_at_its_start_what_it_needs(process: str) -> None:
    # Not under the measuring of coverage, which imports modules of its own into every process.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    code = f"import sys, json, packhorse.worker.{process}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environ
    )
    assert set(json.loads(done.stdout)) & set(LOADED_LATER) == set()
