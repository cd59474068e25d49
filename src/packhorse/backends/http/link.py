"""The connections to a server: one call of a verb, bounded in time and size, and its errors in words.

A call whose connection broke before an answer came is made once more, over a new connection, where repeating it is
harmless. That is every verb but a claim: jobs that a lost answer held would wait for somebody who does not know them.
"""

from __future__ import annotations

import asyncio
import io
import logging
import ssl
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from ...errors import ConfigurationError, InvalidOption, NotFound, PackhorseError, Unavailable
from ...observe.trace_context import OUTGOING
from ...wording import quantity
from . import wire
from .failures import MEDIA_TYPE as PROBLEM_TYPE
from .failures import Answered, error_of
from .location import Location

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

log = logging.getLogger("packhorse.http")

#: Calls under way at once, each on a connection of its own; the others wait, within their time.
CALLS_MAX = 16
#: Calls that wait for no other: leases depend on them, and a worker makes one of each at a time.
URGENT = frozenset({wire.HEARTBEAT.path, wire.RETIRE.path, wire.TICK.path})
#: Connections for these, and for the stream of rings.
_URGENT_CONNECTIONS = 8
#: A connection that was idle for so long is not used again: shorter than servers and what stands before them wait.
KEEPALIVE_S = 4.0
#: A whole call, with its repetition, takes at most so many times the time-out of the URL.
PATIENCE = 2
#: Bytes of one answer; a server of ours sends fewer jobs at once than that, see `wire.ANSWER_BYTES`.
ANSWER_BYTES_MAX = 128 << 20
#: Bytes that are read of an answer that is an error, or of somebody else.
_ERROR_BYTES_MAX = 1 << 20
_CHUNK = 256 << 10
#: A line of a stream: all topics of a bell with 10,000 of them, at most.
LINE_BYTES_MAX = 4 << 20

#: The connection broke, or was closed by the other end before it answered.
_BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError, ConnectionError)

_read_contract = msgspec.json.Decoder(wire.Contract).decode


