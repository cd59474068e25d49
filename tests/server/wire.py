"""A real server on a real port, and clients that are anything but polite. As a program it is a server alone."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from packhorse.event_loop import new_event_loop
from packhorse.server.net.limits import Limits, bounds_of
from packhorse.server.net.listening import bind, resolve
from packhorse.server.net.running import Server

HEAD = b"Host: a\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"

#: Instants that applications in this process tell tests, by name.
told: dict[str, threading.Event] = {}


def event(name: str) -> threading.Event:
    """Answer the event of this name, made when first asked for."""
    return told.setdefault(name, threading.Event())


async def application(scope: Any, receive: Any, send: Any) -> None:
    """A few URLs that show what the network layer does."""
    path = scope["path"]
    if path == "/boom":
        raise ValueError("canary-secret")
    if path == "/half":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("canary-secret")
    if path == "/endless":
        await endless(send)
        return
    if path == "/wait":
        event("waiting").set()
        await wait(receive)
    if path == "/events":
        await events(send)
        return
    if path == "/hang":
        event("hanging").set()
        await asyncio.sleep(60)
    if path == "/patient":
        bounds = bounds_of(scope)
        assert bounds is not None
        bounds.take_time(60_000)
        await asyncio.sleep(0.3)
    body = b"OK" if path != "/echo" else b"%d" % await read(scope, receive)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    if path == "/headers":
        event("headers:" + ",".join(name.decode() for name, _ in scope["headers"])).set()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def read(scope: Any, receive: Any) -> int:
    """Read a body and answer its size. `/echo?100` takes at most 100 bytes."""
    if scope["query_string"]:
        bounds = bounds_of(scope)
        assert bounds is not None
        bounds.body_bytes_max = int(scope["query_string"])
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            event("disconnected").set()
            return size
        size += len(message["body"])
        if not message["more_body"]:
            return size


async def wait(receive: Any) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    event("gone").set()


async def events(send: Any) -> None:
    """Answer with a stream of events that takes its time."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(8):
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"data: end\n\n"})


async def endless(send: Any) -> None:
    """Answer more than anybody reads."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in range(100_000):
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        if part == 0:
            event("streaming").set()
    event("streamed").set()


class Answer(NamedTuple):
    """One response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection of raw bytes. Every wait has a limit."""

    def __init__(self, address: tuple[str, int], timeout: float = 60) -> None:
        self.socket = socket.create_connection(address, timeout=timeout)
        self._left = b""

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def offer(self, data: bytes) -> Client:
        """Send what may be refused before all of it is here: where the server has gone, its answer has come."""
        with suppress(ConnectionError):
            self.socket.sendall(data)
        return self

    def answer(self) -> Answer:
        """Read one response with a Content-Length, or until the end."""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if first.split()[1] == "100":
            return self.answer()
        size = int(headers.get("content-length", 0))
        while len(self._left) < size:
            self._more()
        body, self._left = self._left[:size], self._left[size:]
        return Answer(int(first.split()[1]), headers, body)

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise EOFError(self._left)
        self._left += data

    def rest(self) -> bytes:
        """Read until the server ends the connection."""
        data = self._left
        try:
            while part := self.socket.recv(65_536):
                data += part
        except ConnectionResetError:
            pass
        return data

    def ended(self) -> bool:
        """Wait for the end of the connection; answers that nothing came before it."""
        return self.rest() == b""

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Running:
    """Where a server is, and how to talk to it."""

    def __init__(self, url: str, server: Server | None = None, pid: int = 0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.url = url
        self.address = (parts.hostname, parts.port)
        self.server = server
        self.pid = pid

    def connect(self, timeout: float = 60) -> Client:
        return Client(self.address, timeout)

    def ask(self, data: bytes) -> Answer:
        """Send bytes on a connection of their own and read one answer."""
        with self.connect() as client:
            return client.send(data).answer()

    def check_health(self) -> None:
        """Check that the server answers within a second, in one of some tries: a machine may stand still for longer."""
        took_s = []
        while not took_s or min(took_s) >= 1:
            assert len(took_s) < 10, took_s
            started = time.monotonic()
            assert self.ask(GET).status == 200
            took_s.append(time.monotonic() - started)

    def rss_mb(self) -> float:
        """Answer the memory of a server process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6


@contextmanager
def serving_in_thread(limits: Limits | None = None, app: Any = application) -> Iterator[Running]:
    """Serve in a thread of this process, with its own event loop."""
    for known in told.values():
        known.clear()
    listeners = bind("127.0.0.1", 0, resolve("127.0.0.1", 0))
    loop = new_event_loop()
    server = Server(app, limits)
    started = threading.Event()

    async def main() -> None:
        await server.start(listeners)
        started.set()
        await server.stopping.wait()
        await server.stop(200)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield Running(server.urls[0], server)
    finally:
        loop.call_soon_threadsafe(server.stopping.set)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def serving_in_process(limits: Limits | None = None) -> Iterator[Running]:
    """Serve in a process of its own, whose memory and CPU time can be read."""
    import msgspec

    given = msgspec.to_builtins(limits or Limits())
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.wire", json.dumps(given)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Running(process.stdout.readline().strip(), pid=process.pid)
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition, no longer than `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


def main() -> None:
    """Serve until standard input ends."""
    import msgspec

    async def run() -> None:
        listeners = bind("127.0.0.1", 0, resolve("127.0.0.1", 0))
        server = Server(application, msgspec.convert(json.loads(sys.argv[1]), Limits))
        await server.start(listeners)
        print(server.urls[0], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
