"""A fork waits until no other thread is in the middle of a move.

A child has the memory of its parent but none of its other threads. What one of them had half done stays half done
there, and a lock that it held is never let go: the child would hang at its first call.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from ..clock import SYSTEM_CLOCK

#: How long a fork waits at most, all in all: a disk may stand still.
WAIT_MS_MAX = 5_000


class Moving(Protocol):
    """Something whose moves are made under locks."""

    def locks(self) -> list[threading.Lock]:
        """Answer the locks; each is held for the time of a move only."""
        ...

    def before_fork(self) -> None:
        """Let go of what no child may have. Only called while all the locks are held."""
        ...

    def after_fork_in_child(self) -> None:
        """Begin anew with locks that nobody holds."""
        ...


#: In the order they came; what is taken while another is held must come before that.
_moving: weakref.WeakKeyDictionary[Moving, None] = weakref.WeakKeyDictionary()
_held: list[threading.Lock] = []
_forking = threading.Lock()


def stand_still_for_forks(moving: Moving) -> None:
    """Let every fork from now on wait for the moves of `moving`, as long as that lives."""
    _moving[moving] = None


def _before() -> None:
    give_up_at_ms = SYSTEM_CLOCK.boot_ms() + WAIT_MS_MAX
    _forking.acquire()
    still = [moving for moving in reversed(list(_moving)) if _hold(moving.locks(), give_up_at_ms)]
    for moving in still:
        moving.before_fork()


def _hold(locks: list[threading.Lock], give_up_at_ms: int) -> bool:
    """Take `locks`, as many as there is time for; answers whether that was all."""
    taken = [lock for lock in locks if lock.acquire(timeout=max(0, give_up_at_ms - SYSTEM_CLOCK.boot_ms()) / 1000)]
    _held.extend(taken)
    return len(taken) == len(locks)


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _after_in_child() -> None:
    global _forking
    _held.clear()
    _forking = threading.Lock()
    for moving in list(_moving):
        moving.after_fork_in_child()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
