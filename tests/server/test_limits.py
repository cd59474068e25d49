"""What a request may take while it is being answered (FAILURES C14, C16, C20), and that nothing is left behind."""

from __future__ import annotations

import json
import logging
import select
import threading
import time
from typing import Any

import pytest

from packhorse.server.net.limits import Limits, bounds_of

from .wire import (
    GET,
    HEAD,
    Running,
    application,
    event,
    read,
    serving_in_process,
    serving_in_thread,
    until,
    wait,
)

POST = b"POST /echo HTTP/1.1\r\n" + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def upload(server: Running, head: bytes, size: int) -> tuple[int, int]:
    """Send a body until the server answers; answers the status and how much was sent."""
    part = b"x" * 100_000
    chunk = b"%x\r\n" % len(part) + part + b"\r\n" if b"chunked" in head else part
    with server.connect() as client:
        client.send(head)
        sent = 0
        while sent < size and not select.select([client.socket], [], [], 0)[0]:
            client.offer(chunk)
            sent += len(part)
        return client.answer().status, sent


@pytest.mark.parametrize("head", [POST + b"Content-Length: 5000000000\r\n\r\n", CHUNKED], ids=["length", "chunks"])
def test_an_upload_of_5_gb_is_refused_early_and_costs_next_to_nothing(head: bytes) -> None:
    """C16: the limit holds while the body comes in, and what was refused is not kept."""
    with serving_in_process() as server:
        server.check_health()
        before_mb = server.rss_mb()
        for _ in range(3):
            status, sent = upload(server, head.replace(b"/echo", b"/echo?2000000"), 5_000_000_000)
            assert status == 413
            assert sent < 20_000_000
        assert server.rss_mb() - before_mb < 10
        server.check_health()


