"""Started as `python -m packhorse.leash FD ARGUMENT...`: the command `packhorse ARGUMENT...` on a leash.

Whoever started it holds the other end of the pipe FD. When that process is gone, even by `kill -9`, the pipe is closed,
and the command stops as if it was told by SIGTERM: no server leaves a worker behind, no `dev` a server, no demo either.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

#: Hands on to such a command the `--url` that its holder was given: on a command line everybody would see a password.
GIVEN_URL = "PACKHORSE_GIVEN_URL"
#: Names a socket of its holder to such a `worker`: there it tells what it counts.
TELL_FD = "PACKHORSE_TELL_FD"


def is_held() -> bool:
    """Answer whether this process is such a command: its holder has read the same settings, and said what is odd."""
    return "packhorse.leash" in sys.orig_argv


def _watch(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def hold(fd: int) -> None:
    """Put this process on the leash of the pipe `fd`."""
    os.set_inheritable(fd, False)  # what it starts must not hold on to the pipe
    threading.Thread(target=_watch, args=(fd,), name="leash", daemon=True).start()


def main() -> None:
    """Run the command until it ends or its holder is gone."""
    import runpy

    hold(int(sys.argv[1]))
    sys.argv[:] = ["packhorse", *sys.argv[2:]]
    runpy.run_module("packhorse", run_name="__main__")


if __name__ == "__main__":
    main()
