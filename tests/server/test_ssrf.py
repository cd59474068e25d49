"""C12: a webhook goes to public or allowed addresses, whatever its URL, its name server or its receiver say."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from packhorse.errors import ConfigurationError
from packhorse.posting.addresses import AddressRefused, Allowed
from packhorse.posting.poster import ANSWER_BYTES_MAX, Poster, PostFailed
from packhorse.server.service import Service
from packhorse.settings import load

from ..worker.working import new_app
from .hearing import in_loop, listening

SECRET = "s3cret-canary-0123456789"

#: What must not be reached, in all the ways it can be written. Refused when the settings are read or the server starts.
URLS_REFUSED = [
    # schemes
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_SHUTDOWN",
    "ftp://example.com/",
    "dict://127.0.0.1:11211/stat",
    "javascript:alert(1)",
    "data:text/plain,x",
    "unix:///var/run/docker.sock",
    "//example.com/",
    "example.com/hook",
    "",
    # loopback and unspecified
    "http://127.0.0.1/",
    "http://127.0.0.1:6379/",
    "https://127.255.255.254/",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]:8080/",
    # odd forms of 127.0.0.1
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0x7f.0.0.0x1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://127.000.000.001/",
    "http://%31%32%37.0.0.1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://ⓛocalhost/",
    # IPv4 within IPv6
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2001:0:7f00:1::]/",
    # metadata of clouds
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fd00:ec2::254]/latest/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    # private, shared, link-local, multicast, documentation, reserved
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    # two readings
    "http://user:password@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com\t.evil/",
    "http://example.com/\r\nHost: evil",
    "http://example.com/ HTTP/1.1",
    "http://exa mple.com/",
    "http://example.com:0/",
    "http://example.com:/",
    "http://example.com:99999/",
    "http://example.com:8x/",
    "http://[::1",
    "http://[v1.x]/",
    "http:///path",
    "http://-example.com/",
    "http://example..com/",
    "http://" + "a" * 64 + ".com/",
    "http://example.com/" + "a" * 2_048,
]


@pytest.mark.parametrize("url", URLS_REFUSED)
def test_a_url_that_is_not_public_or_has_two_readings_is_refused_before_the_server_starts(url: str) -> None:
    """C12."""
    with pytest.raises(ConfigurationError) as refusal:
        Service(new_app(webhooks=[{"url": url, "secret": SECRET}]))
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?token=a%20b",
        "http://93.184.216.34:8080/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/x",
        "https://xn--bcher-kva.example/",
        "https://a_b.example.com/",
        "https://1.example.com/",
    ],
)
def test_a_public_url_is_taken(url: str) -> None:
    Service(new_app(webhooks=[{"url": url, "secret": SECRET}]))


def test_what_the_standard_library_says_is_not_global_is_refused_too() -> None:
    """C12: a second opinion on our list: the edges of every special range that Python knows."""
    allowed = Allowed()
    for network in [
        *ipaddress.IPv4Address._constants._private_networks,
        *ipaddress.IPv6Address._constants._private_networks,
    ]:
        for address in (network[0], network[-1]):
            with pytest.raises(AddressRefused):
                allowed.check(str(address))


def test_an_operator_can_allow_a_network_and_only_that() -> None:
    allowed = Allowed(["10.1.0.0/16", "::1"])
    assert allowed.check("10.1.2.3") == "10.1.2.3"
    assert allowed.check("::1") == "::1"
    for refused in ("10.2.0.1", "127.0.0.1", "::ffff:10.1.2.3"):
        with pytest.raises(AddressRefused):
            allowed.check(refused)


def test_a_name_cannot_be_allowed() -> None:
    with pytest.raises(ConfigurationError, match="not a name"):
        load({"webhooks_allow": ["localhost"]}, {})


# ---- names that stand for something else ---------------------------------------------------------------------


class Trap:
    """A listener on 127.0.0.1 that must never see a connection, or answers what it is told to."""

    def __init__(self, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0
        self._answer = answer

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            self.requests.append(head + await reader.readexactly(size))
            writer.write(self._answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass


@asynccontextmanager
async def trap(answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> AsyncIterator[Trap]:
    """Listen on a free port of 127.0.0.1."""
    made = Trap(answer)
    async with listening(made.take) as made.port:
        yield made


class Names:
    """A name server that answers one list of addresses after the other, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int, **_: object) -> list[tuple]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        found = []
        for text in addresses:
            family = socket.AF_INET6 if ":" in text else socket.AF_INET
            address = (text, port, 0, 0) if ":" in text else (text, port)
            found.append((family, socket.SOCK_STREAM, 6, "", address))
        return found


