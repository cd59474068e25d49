"""What a forked child has of its parent and must leave alone: connections, and the event loops that watch them.

A child may neither use them nor close them. Closing takes what the parent waits for out of the kernel's list that both
share (epoll), ends TLS sessions, or says goodbye to a server in the parent's name. And Python closes whatever it frees.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Heir(Protocol):
    """Something that has connections."""

    def after_fork_in_child(self) -> None:
        """Leave what it has to the parent (see `leave_alone`), and begin anew."""


_heirs: weakref.WeakSet[Heir] = weakref.WeakSet()


def tell_of_forks(heir: Heir) -> None:
    """Call `heir.after_fork_in_child` in every child from now on, as long as that lives."""
    _heirs.add(heir)


def leave_alone(thing: object) -> None:
    """Give `thing` a reference that nobody ever drops: it is not freed even when the interpreter ends."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before() -> None:
    if _heirs:
        import ctypes  # noqa: F401  # in the child, a thread that is not there could be in the middle of that


def _after_in_child() -> None:
    for heir in list(_heirs):
        heir.after_fork_in_child()


os.register_at_fork(before=_before, after_in_child=_after_in_child)
