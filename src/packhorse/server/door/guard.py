"""The guard: the first who sees a request, whatever its method and path, and says who is asking.

In this order: is it for us (`Host`), does a page that is not ours ask (`Origin`, `Sec-Fetch-Site`), who is it. It
answers no CORS header, ever: no page but ours may read an answer (FAILURES C3). What the caller may do is the
operation's to check. On the way of every request, about 5 us (bench/guard.py, 2026-11-22).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import ConfigurationError, Forbidden, shown
from ..access import ANONYMOUS, CALLER_KEY, LOCAL, Caller, Unauthorized
from ..net.listening import is_loopback
from ..operation import problem_response
from ..problems import Problem, as_problem
from .entry import WHO, Door
from .origins import Hosts, is_foreign, is_local
from .sessions import session_id_in

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ...settings import Settings

#: Methods that change nothing.
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

#: Names of parameters that people put tokens into. Such a URL stands in logs and histories by now.
_TOKEN_PARAMETERS = frozenset({b"token", b"access_token"})

_WANTED = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"cookie",
        b"sec-fetch-site",
        b"sec-fetch-mode",
        b"sec-fetch-dest",
        b"x-forwarded-for",
        b"x-real-ip",
        b"forwarded",
    }
)
#: May be there more than once, one for each proxy, or for each cookie in HTTP/2.
_MAY_REPEAT = frozenset({b"cookie", b"x-forwarded-for", b"x-real-ip", b"forwarded"})


class Guard:
    """Wraps an application: `guard(app)`. Leaves a `Caller` in the scope of each request that comes through.

    `open_to_all`, as `GET /livez`, needs no token: who brings none there is `ANONYMOUS`. Without tokens, everybody who
    asks from this very machine is `LOCAL`, and nobody else comes in.
    """

    def __init__(self, door: Door, hosts: Hosts, open_to_all: Iterable[tuple[str, str]] = ()) -> None:
        self._door = door
        self._hosts = hosts
        pairs = set(open_to_all)
        self._open = frozenset(pairs | {("HEAD", path) for method, path in pairs if method == "GET"})

    @classmethod
    def of(
        cls, settings: Settings, door: Door, listening: Iterable[str], open_to_all: Iterable[tuple[str, str]]
    ) -> Guard:
        """Make the guard of a server that listens at these addresses or names.

        Raises ConfigurationError where it is to be known by a public name, without tokens.
        """
        hosts = Hosts(listening, settings.allowed_hosts)
        if hosts.is_public and not door.tokens:
            raise ConfigurationError(
                "allowed_hosts lets others in by a name, and there are no tokens; make one with "
                "'packhorse tokens create', or allow names of this machine only"
            )
        return cls(door, hosts, open_to_all)

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Answer the application behind this guard."""

        def guarded(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if scope["type"] != "http":
                if scope["type"] == "websocket":  # nobody serves any
                    return send({"type": "websocket.close"})
                return app(scope, receive, send)
            try:
                scope[CALLER_KEY], digest = self._look_at(scope)
            except (Problem, Unauthorized, Forbidden) as error:
                return _refuse(error, scope, receive, send)
            if digest is None:
                return app(scope, receive, send)
            return _while_good(self._door, digest, app, scope, receive, send)

        return guarded

    def _look_at(self, scope: Scope) -> tuple[Caller, bytes | None]:
        """Answer who asks, and the hash of the token that says so. Raises Problem, Unauthorized, Forbidden."""
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name not in _WANTED:
                continue
            before = found.get(name)
            if before is not None and name not in _MAY_REPEAT:
                raise Problem(400, "repeated-header", f"The header {name.decode()} is there twice")
            found[name] = value if before is None else before + b"," + value
        host = found.get(b"host")
        if host is None:
            raise Problem(400, "no-host", "The header Host is missing")
        if not self._hosts.takes(host):
            raise _other_host(host)
        origin, site = found.get(b"origin"), found.get(b"sec-fetch-site")
        method = scope["method"]
        if (origin is not None or site is not None) and is_foreign(
            self._hosts,
            method,
            host,
            origin,
            site,
            found.get(b"sec-fetch-mode"),
            found.get(b"sec-fetch-dest"),
        ):
            raise Forbidden("a page of another site asks; only pages of this server and programs may")
        if scope["query_string"]:
            _refuse_token_in(scope["query_string"])
        own_page = origin is not None or site == b"same-origin"  # what is foreign was refused above
        return self._who(scope, found, own_page)

    def _who(self, scope: Scope, found: dict[bytes, bytes], own_page: bool) -> tuple[Caller, bytes | None]:
        door = self._door
        if not door.tokens:
            if not _is_local_client((scope.get("client") or ("",))[0]) or _comes_from_afar(found):
                raise Unauthorized(WHO)
            return LOCAL, None
        given = found.get(b"authorization")
        if given is not None:
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthorized(WHO)
            grant = door.admit(token.strip(b" "), scope.get("client"))
            return grant.caller, grant.digest
        if b"cookie" in found:
            session_id = session_id_in(scope["headers"], secure=not is_local(found[b"host"]))
            session = None if session_id is None else door.sessions.find(session_id)
            if session is not None:
                if scope["method"] not in SAFE and not own_page:
                    raise Forbidden("a session is for pages of this server: send Origin, or use a token")
                return session.grant.caller, session.grant.digest
        if (scope["method"], scope["path"]) in self._open:
            return ANONYMOUS, None
        raise Unauthorized(WHO)


async def _while_good(door: Door, digest: bytes, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request as long as its token is good: a stream that is under way ends when that is revoked.

    So does a wait: what is looked at is not answered any more. What was done is, for it was done.
    """
    over = False
    looks = scope["method"] in SAFE

    async def send_while_good(message: Message) -> None:
        nonlocal over
        if looks and message["type"] == "http.response.start" and door.tokens.still(digest) is None:
            over = True
            await _refuse(Unauthorized(WHO), scope, receive, send)
            raise Unauthorized(WHO)
        if message.get("more_body") and door.tokens.still(digest) is None:
            over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise Unauthorized(WHO)
        await send(message)

    try:
        await app(scope, receive, send_while_good)
    except Exception:  # whatever the stream made of it: its answer has ended
        if not over:
            raise


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    problem = as_problem(error)
    assert problem is not None
    if scope["method"] not in SAFE:
        problem.headers["Connection"] = "close"  # nobody reads the body
    await problem_response(problem)(scope, receive, send)


def _other_host(host: bytes) -> Problem:
    return Problem(
        403,
        "other-host",
        "This server does not go by that name",
        f"{shown(host.decode('latin-1'), 80)} is not allowed; where it is right, name it in PACKHORSE_ALLOWED_HOSTS",
    )


def _refuse_token_in(query: bytes) -> None:
    lower = query.lower()
    if b"token" in lower and any(part.partition(b"=")[0] in _TOKEN_PARAMETERS for part in lower.split(b"&")):
        raise Problem(
            400,
            "token-in-url",
            "A token does not belong into a URL",
            "URLs stand in logs and histories: revoke that token, and send another as Authorization: Bearer TOKEN",
        )


def _comes_from_afar(found: dict[bytes, bytes]) -> bool:
    """Answer whether a proxy on this machine says that it passes on what comes from another one."""
    if b"forwarded" in found:
        return True
    for name in (b"x-forwarded-for", b"x-real-ip"):
        for each in found[name].split(b",") if name in found else ():
            if not _is_local_client(each.strip().decode("latin-1") or "?"):
                return True
    return False


@lru_cache(1_024)
def _is_local_client(host: str) -> bool:
    """Answer whether a client is on this machine. What has no address came through no network."""
    if host in {"", "testclient"}:  # a unix socket; a test of the application without a network
        return True
    try:
        return is_loopback(host.partition("%")[0])
    except ValueError:
        return False
