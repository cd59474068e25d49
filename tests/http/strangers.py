"""What may stand where a server should: a program that answers every connection in its own way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def stranger(speak: Speak, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Let `speak` answer each connection on a free port; yields the URL."""

    at_work: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        at_work.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await speak(reader, writer)
                await writer.drain()
        except asyncio.CancelledError:
            pass
        finally:
            at_work.discard(task)
            writer.close()
            with suppress(OSError, TimeoutError, ssl.SSLError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if tls is not None else 'http'}://127.0.0.1:{port}"
    finally:
        server.close()
        while at_work:
            for task in at_work:
                task.cancel()
            await asyncio.wait(at_work)


async def head(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read one request; answers its path and its head. Its body is read too."""
    text = await reader.readuntil(b"\r\n\r\n")
    for line in text.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))
    return text.split(b" ")[1].decode(), text


def response(status: int, body: bytes = b"", media_type: str = "text/html", *more: str) -> bytes:
    """Write a whole response."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {media_type}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answering(*answers: bytes) -> Speak:
    """Answer requests one after another with these bytes, the last for all that follow."""
    left = list(answers)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()

    return speak
