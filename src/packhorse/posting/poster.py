"""POSTs to the addresses that were checked, and to no others (FAILURES C12).

The host is looked up once for a delivery, all it stands for is checked, and the connection goes to one of these: a name
that stands for another address a moment later changes nothing. The socket itself checks once more. No redirects, no
proxies or passwords of the environment, no cookies, no answer beyond what a status needs.

Needs aiohttp; import it only where something is posted.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ..errors import PackhorseError
from .addresses import Allowed

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType

#: How long a delivery may take, from the look-up of the host to the status, s.
TIMEOUT_S = 10.0
#: Bytes of an answer that are read, so that the other side may finish; nobody looks at them.
ANSWER_BYTES_MAX = 65_536
#: Addresses of one host that are tried.
_ADDRESSES_MAX = 8

Lookup = Callable[..., list[Any]]


class PostFailed(PackhorseError):
    """Nobody took it; trying again may help."""


class Poster:
    """Sends for all webhooks of a server or a worker, in one event loop."""

    def __init__(self, allowed: Allowed, *, lookup: Lookup = socket.getaddrinfo, timeout_s: float = TIMEOUT_S) -> None:
        self._allowed = allowed
        self._timeout_s = timeout_s
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(allowed, lookup),
            use_dns_cache=False,
            force_close=True,
            limit=0,  # each webhook has a limit of its own
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            trust_env=False,
            auto_decompress=False,
            max_line_size=8_190,
            max_field_size=8_190,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send `body` and answer the status. Raises AddressRefused, PostFailed; neither says what was sent.

        Redirects are answered, not followed.
        """
        host = urlsplit(url).hostname or ""
        if ":" in host or host.rpartition(".")[2].isdigit():
            self._allowed.check(host)
        try:
            async with self._session.post(
                URL(url, encoded=True), data=body, headers=dict(headers), allow_redirects=False
            ) as answer:
                await _read_some(answer)
                return answer.status
        except TimeoutError:
            raise PostFailed(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may have the URL, so only its kind is told, and what the system said.
            system = error if isinstance(error, OSError) else None
            said = f": {system.strerror}" if system is not None and system.strerror else ""
            raise PostFailed(f"{type(error).__name__}{said}") from None

    async def close(self) -> None:
        """Let all connections go. Idempotent."""
        await self._session.close()

    def _socket(self, info: AddrInfoType) -> socket.socket:
        """Make the socket of a connection: the last place where an address is checked, whoever chose it."""
        family, kind, proto, _, address = info
        self._allowed.check(str(address[0]))
        return socket.socket(family, kind, proto)


class _Lookups:
    """Asks the system what hosts stand for. It may take minutes to answer, and nothing waits for it then.

    The threads end with the process, not the process with them; and who asks for a host that is being looked up gets
    that answer, so there are never more of them than hosts.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._under_way: dict[tuple[str, int, int], asyncio.Future[list[Any]]] = {}

    async def find(self, host: str, port: int, family: int) -> list[Any]:
        """Answer what `getaddrinfo` does. Raises OSError."""
        asked = (host, port, family)
        answer = self._under_way.get(asked)
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            answer.add_done_callback(asyncio.Future.exception)  # who waited may have given up
            try:
                threading.Thread(target=self._ask, args=(loop, answer, asked), name="look-up", daemon=True).start()
            except RuntimeError:
                raise OSError(None, "this machine has no thread left for a look-up") from None
            self._under_way[asked] = answer
        return await asyncio.shield(answer)

    def _ask(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[Any]], asked: tuple[str, int, int]
    ) -> None:
        host, port, family = asked
        found: list[Any] | Exception
        try:
            found = self._lookup(host, port, family=family, type=socket.SOCK_STREAM)
        except Exception as error:
            found = error
        with suppress(RuntimeError):  # the loop ended first
            loop.call_soon_threadsafe(self._end, answer, asked, found)

    def _end(
        self, answer: asyncio.Future[list[Any]], asked: tuple[str, int, int], found: list[Any] | Exception
    ) -> None:
        del self._under_way[asked]
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)


class _Resolver(AbstractResolver):
    """Looks a host up and answers what it stands for, if all of that may be connected to."""

    def __init__(self, allowed: Allowed, lookup: Lookup) -> None:
        self._allowed = allowed
        self._lookups = _Lookups(lookup)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        infos = await self._lookups.find(host, port, family)
        found: list[ResolveResult] = []
        for kind, _, proto, _, address in infos[:_ADDRESSES_MAX]:
            text = str(address[0])
            if len(address) == 4 and address[3]:
                text += f"%{address[3]}"
            found.append(
                ResolveResult(
                    hostname=host,
                    host=self._allowed.check(text),
                    port=port,
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if not found:
            raise OSError(None, "the host stands for no address")
        return found

    async def close(self) -> None:
        """Nothing is held."""


async def _read_some(answer: aiohttp.ClientResponse) -> None:
    """Read an answer up to its bound; what is beyond is cut off with the connection."""
    left = ANSWER_BYTES_MAX
    while left > 0:
        part = await answer.content.read(left)
        if not part:
            return
        left -= len(part)
    answer.close()