def test_a_body_that_says_it_is_too_large_is_not_waited_for() -> None:
    with serving_in_thread(Limits(body_bytes_max=1_000)) as server:
        assert server.ask(POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n").status == 413


def test_a_body_is_as_large_as_allowed_and_no_byte_more() -> None:
    with serving_in_thread(Limits(body_bytes_max=1_000)) as server:
        for head in (b"Content-Length: %d\r\n\r\n%s", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"):
            assert server.ask(POST + head % (1_000, b"x" * 1_000)).body == b"1000"
            answer = server.ask(POST + head % (1_001, b"x" * 1_001))
            assert answer.status == 413
            assert "1,000 bytes" in json.loads(answer.body)["detail"]
            assert answer.headers["connection"] == "close"


def test_an_operation_can_take_less_or_more() -> None:
    with serving_in_thread(Limits(body_bytes_max=1_000)) as server:
        small = POST.replace(b"/echo", b"/echo?10")
        assert server.ask(small + b"Content-Length: 11\r\n\r\n" + b"x" * 11).status == 413
        large = POST.replace(b"/echo", b"/echo?5000")
        assert server.ask(large + b"Content-Length: 4000\r\n\r\n" + b"x" * 4_000).body == b"4000"


def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    """C16: an answer that came before the body is read by the client; the body is not read by us."""
    with serving_in_thread(Limits(linger_ms=200)) as server, server.connect() as client:
        client.send(b"POST /health HTTP/1.1\r\n" + HEAD + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 1_000)
        assert client.answer().status == 200
        with pytest.raises(ConnectionError):  # noqa: PT012  # any of the sends
            for _ in range(10_000):
                client.send(b"x" * 100_000)
                time.sleep(0.001)


def test_all_bodies_together_have_a_limit() -> None:
    """C16: many uploads at once, each within its bounds."""
    with serving_in_thread(Limits(body_bytes_max=100_000, bodies_bytes_max=150_000)) as server:
        head = POST + b"Content-Length: 100000\r\n\r\n"
        with server.connect() as first, server.connect() as second:
            first.send(head + b"x" * 99_999)
            limited = server.server._application
            until(lambda: limited._held_bytes == 99_999)
            answer = second.send(head + b"x" * 99_999).answer()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert first.send(b"x").answer().body == b"100000"
        until(lambda: limited._held_bytes == 0)
        assert server.ask(head + b"x" * 100_000).status == 200


def test_a_body_that_was_read_does_not_count_while_its_request_waits() -> None:
    """C16: streams and long polls last; a few, each asked for with a large body, would lock out all others."""
    with serving_in_thread(Limits(bodies_bytes_max=1_000), app=_waits_with_body) as server, server.connect() as waits:
        waits.send(POST + b"Content-Length: 900\r\n\r\n" + b"x" * 900)
        until(event("long poll").is_set)
        with server.connect() as other:
            event("long poll").clear()
            other.send(POST + b"Content-Length: 900\r\n\r\n" + b"x" * 900)
            until(event("long poll").is_set)
        assert server.ask(POST.replace(b"/echo", b"/plain") + b"Content-Length: 900\r\n\r\n" + b"x" * 900).status == 200
        limited = server.server._application
    until(lambda: limited._held_bytes == 0)


async def _waits_with_body(scope: Any, receive: Any, send: Any) -> None:
    """Read the body; then wait for the client to go, unless it asks for `/plain`."""
    await read(scope, receive)
    bounds = bounds_of(scope)
    if scope["path"] != "/plain":
        bounds.take_time(60_000)
        event("long poll").set()
        await wait(receive)
    await application(scope | {"path": "/health"}, receive, send)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate", b"identity, gzip", b"x"])
def test_a_compressed_body_is_refused(coding: bytes) -> None:
    """C14: 10 kB that stand for 10 GB."""
    with serving_in_thread() as server:
        answer = server.ask(POST + b"Content-Encoding: " + coding + b"\r\nContent-Length: 2\r\n\r\nxx")
        assert answer.status == 415
        assert answer.headers["accept-encoding"] == "identity"
        assert server.ask(POST + b"Content-Encoding: identity\r\nContent-Length: 2\r\n\r\nxx").body == b"2"


def test_a_request_that_takes_too_long_is_answered_all_the_same() -> None:
    with serving_in_thread(Limits(request_ms=200)) as server:
        answer = server.ask(GET.replace(b"/health", b"/hang"))
        assert (answer.status, json.loads(answer.body)["type"]) == (503, "urn:packhorse:too-slow")
        assert server.ask(GET.replace(b"/health", b"/patient")).status == 200


def test_a_stream_of_events_takes_its_time() -> None:
    with serving_in_thread(Limits(request_ms=200)) as server, server.connect() as client:
        client.send(b"GET /events HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        assert b"data: end" in client.rest()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged; other tests may have configured the logger."""
    logger = logging.getLogger("packhorse")
    before = logger.propagate
    logger.propagate = True
    yield caplog
    logger.propagate = before


def test_a_bug_is_one_line_without_its_message(lines: pytest.LogCaptureFixture) -> None:
    """C20, C22: an exception's text may quote a payload; where it was raised is enough to find it."""
    with serving_in_thread() as server:
        answer = server.ask(b"GET /boom%0a2026%20INFO%20paid HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert answer.status == 200
        answer = server.ask(GET.replace(b"/health", b"/boom"))
        assert answer.status == 500
        assert b"canary" not in answer.body
        with server.connect() as client:
            assert b"half" in client.send(GET.replace(b"/health", b"/half")).rest()
        server.check_health()
    text = [record.getMessage() for record in lines.records if record.name == "packhorse.server"]
    assert "GET /boom failed, this is a bug: ValueError at" in text[0]
    assert "wire.py" in text[0]
    assert not any("canary" in line for line in text)
    assert not any(record.exc_info for record in lines.records)


def test_stopping_ends_a_request_that_does_not_end() -> None:
    found = []
    with serving_in_thread() as server:
        client = server.connect()
        client.send(GET.replace(b"/health", b"/hang"))
        until(event("hanging").is_set)
        reader = threading.Thread(target=lambda: found.append(client.answer()))
        reader.start()
    reader.join(60)
    client.close()
    assert found[0].status == 503
