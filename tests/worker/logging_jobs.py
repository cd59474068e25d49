"""Tasks that log, for child processes: at module level, so that a child finds them by import."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

from packhorse import Context, Packhorse
from packhorse.observe.current import CURRENT_WORKER

app = Packhorse("memory://logging-jobs")
log = logging.getLogger("shop")


@app.task(executor="process")
def sell(ctx: Context, times: int = 1) -> None:
    """Log through loggers of three kinds."""
    log.setLevel("INFO")
    for number in range(times):
        log.info("sold %d in %d", number, os.getpid())
    logging.getLogger("library.inner").warning("low stock")
    ctx.log.error("gone", extra={"article": "cup"})


@app.task(executor="process", max_attempts=1)
def die_talking(marks: str) -> None:
    """Log, wait until that was sent, and die."""
    log.setLevel("INFO")
    log.info("last words")
    lines = keeper_of_lines()
    while lines._waiting is not None:
        time.sleep(0.01)
    with lines._sending:  # it is on its way, and then it is sent
        os.kill(os.getpid(), signal.SIGKILL)


def keeper_of_lines() -> Any:
    """What takes the lines of this run: in a child process it sends them, beside the runner it keeps them."""
    here = CURRENT_WORKER.get()
    assert here is not None
    return getattr(here.keep, "__self__", None)


def fork() -> int | None:
    """Fork while another thread holds the lock of the logs; answers how a copy ended that logs, None if it hangs."""
    log.setLevel("INFO")
    log.info("before")
    keeper = keeper_of_lines()
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with keeper._guard:
            held.set()
            let_go.wait(20)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait(20)
    copy = os.fork()
    if not copy:
        log.info("in the copy")
        os._exit(0)
    let_go.set()
    holding.join()
    answer = _ended(copy)
    log.info("after")
    return answer


app.task("fork", executor="process")(fork)


def _ended(pid: int) -> int | None:
    for _ in range(500):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
