"""`import packhorse` costs little: no backend, no command line, no worker is loaded before it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

#: Never loaded by `import packhorse`, with what would load them.
NOT_LOADED = {
    "sqlite3": "a sqlite:// URL",
    "click": "the command line",
    "rich": "the command line",
    "multiprocessing": "nothing",
    "concurrent.futures.process": "nothing",
    "http.server": "the server",
    "opentelemetry": "an app whose tracing is on",
    "prometheus_client": "the first scrape",
    "pytest": "the test plugin",
    "uvloop": "a runner process",
    "cronsim": "a schedule",
    "zoneinfo": "a schedule",
    "packhorse.schedule": "a schedule",
    "packhorse.recurring": "a schedule",
    "packhorse.workflow": "a workflow",
    "packhorse.parents": "a job that asks for its parents",
    "packhorse.steps": "a durable step",
    "packhorse.backends.memory": "a memory:// URL",
    "packhorse.backends.sqlite": "a sqlite:// URL",
    "packhorse.worker": "app.worker() or the command line",
    "packhorse.admin": "the command line",
    "packhorse.cli": "the command line",
    "packhorse.testing": "a test",
    "packhorse.demo": "the demo",
}

#: All that is loaded of packhorse itself. A new line here is a decision: every program that enqueues pays for it.
LOADED = {
    "packhorse",
    "packhorse.app",
    "packhorse.arguments",
    "packhorse.backends",
    "packhorse.backends.base",
    "packhorse.backends.bells",
    "packhorse.backends.bound",
    "packhorse.backends.messages",
    "packhorse.backends.opening",
    "packhorse.backends.rules",
    "packhorse.chance",
    "packhorse.client",
    "packhorse.clock",
    "packhorse.codec",
    "packhorse.composing",
    "packhorse.connecting",
    "packhorse.context",
    "packhorse.enqueueing",
    "packhorse.errors",
    "packhorse.failing",
    "packhorse.inherited",
    "packhorse.job",
    "packhorse.limiting",
    "packhorse.measuring",
    "packhorse.observe",
    "packhorse.observe.current",
    "packhorse.observe.labels",
    "packhorse.observe.meters",
    "packhorse.observe.metrics",
    "packhorse.observe.writing",
    "packhorse.options",
    "packhorse.outcome",
    "packhorse.retry",
    "packhorse.scheduling",
    "packhorse.settings",
    "packhorse.sync",
    "packhorse.task",
    "packhorse.transaction",
    "packhorse.wording",
}

_PROGRAM = """
import sys
before = set(sys.modules)
from packhorse import Packhorse
app = Packhorse("memory://")
@app.task
def work(n: int) -> None: ...
import json
print(json.dumps(sorted(set(sys.modules))))
"""


def test_importing_packhorse_and_registering_a_task_loads_little():
    # Not under the measuring of coverage, which imports modules of its own into every process.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True, env=environ
    )
    modules = set(json.loads(done.stdout))
    assert {name for name in NOT_LOADED if name in modules} == set()
    assert {name for name in modules if name == "packhorse" or name.startswith("packhorse.")} == LOADED
    roots = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"packhorse"}
    assert {root for root in roots if root in {"click", "rich", "pydantic", "attrs", "attr", "markdown_it"}} == set()
    assert "msgspec" in roots  # the one dependency of the enqueueing side


def test_every_name_of_the_package_can_be_imported():
    import packhorse

    assert packhorse.__all__ == sorted(packhorse.__all__)
    for name in packhorse.__all__:
        assert getattr(packhorse, name) is not None
