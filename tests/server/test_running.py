"""Where a server listens, and how it stops (FAILURES C1)."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import httpx
import pytest

from packhorse.errors import ConfigurationError
from packhorse.server.net.limits import Limits
from packhorse.server.net.listening import (
    Address,
    bind,
    close_all,
    is_loopback,
    raise_file_limit,
    refuse_open_address,
    resolve,
    url_of,
)
from packhorse.server.net.running import Server, _within_files, serving
from tests.witness import Witness, boot_s

from .wire import GET, HEAD, application, event, serving_in_thread, until


def v4(host: str) -> Address:
    return Address(socket.AF_INET, (host, 0))


# ---- who is let in -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST", "127.1"],
)
def test_c1_this_machine_needs_no_tokens(host: str) -> None:
    refuse_open_address(host, resolve(host, 0), has_tokens=False)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "0",
        "0x0",
        "::ffff:0.0.0.0",
        "::ffff:192.168.1.5",
        "10.0.0.1",
        "192.168.1.5",
        "169.254.1.1",
        "fe80::1",
        "fc00::1",
        "2001:db8::1",
        "255.255.255.255",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
    ],
)
def test_c1_any_other_address_needs_tokens(host: str) -> None:
    addresses = resolve(host, 0)
    with pytest.raises(ConfigurationError, match=r"no tokens.*packhorse tokens create"):
        refuse_open_address(host, addresses, has_tokens=False)
    refuse_open_address(host, addresses, has_tokens=True)


def test_c1_a_name_counts_as_all_it_stands_for() -> None:
    with pytest.raises(ConfigurationError, match=r"'work\.station'"):
        refuse_open_address("work.station", [v4("127.0.0.1"), v4("192.168.1.5")], has_tokens=False)
    refuse_open_address("work.station", [v4("127.0.0.1"), v4("127.0.1.1")], has_tokens=False)


def test_an_address_with_a_zone_is_still_an_address() -> None:
    assert not is_loopback(Address(socket.AF_INET6, ("fe80::1%eth0", 0, 0, 2)).host)


# ---- binding -------------------------------------------------------------------------------------------


def test_a_free_port_is_the_same_for_all_addresses_of_a_name() -> None:
    listeners = bind("localhost", 0, resolve("localhost", 0))
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        close_all(listeners)


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("192.0.2.1", 0, "is no address of this machine"),
        ("127.0.0.1", 65_536, "cannot listen"),
    ],
)
def test_what_cannot_be_bound_is_said_in_one_line(host: str, port: int, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        bind(host, port, [v4(host)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 300, "1.2.3.4.5"])
def test_a_name_that_is_none_is_said_so(host: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        resolve(host, 0)


def test_a_taken_port_is_said_so_and_nothing_stays_bound() -> None:
    taken = bind("127.0.0.1", 0, [v4("127.0.0.1")])
    taken[0].listen()
    port = taken[0].getsockname()[1]
    with pytest.raises(ConfigurationError, match=f"port {port} of localhost is taken"):
        bind("localhost", port, [v4("127.0.0.2"), v4("127.0.0.1")])
    close_all(taken)
    close_all(bind("127.0.0.2", port, [v4("127.0.0.2")]))


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")])
def test_the_url_can_be_asked(host: str, url: str) -> None:
    listeners = bind(host, 0, [v4(host)])
    assert url_of(listeners[0]).startswith(url)
    close_all(listeners)


def test_connections_stay_below_open_files(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("packhorse"), "propagate", True)
    files = raise_file_limit()
    if not files:
        pytest.skip("this system does not limit open files")
    assert _within_files(Limits(connections_max=10)).connections_max == 10
    assert _within_files(Limits(connections_max=files * 2)).connections_max < files
    assert "ulimit -n" in caplog.text


# ---- serving and stopping ------------------------------------------------------------------------------


def test_serves_in_the_running_loop_while_the_block_runs() -> None:
    async def main() -> None:
        async with serving(application) as url, httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).text == "OK"
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))

    asyncio.run(main())


def test_runs_on_both_event_loops() -> None:
    from packhorse.event_loop import new_event_loop

    async def main() -> None:
        async with serving(application) as url, httpx.AsyncClient() as client:
            for _ in range(3):
                assert (await client.post(f"{url}/echo", content=b"x" * 300_000)).text == "300000"
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(b"PING\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    for factory in (asyncio.new_event_loop, new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())


def test_a_request_that_is_being_answered_ends_first_and_idle_connections_at_once() -> None:
    async def slow(scope: object, receive: object, send: object) -> None:
        started.set()
        await asyncio.to_thread(go_on.wait, 60)
        await application({**scope, "path": "/health"}, receive, send)  # type: ignore[dict-item]

    started, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        listeners = bind("127.0.0.1", 0, [v4("127.0.0.1")])
        server = Server(slow)
        await server.start(listeners)
        port = int(server.urls[0].rpartition(":")[2])
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", port)
        busy_writer.write(GET)
        await asyncio.to_thread(started.wait, 60)
        stopping = asyncio.create_task(server.stop(60_000))
        assert await idle.read() == b""
        assert server.stopping.is_set()
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection("127.0.0.1", port)
        assert not stopping.done()
        go_on.set()
        answer = await busy.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        async with asyncio.timeout(60):
            await stopping
        await server.stop()
        idle_writer.close()
        busy_writer.close()

    asyncio.run(main())


def test_a_hurried_stop_waits_for_nobody() -> None:
    async def main() -> None:
        listeners = bind("127.0.0.1", 0, [v4("127.0.0.1")])
        server = Server(application)
        await server.start(listeners)
        event("hanging").clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.urls[0].rpartition(":")[2]))
        writer.write(GET.replace(b"/health", b"/hang"))
        await asyncio.to_thread(event("hanging").wait, 60)
        stopping = asyncio.create_task(server.stop(60_000))
        await asyncio.sleep(0)
        server.hurry()
        async with asyncio.timeout(60):
            await stopping
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()

    asyncio.run(main())


def test_a_client_that_does_not_read_does_not_hold_up_the_end(witness: Witness) -> None:
    started = boot_s()
    with serving_in_thread() as server:
        client = server.connect()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.send(b"GET /endless HTTP/1.1\r\n" + HEAD + b"\r\n")
        until(event("streaming").is_set)
    assert witness.since_s(started) < 10
    client.close()