@asynccontextmanager
async def poster(allowed: Allowed, lookup: object = socket.getaddrinfo, timeout_s: float = 5) -> AsyncIterator[Poster]:
    made = Poster(allowed, lookup=lookup, timeout_s=timeout_s)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"], ["169.254.169.254"]],
)
@in_loop
async def test_a_name_that_stands_for_an_internal_address_is_refused_without_a_connection(addresses) -> None:
    """C12: also where it stands for a public one as well."""
    async with trap() as listener, poster(Allowed(), Names(addresses)) as sends:
        with pytest.raises(AddressRefused):
            await sends.post(f"http://innocent.example:{listener.port}/", b"{}", {})
        assert listener.connections == 0


@in_loop
async def test_a_name_that_is_rebound_never_reaches_the_private_address() -> None:
    """C12: public when it is checked, 127.0.0.1 a moment later. The connection goes to what was checked, nowhere else.

    127.0.0.2 stands for the public address, so nothing leaves this machine.
    """
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    async with trap() as listener, poster(Allowed(["127.0.0.2"]), names) as sends:
        url = f"http://rebinding.example:{listener.port}/"
        with pytest.raises(PostFailed):  # nobody is at 127.0.0.2
            await sends.post(url, b"{}", {})
        assert names.asked == 1, "the host is looked up once for a delivery"
        for _ in range(3):
            with pytest.raises(AddressRefused):
                await sends.post(url, b"{}", {})
        assert listener.connections == 0


SLOW_NAMES = """
import asyncio, threading
from packhorse.posting.addresses import Allowed
from packhorse.posting.poster import Poster, PostFailed

asked = []

def never(*_, **__):
    asked.append(1)
    threading.Event().wait(60)

async def main():
    poster = Poster(Allowed(), lookup=never, timeout_s=0.05)
    for _ in range(3):
        try:
            await poster.post("http://slow.example/", b"{}", {})
        except PostFailed as error:
            print(error)
    await poster.close()
    print(len(asked), threading.active_count() - 1)

asyncio.run(main())
"""


def test_a_name_server_that_does_not_answer_costs_one_thread_and_keeps_no_server_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-c", SLOW_NAMES], check=False, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines() == ["no answer within 0.05 s"] * 3 + ["1 1"], ended.stderr
    assert ended.returncode == 0


@in_loop
async def test_the_socket_checks_its_address_once_more() -> None:
    """C12: even if something after the look-up chose another address."""
    async with trap() as listener, poster(Allowed(), Names(["93.184.216.34"])) as sends:
        resolver = sends._session.connector._resolver

        async def lying(host, port=0, family=socket.AF_INET):
            return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

        resolver.resolve = lying
        with pytest.raises(AddressRefused):
            await sends.post(f"http://innocent.example:{listener.port}/", b"{}", {})
        assert listener.connections == 0


@in_loop
async def test_an_address_in_the_url_is_checked_at_the_delivery_too() -> None:
    async with trap() as listener, poster(Allowed()) as sends:
        for host in ("127.0.0.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(AddressRefused):
                await sends.post(f"http://{host}:{listener.port}/", b"{}", {})
        assert listener.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_loop
async def test_a_redirect_is_not_followed(status: int) -> None:
    """C12."""
    async with trap() as target:
        there = f"http://127.0.0.1:{target.port}/latest/meta-data/"
        answer = f"HTTP/1.1 {status} Moved\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
        async with trap(answer) as redirecting, poster(Allowed(["127.0.0.1"])) as sends:
            assert await sends.post(f"http://127.0.0.1:{redirecting.port}/", b"{}", {}) == status
            assert (redirecting.connections, target.connections) == (1, 0)


@in_loop
async def test_a_proxy_of_the_environment_is_not_used(monkeypatch) -> None:
    async with trap() as proxy, trap() as receiver, poster(Allowed(["127.0.0.1"])) as sends:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await sends.post(f"http://127.0.0.1:{receiver.port}/", b"{}", {}) == 204
        assert (proxy.connections, receiver.connections) == (0, 1)


@in_loop
async def test_an_endless_answer_is_read_up_to_its_bound() -> None:
    chunk = b"a" * ANSWER_BYTES_MAX
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
            while True:
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
        except OSError:
            pass

    async with listening(endless) as port, poster(Allowed(["127.0.0.1"])) as sends:
        async with asyncio.timeout(60):
            assert await sends.post(f"http://127.0.0.1:{port}/", b"{}", {}) == 200
        assert sent < 20 << 20


@in_loop
async def test_a_receiver_that_says_nothing_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port, poster(Allowed(["127.0.0.1"]), timeout_s=0.2) as sends:
        with pytest.raises(PostFailed, match=r"0\.2 s"):
            await sends.post(f"http://127.0.0.1:{port}/", b"{}", {})


@in_loop
async def test_what_failed_is_told_without_the_url() -> None:
    """C20: paths of such URLs are often secrets."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]  # nobody else gets it meanwhile, and nobody listens there
        async with poster(Allowed(["127.0.0.1"])) as sends:
            with pytest.raises(PostFailed) as failure:
                await sends.post(f"http://127.0.0.1:{port}/canary-of-a-path", b"{}", {})
            assert "canary" not in str(failure.value)
