"""Blocking code's way into async code: one background thread with one event loop, started when first needed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import Unavailable

T = TypeVar("T")


class Portal:
    """Runs coroutines for blocking callers. Many threads may call at once; their calls are batched below."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _portals.add(self)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the background loop and answer its result. Not from the loop itself.

        Raises Unavailable if the app is closed meanwhile.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("blocking call on the background loop itself; use the async form")
        # Under the lock, so that a loop which is being stopped either has the call or is not asked.
        with self._lock:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Unavailable("the app was closed before the answer came") from None
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name="packhorse-portal", daemon=True)
            self._thread.start()
        return self._loop

    def stop(self) -> None:
        """Stop the thread. A later call starts a new one."""
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
            if loop is None or thread is None:
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)

    def forget_parent(self) -> None:
        """Start anew in a forked child: it has the object, but neither the thread nor who holds the lock."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:  # threads wait for these: they must hear that there will be no answer
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


def _forget_parent() -> None:
    for portal in _portals:
        portal.forget_parent()


os.register_at_fork(after_in_child=_forget_parent)
