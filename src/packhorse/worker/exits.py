"""How a process ended, in words that go into the errors of its jobs; and what it says last before it ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress

#: How long the end of a process waits for a reader of its output.
_FLUSH_S = 1.0


def said_exit(code: int) -> str:
    """Answer `died by signal 9 (SIGKILL)` for a code below 0, else `ended with exit code 3`."""
    return f"died by signal {-code} ({_name(-code)})" if code < 0 else f"ended with exit code {code}"


def _name(number: int) -> str:
    """Answer the name of a signal. Python names of the real-time ones only the first and the last."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", None)
        return f"SIGRTMIN+{number - first}" if first is not None and number > first else "no name"


def flush_output() -> None:
    """Write out what handlers have printed. Blocks as long as its reader does."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, none at all, nobody reads it, or made by the user
            stream.flush()


def flush_last() -> None:
    """Do that before `os._exit`, but wait for a reader only for a moment."""
    flushing = threading.Thread(target=flush_output, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_S)
