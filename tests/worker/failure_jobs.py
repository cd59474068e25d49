"""An app whose failures are written to a file, for real workers: each line is one call of its hook."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from packhorse import Context, Failure, Packhorse

app = Packhorse(os.environ.get("FAILURES_URL", "memory://failure-jobs"), name="failure_jobs")


@app.on_failure
def write_down(failure: Failure) -> None:
    """Append a line about a failure."""
    line = {
        "pid": os.getpid(),
        "id": failure.id,
        "type": failure.type,
        "attempt": failure.attempt,
        "final": failure.final,
        "kind": failure.error_kind,
        "message": failure.message,
        "lapsed": failure.lapsed,
        "error": repr(failure.error),
    }
    with Path(os.environ["FAILURES_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@app.task(max_attempts=2, backoff="10ms", timeout="60s")
async def die(ctx: Context, how: str) -> str:
    """Take the runner's process along."""
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill once":
            if ctx.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return "survived"
    return how


@app.task(max_attempts=1, executor="process")
def fail_in_child() -> None:
    """Raise in a child process."""
    raise ValueError("from the child")


@app.task(max_attempts=1, timeout="60s")
def never_stops() -> None:
    """Ignore whoever asks it to stop."""
    time.sleep(60)  # not a test's waiting: a handler that cannot be stopped