class Link:
    """One backend's connections to its server."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._session: aiohttp.ClientSession | None = None
        self._calls = asyncio.Semaphore(CALLS_MAX)
        #: What the server answered when it was asked first; None: it was not yet.
        self.contract: wire.Contract | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._session is not None

    def connect(self) -> None:
        """Make the pool; it connects with the first call. Raises ConfigurationError."""
        if self._session is not None:
            return
        location = self.location
        self._calls = asyncio.Semaphore(CALLS_MAX)
        connector = aiohttp.TCPConnector(
            limit=CALLS_MAX + _URGENT_CONNECTIONS,
            ssl=_trust(location),
            keepalive_timeout=KEEPALIVE_S,
            force_close=False,
        )
        headers = {"Accept-Encoding": "identity", "User-Agent": f"packhorse/{_version()}"}
        if location.token is not None:
            headers["Authorization"] = f"Bearer {location.token}"
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # a proxy of the environment would get the token
            read_bufsize=_CHUNK,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=location.timeout_s, sock_read=location.timeout_s
            ),
        )

    async def disconnect(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ---- calls ---------------------------------------------------------------------------------------------

    async def ask(self, verb: wire.Verb[wire.Arguments, wire.Answer], arguments: wire.Arguments) -> wire.Answer:
        """Make one call. Raises what the verb raises at the server, and Unavailable within bounded time."""
        body = wire.write(arguments)
        if len(body) > wire.CALL_BYTES_MAX:
            raise InvalidOption(
                f"{quantity(len(body), 'byte')} in one call; send fewer jobs a call, of {wire.CALL_BYTES_MAX:,} in all"
            )
        data = await self._call("POST", verb.path, body, wire.MEDIA_TYPE, again=verb is not wire.CLAIM)
        try:
            return verb.read_answer.decode(data)
        except wire.UNREADABLE as error:
            raise Unavailable(
                f"{self.location.shown!r} gave an answer to {verb.name} that cannot be read: {error}"
            ) from None

    async def greet(self) -> wire.Contract:
        """Ask the server what it speaks. Raises ConfigurationError where that is not what we speak."""
        shown = self.location.shown
        try:
            data = await self._call("GET", wire.PATH, None, "application/json", again=True)
        except NotFound as error:
            raise ConfigurationError(
                f"{shown!r} is a server of packhorse, but not of this version, or the path is not its own; "
                "give the URL that `packhorse serve` prints, and install the same version at both ends"
            ) from error
        try:
            contract = _read_contract(data)
        except wire.UNREADABLE:
            contract = None
        if contract is None or contract.revision != wire.REVISION:
            theirs = _versions(data) if contract is None else (contract.version, contract.revision)
            if theirs is None:
                raise ConfigurationError(f"{shown!r} is no server of packhorse; give the URL of `packhorse serve`")
            raise ConfigurationError(
                f"{shown!r} runs packhorse {theirs[0]} (protocol {theirs[1]}), this is packhorse {_version()} "
                f"(protocol {wire.REVISION}); install the same version at both ends"
            )
        self.contract = contract
        return contract

    async def _call(self, method: str, path: str, body: bytes | None, media_type: str, *, again: bool) -> bytes:
        session = self._opened()
        location = self.location
        try:
            async with asyncio.timeout(PATIENCE * location.timeout_s), nullcontext() if path in URGENT else self._calls:
                try:
                    return await self._once(session, method, path, body, media_type)
                except _BROKEN as error:
                    if not again or isinstance(error, aiohttp.ClientConnectorError):
                        raise
                return await self._once(session, method, path, body, media_type)
        except (aiohttp.ClientError, OSError, EOFError) as error:  # TimeoutError too, which is asyncio's
            raise self._explain(error) from error
        except RuntimeError as error:  # closed meanwhile
            if session.closed:
                raise self._explain(error) from error
            raise

    async def _once(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, media_type: str
    ) -> bytes:
        headers = {"Accept": f"{media_type}, {PROBLEM_TYPE}"}
        if body is not None:
            headers["Content-Type"] = media_type
        if (traceparent := OUTGOING.get()) is not None:
            headers["traceparent"] = traceparent
        async with session.request(
            method,
            self.location.base + path,
            data=_sendable(body),
            headers=headers,
            allow_redirects=False,
            proxy=self.location.proxy,
        ) as response:
            given = _media_type(response)
            if response.status == 200 and given == media_type:
                return await _read(response, ANSWER_BYTES_MAX, self.location.shown)
            raise await self._refusal(response, given)

    async def _refusal(self, response: aiohttp.ClientResponse, given: str) -> PackhorseError:
        body = await response.content.read(_ERROR_BYTES_MAX) if given == PROBLEM_TYPE else b""
        while given == PROBLEM_TYPE and not response.content.at_eof() and len(body) < _ERROR_BYTES_MAX:
            body += await response.content.read(_ERROR_BYTES_MAX)
        if given != PROBLEM_TYPE:
            response.close()  # whatever it is, nobody reads it
        location = response.headers.get("Location", "")
        return error_of(
            Answered(response.status, given, body, location), self.location.shown, opened=self.contract is not None
        )

    async def stream(self, body: bytes) -> AsyncGenerator[bytes, None]:
        """Open a stream of rings and answer its lines. Raises Unavailable where it breaks or is silent for too long."""
        session = self._opened()
        headers = {"Accept": f"{wire.STREAM_MEDIA_TYPE}, {PROBLEM_TYPE}", "Content-Type": wire.MEDIA_TYPE}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.location.timeout_s, sock_read=2.5 * wire.SIGN_OF_LIFE_MS / 1000
        )
        url = self.location.base + wire.WATCH.path
        try:
            async with session.post(
                url,
                data=_sendable(body),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                proxy=self.location.proxy,
            ) as response:
                given = _media_type(response)
                if response.status != 200 or given != wire.STREAM_MEDIA_TYPE:
                    raise await self._refusal(response, given)
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
                    if len(rest) > LINE_BYTES_MAX:
                        raise Unavailable(f"{self.location.shown!r}: a line of the stream has no end")
        except (aiohttp.ClientError, OSError, EOFError) as error:
            raise self._explain(error) from error

    async def retopic(self, stream: str, body: bytes) -> None:
        """Change what a stream hears. Raises NotFound where the server does not have it any more, and as `ask`."""
        await self._call("POST", f"{wire.WATCH.path}/{stream}", body, wire.MEDIA_TYPE, again=True)

    # ---- errors --------------------------------------------------------------------------------------------

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unavailable(f"{self.location.shown!r} is not open; call open() first")
        return self._session

    def _explain(self, error: BaseException) -> PackhorseError:
        """Answer what an error of the client means. No message of it may show the URL as it was given."""
        shown, timeout_s = self.location.shown, self.location.timeout_s
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"{shown!r}: its certificate is not trusted ({_reason(error)}); name a file of the authority that "
                "signed it with ?verify=FILE"
            )
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            return self._away(f"{shown!r} does not speak TLS as it should ({_reason(error)}); is it http://?")
        if isinstance(error, aiohttp.InvalidURL):
            return ConfigurationError(f"{shown!r} cannot be read; write https://:TOKEN@host:8080")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return error_of(Answered(error.status, "", b""), shown, opened=self.contract is not None)
        if isinstance(error, aiohttp.ClientResponseError):
            return self._away(f"{shown!r} does not answer in HTTP; is this the port of `packhorse serve`?")
        if isinstance(error, TimeoutError):
            return Unavailable(f"{shown!r} did not answer within {timeout_s:g} s; it may be done all the same")
        if isinstance(error, aiohttp.ClientConnectorError):
            return Unavailable(f"{shown!r} cannot be reached ({_reason(error)}); is `packhorse serve` running there?")
        return Unavailable(f"{shown!r} broke off before it answered ({_reason(error)}); it may be done all the same")

    def _away(self, words: str) -> PackhorseError:
        return Unavailable(words) if self.contract is not None else ConfigurationError(words)


def _trust(location: Location) -> ssl.SSLContext | bool:
    """Answer what certificates are trusted: the system's, or those of a file. There is no way to trust any."""
    if location.verify is None:
        return True
    try:
        return ssl.create_default_context(cafile=location.verify)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{location.shown!r}: verify= must name a file of certificates (PEM): {_reason(error)}"
        ) from None


