"""How a connection ends while something is being answered: what was said arrives, and nobody goes on in vain."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from packhorse import Packhorse
from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.net.limits import Limits
from packhorse.server.net.running import serving
from packhorse.server.service import Service

from ..worker.working import until as until_true
from .hearing import in_loop, served
from .kit import admitting
from .wire import GET, HEAD, Running, application, event, serving_in_thread, until

WAIT = b"GET /wait HTTP/1.1\r\n" + HEAD + b"\r\n"


@pytest.mark.parametrize("target", [b"HEAD /health HTTP/1.1\r\nConnection: close\r\n", b"HEAD /health HTTP/1.0\r\n"])
def test_an_answer_without_a_body_arrives_before_the_connection_ends(target: bytes) -> None:
    with serving_in_thread() as server, server.connect() as client:
        answer = client.send(target + HEAD + b"\r\n").rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"connection: close\r\n\r\n")


@in_loop
async def test_the_same_on_the_event_loop_of_the_standard_library() -> None:
    async with serving(application) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"HEAD /health HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


@pytest.mark.parametrize("path", [b"/events", b"/health", b"/echo"])
def test_http_1_0_gets_no_chunks_and_what_has_no_length_ends_with_the_connection(path: bytes) -> None:
    """Many a proxy asks like that, and such a client takes the frames of chunks for a part of the answer."""
    with serving_in_thread() as server, server.connect() as client:
        head, _, body = client.send(b"GET " + path + b" HTTP/1.0\r\n" + HEAD + b"\r\n").rest().partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert b"\r\nconnection: close" in head
        assert body in {b"OK", b"0", b"data: 1\n\n" * 8 + b"data: end\n\n"}
        assert (b"content-length" in head) == (path != b"/events")


def test_a_client_that_is_gone_is_noticed_though_another_request_waits_behind() -> None:
    """C15: else each such connection would leave a stream or a long poll behind, which nobody ends."""
    with serving_in_thread() as server:
        client = server.connect()
        client.send(WAIT + GET)
        until(event("waiting").is_set)
        client.close()
        until(event("gone").is_set)
        server.check_health()


def test_what_waits_behind_an_answer_is_not_begun_once_the_client_is_gone() -> None:
    with serving_in_thread() as server:
        client = server.connect()
        client.send(WAIT + b"GET /headers HTTP/1.1\r\nX-Behind: 1\r\n" + HEAD + b"\r\n")
        until(event("waiting").is_set)
        client.close()
        until(event("gone").is_set)
        until(lambda: server.server.connections == 0)
        assert not event("headers:x-behind,host").is_set()


def test_c32_a_bad_body_ends_a_stream_that_is_being_sent_without_a_word_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's mistake is not our bug, and must not become a line of log for each part of the answer."""
    monkeypatch.setattr(logging.getLogger("packhorse"), "propagate", True)
    caplog.set_level(logging.INFO)
    with serving_in_thread(app=_endless) as server, server.connect() as client:
        client.send(b"POST /events HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        until(event("first").is_set)
        client.send(b"this is no chunk\r\n")
        assert b"data: 1" in client.rest()
        until(event("stopped").is_set)
        until(lambda: _all_over(server))
    assert caplog.messages == []


@in_loop
async def test_a_claim_may_wait_as_long_as_it_says_whatever_other_requests_may_take() -> None:
    """A claim waits for up to a minute, which is what a request may take: it was cut off by the moment it ended."""
    service = Service(Packhorse("memory://"))
    application = make_application(service, admitting(LOCAL))
    body = b'{"worker": "one", "wait": "1s"}'
    try:
        async with serving(application, Limits(request_ms=200), stopping=service.stopping) as url:
            for _ in range(10):  # before it says how long, it has 200 ms like all others, which the machine may take
                answer = await _post(int(url.rpartition(":")[2]), body, b"/api/v1/claims")
                if answer.startswith(b"HTTP/1.1 200"):
                    break
            else:
                raise AssertionError(answer)
    finally:
        await service.close()


@in_loop
async def test_c16_bodies_that_nobody_asked_for_do_not_lock_out_others_while_a_stream_lasts() -> None:
    """Bytes count for as long as their request lasts; a stream lasts for days."""
    large = Limits().body_bytes_max - 1
    async with served(Packhorse("memory://")) as server:
        for _ in range(Limits().bodies_bytes_max // large + 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /api/v1/events HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % large)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x" * large)
            assert b"event: hello" in await asyncio.wait_for(reader.read(), 60), "the stream ends"
            writer.transport.abort()
        await until_true(lambda: not server.service.feed.listeners)
        async with server.listen(Content_Length="0"):
            assert (await _post(server.port, b'{"type": "a"}')).startswith(b"HTTP/1.1 201")


async def _post(port: int, body: bytes, path: bytes = b"/api/v1/jobs") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST %b HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (path, len(body))
    writer.write(head + HEAD + b"\r\n" + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


async def _endless(scope: Any, receive: Any, send: Any) -> None:
    """Send events until somebody says that it is in vain."""
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while True:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            event("first").set()
            await asyncio.sleep(0.01)
    finally:
        event("stopped").set()


def _all_over(server: Running) -> bool:
    assert server.server is not None
    return server.server.connections == 0
