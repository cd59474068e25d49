"""Starts a runner process. Imports next to nothing, so that a runner loads its modules while its keeper still does."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import NamedTuple

from .page import Page


class Launched(NamedTuple):
    """A runner process that waits for its Setup. It ends by itself when `end` is closed."""

    process: subprocess.Popen[bytes]
    end: socket.socket
    page: Page
    inspection_end: socket.socket


def launch() -> Launched:
    """Start a runner process in a session of its own, so that its whole tree can be ended with it."""
    ours, theirs = socket.socketpair()
    inspecting, inspected = socket.socketpair()
    page = Page.create()
    passed = (theirs.fileno(), page.fd, inspected.fileno())
    process = subprocess.Popen(
        [sys.executable, "-m", "packhorse.worker.runner_process", *map(str, passed)],
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    inspected.close()
    return Launched(process, ours, page, inspecting)
