"""A handler that forks leaves a second copy of the runner behind, which must never go on running jobs.

The copy knows by this flag what it is. When the handler's code returns in it, it exits at once, without closing
anything that belongs to its parent.
"""

from __future__ import annotations

import os

_is_copy = False


def _mark() -> None:
    global _is_copy
    _is_copy = True


os.register_at_fork(after_in_child=_mark)


def end_copy() -> None:
    """End this process if it is a forked copy of a runner."""
    if _is_copy:
        os._exit(0)
