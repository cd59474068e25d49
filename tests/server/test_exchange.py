"""How an answer is written: its head, a body whose length is known or not, and what no answer may be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packhorse.server.net.running import serving

START = "http.response.start"
BODY = "http.response.body"


def ask(
    *messages: dict[str, Any], method: str = "GET", version: str = "1.1", headers: str = "Connection: close\r\n"
) -> bytes:
    """Answer all bytes that a client gets of an application that sends these messages."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    async def main() -> bytes:
        async with serving(application) as url:
            host, _, port = url.rpartition("/")[2].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{method} / HTTP/{version}\r\nHost: a\r\n{headers}\r\n".encode())
            found = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            return found

    return asyncio.run(main())


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": headers}


def parts(found: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    return [lines[0], *sorted(line.lower() for line in lines[1:] if not line.startswith(b"date"))], body


def test_a_body_of_known_length_goes_out_as_it_is() -> None:
    found = ask(
        start((b"content-length", b"5")),
        {"type": BODY, "body": b"he", "more_body": True},
        {"type": BODY, "body": b"llo"},
    )
    assert parts(found) == ([b"HTTP/1.1 200 OK", b"connection: close", b"content-length: 5"], b"hello")


def test_a_body_of_unknown_length_goes_out_in_chunks() -> None:
    found = ask(start(), {"type": BODY, "body": b"he", "more_body": True}, {"type": BODY, "body": b"llo"})
    assert parts(found)[1] == b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert b"transfer-encoding: chunked" in parts(found)[0]


def test_http_1_0_has_no_chunks_and_the_connection_ends_the_body() -> None:
    found = ask(start(), {"type": BODY, "body": b"hello"}, version="1.0", headers="")
    assert parts(found) == ([b"HTTP/1.1 200 OK", b"connection: close"], b"hello")


def test_head_has_the_length_and_no_body() -> None:
    found = ask(start((b"content-length", b"5")), {"type": BODY, "body": b"hello"}, method="HEAD")
    assert parts(found) == ([b"HTTP/1.1 200 OK", b"connection: close", b"content-length: 5"], b"")


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_neither_body_nor_length(status: int) -> None:
    lines, body = parts(ask(start(status=status), {"type": BODY}))
    assert lines[1:] == [b"connection: close"]
    assert body == b""


def test_connection_close_of_the_application_is_said_once_and_done() -> None:
    found = ask(start((b"connection", b"Close"), (b"content-length", b"0")), {"type": BODY}, headers="")
    assert parts(found)[0] == [b"HTTP/1.1 200 OK", b"connection: close", b"content-length: 0"]


@pytest.mark.parametrize(
    "header",
    [
        (b"location", b"/a\r\nset-cookie: canary"),
        (b"location", b"/a\ncanary: 1"),
        (b"location", b"canary\x00"),
        (b"x\r\ncanary: 1\r\ny", b"1"),
        (b"x y canary", b"1"),
        (b"x:canary", b"1"),
    ],
    ids=repr,
)
def test_no_header_begins_another(header: tuple[bytes, bytes]) -> None:
    found = ask(start(header, (b"content-length", b"0")), {"type": BODY})
    assert found.startswith(b"HTTP/1.1 500 ")
    assert b"canary" not in found


@pytest.mark.parametrize("body", [b"hell", b"hello!"])
def test_a_body_that_is_not_as_long_as_its_head_says_ends_the_connection(body: bytes) -> None:
    found = ask(start((b"content-length", b"5")), {"type": BODY, "body": body}, headers="")
    assert len(parts(found)[1]) < 5


@pytest.mark.parametrize("messages", [[{"type": BODY}], [start(), start()], [{"type": "http.response.trailers"}]])
def test_what_is_no_answer_is_an_error_of_ours(messages: list[dict[str, Any]]) -> None:
    found = ask(*messages, headers="")
    assert b" 200 " not in found or found.count(b"HTTP/1.1") == 1
    assert not found.endswith(b"0\r\n\r\n")
