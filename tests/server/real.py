"""The whole application on a real socket, in a thread: for clients that are not ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from packhorse import Packhorse
from packhorse.server.access import CALLER_KEY, LOCAL, Unauthorized
from packhorse.server.app import make_application, operations
from packhorse.server.net.listening import bind, resolve
from packhorse.server.net.running import Server
from packhorse.server.operation import problem_response
from packhorse.server.problems import as_problem
from packhorse.server.service import Service

TOKEN = "a-token-of-the-tests"
_OPEN = frozenset((operation.method, operation.path) for operation in operations() if operation.may is None)


def asking_for_a_token(app: ASGIApp) -> ASGIApp:
    """Make a guard that lets in who has `TOKEN`, and is as patient with the others as no real one may be."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if given != f"Bearer {TOKEN}".encode() and (scope["method"], scope["path"]) not in _OPEN:
            problem = as_problem(Unauthorized("send Authorization: Bearer and a token"))
            assert problem is not None
            await problem_response(problem)(scope, receive, send)
            return
        scope[CALLER_KEY] = LOCAL
        await app(scope, receive, send)

    return guarded


@contextmanager
def served(app: Packhorse) -> Iterator[str]:
    """Serve the application of `app`; answers its URL."""
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def main() -> None:
        service = Service(app)
        server = Server(make_application(service, asking_for_a_token), stopping=service.stopping)
        await server.start(bind("127.0.0.1", 0, resolve("127.0.0.1", 0)))
        urls.extend(server.urls)
        started.set()
        await stop.wait()
        await server.stop(200)
        await service.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()
