"""A handler that forks leaves a second copy of the runner behind, which must never go on running jobs.

Each runner notes at its start how many forks lie behind it. Where a handler's code gives control back, a copy sees
that the number has changed, and exits at once, without closing anything that belongs to its parent. A program that
forks and starts a worker of its own in the child is no copy: that worker notes the number after the fork.
"""

from __future__ import annotations

import os

_forks = 0


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)


def forks() -> int:
    """Answer how many forks lie between this process and the first; a runner notes it when it starts."""
    return _forks


def end_copy(forks_at_start: int) -> None:
    """End this process if it is a forked copy of a runner that started after `forks_at_start` forks."""
    if _forks != forks_at_start:
        os._exit(0)
