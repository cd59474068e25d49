"""Started as `python -m packhorse.demo.leash FD ARGUMENT...`: the command `packhorse ARGUMENT...` on a leash.

The demo holds the other end of the pipe FD. When the demo is gone, even by `kill -9`, the pipe is closed, and the
worker stops itself as if it was told by SIGTERM: no demo leaves a worker behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _watch(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command until it ends or the demo is gone."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # the worker's own children must not hold the leash
    threading.Thread(target=_watch, args=(fd,), name="leash", daemon=True).start()
    sys.argv[:] = ["packhorse", *sys.argv[2:]]
    runpy.run_module("packhorse", run_name="__main__")


if __name__ == "__main__":
    main()