def _sendable(body: bytes | None) -> io.BytesIO | bytes | None:
    """Answer a body so that a large one is sent piece by piece, and others get their turn in between."""
    return io.BytesIO(body) if body is not None and len(body) > _CHUNK else body


async def _read(response: aiohttp.ClientResponse, bytes_max: int, shown: str) -> bytes:
    """Read an answer, but no more of it than we can hold."""
    chunks: list[bytes] = []
    total = 0
    async for chunk in response.content.iter_any():
        total += len(chunk)
        if total > bytes_max:
            response.close()
            raise Unavailable(f"{shown!r} gave an answer of more than {bytes_max:,} bytes; ask for less at once")
        chunks.append(chunk)
    return b"".join(chunks)


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()[:100]


def _reason(error: BaseException) -> str:
    """Answer why, in the words of the system below; a client's own message would name the URL."""
    below: Any = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    text = getattr(below, "verify_message", None) or getattr(below, "strerror", None) or type(below).__name__
    return str(text)[:200]


def _versions(data: bytes) -> tuple[str, int] | None:
    """Read the versions of a server whose other answers we do not know."""
    try:
        found = msgspec.json.decode(data)
    except wire.UNREADABLE:
        return None
    if not isinstance(found, dict) or found.get("product") != "packhorse":
        return None
    version, revision = found.get("version"), found.get("revision")
    return (str(version)[:40], revision) if isinstance(revision, int) else None


def _version() -> str:
    from ... import __version__

    return __version__
