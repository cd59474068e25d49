"""An operation: one method on one path, from a request to a typed call, and from its answer to a response.

    @routes.post("/api/v1/queues/{queue}/pause", may=Permission.STEER, answer=QueueBody)
    async def pause_queue(call: Call, body: Pause) -> Reply: ...

The handler's parameters say what is read and checked before it is called: `body` a struct from the JSON body,
`query` a struct from the query string. The OpenAPI document is made from the same table, so it cannot say
anything else.
"""

from __future__ import annotations

import logging
import re
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import parse_qsl, quote

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..errors import PackhorseError, shown
from .access import CALLER_KEY, Caller, Permission, lacks
from .counting import ROUTE_KEY
from .net.limits import bounds_of, too_large
from .parsing import parse_body
from .placing import with_place
from .problems import MEDIA_TYPE, Fault, Problem, as_problem
from .request import Answer, Request

if TYPE_CHECKING:
    from ..admin import Admin
    from ..backends.base import Backend
    from .service import Service

log = logging.getLogger("packhorse.server")

#: Bytes of a request's body, unless an operation says otherwise: a payload of the largest size, and its options.
BODY_BYTES_MAX = 2 << 20

#: Characters of a query string.
QUERY_CHARS_MAX = 32_768

#: Bytes of a body where none is asked for: some clients send `{}` with everything. Nobody reads it.
_UNASKED_BODY_BYTES_MAX = 1_024


class Reply(msgspec.Struct, frozen=True):
    """What a handler answers: a value that becomes JSON."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] | None = None


class Call:
    """One request on its way to a handler."""

    __slots__ = ("caller", "path", "request", "service")

    def __init__(self, request: Request, service: Service, caller: Caller) -> None:
        self.request = request
        self.service = service
        self.caller = caller
        #: What the braces of the path stand for, decoded; not checked yet.
        self.path: Mapping[str, str] = request.path_params

    async def backend(self) -> Backend:
        """Answer the store as the caller may see it."""
        return await self.service.backend(self.caller)

    async def admin(self) -> Admin:
        """Answer the operator's verbs as the caller may use them."""
        return await self.service.admin(self.caller)

    def header(self, name: str) -> str | None:
        """Answer a header of the request; None where it is not there."""
        return self.request.header(name.lower().encode("latin-1"))


Handler = Callable[..., Awaitable[Reply | Response]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table that the router and the OpenAPI document are made from."""

    method: str
    path: str
    handler: Handler
    may: Permission | None  # None: anybody, without a token
    tag: str
    answer: Any = None  # the type of the JSON that it answers, or a tuple of several; None: see `media_type`
    status: int = 200
    problems: tuple[int, ...] = ()  # beyond those that any operation may answer
    answers: dict[int, Any] = {}  # other successes, each with its type; None: without a body
    body: type[msgspec.Struct] | None = None
    body_needed: bool = True  # else none at all stands for an empty object
    query: type[msgspec.Struct] | None = None
    raw_body: str | None = None  # the type of a body that the handler reads by itself
    body_bytes_max: int = BODY_BYTES_MAX
    media_type: str = "application/json"
    headers: dict[str, str] = {}  # request headers that it reads, each with what it is for
    polled: bool = False  # answers with an ETag, and 304 to whom has that answer already
    ages: frozenset[str] = frozenset()  # members in ms that grow or shrink by themselves, s. `lasting`
    example: Any = None  # a body that it takes

    @property
    def name(self) -> str:
        """The name of the operation in the OpenAPI document."""
        return getattr(self.handler, "__name__", "")

    async def __call__(self, request: Request, service: Service) -> Response:
        """Do the operation. Raises what the handler raises."""
        caller: Caller | None = request.scope.get(CALLER_KEY)
        if caller is None:
            raise RuntimeError("no guard has looked at this request")
        if self.may is not None and not caller.may(self.may):
            raise lacks(caller, self.may)
        given: dict[str, Any] = {}
        if self.query is not None:
            given["query"] = read_query_string(request, self.query)
        elif request.scope["query_string"]:
            raise Problem(400, "invalid-query", "This URL takes no parameters", "leave out what follows the ?")
        if self.body is not None:
            empty = not self.body_needed and _has_no_body(request)
            given["body"] = self.body() if empty else await read_body(request, self.body, self.body_bytes_max)
        elif self.raw_body is None and (bounds := bounds_of(request.scope)) is not None:
            bounds.body_bytes_max = _UNASKED_BODY_BYTES_MAX  # a stream or long poll would count it for as long as it is
        reply = await self.handler(Call(request, service, caller), **given)
        if isinstance(reply, Response):
            return reply
        if reply.status == 204:
            return Response(status_code=204, headers=reply.headers)
        content = msgspec.json.encode(reply.value)
        if self.polled:
            same = msgspec.json.encode(lasting(reply.value, self.ages)) if self.ages else None
            return tagged_response(request, content, reply.headers, same)
        return Answer(content, reply.status, reply.headers)


class Routes:
    """A table of operations, filled by decorators."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.operations: list[Operation] = []

    def _add(self, method: str, path: str, options: dict[str, Any]) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            hints = get_type_hints(handler)
            operation = Operation(
                method=method,
                path=path,
                handler=handler,
                tag=options.pop("tag", self.tag),
                body=hints.get("body"),
                query=hints.get("query"),
                **options,
            )
            self.operations.append(operation)
            return handler

        return add

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register a handler that only looks. Options are fields of `Operation`."""
        return self._add("GET", path, options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register a handler that makes or does something."""
        return self._add("POST", path, options)

    def put(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register a handler that sets something; repeating it is harmless."""
        return self._add("PUT", path, options)

    def delete(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register a handler that removes something."""
        return self._add("DELETE", path, options)


class PathEndpoint:
    """All operations on one path, as an ASGI application."""

    def __init__(self, operations: list[Operation], service: Service) -> None:
        self._by_method = {operation.method: operation for operation in operations}
        if "GET" in self._by_method:
            self._by_method["HEAD"] = self._by_method["GET"]
        self._allow = ", ".join(sorted(self._by_method))
        self._path = operations[0].path
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do what is asked, and answer; errors as problems."""
        scope[ROUTE_KEY] = self._path
        request = Request(scope, receive)
        operation = self._by_method.get(scope["method"])
        response: Response | None
        if operation is None:
            response = problem_response(
                Problem(405, "method-not-allowed", "This URL takes other methods", headers={"Allow": self._allow})
            )
        else:
            response = await _respond(operation, request, self._service)
        if response is not None:
            await response(scope, receive, send)


async def _respond(operation: Operation, request: Request, service: Service) -> Response | None:
    """Do an operation; answers None where nobody listens any more."""
    try:
        return await operation(request, service)
    except ClientDisconnect:
        return None
    except PackhorseError as error:
        problem = as_problem(error, in_query=operation.body is None and operation.raw_body is None)
        if problem is None:
            problem = Problem(500, "internal", "Something went wrong here", str(error))
        problem = with_place(problem, error, operation)
        if problem.status >= 500:  # only these: who guesses passwords in a 4xx's echo must not see which is right
            problem.detail = service.scrub(problem.detail)
        # It would hold this frame, which holds it, and those below, which hold the body. test_letting_go.
        problem.__traceback__ = None
        return problem_response(problem)
    except Exception:
        log.exception("%s %s failed; this is a bug", operation.method, operation.path)
        return problem_response(Problem(500, "internal", "Something went wrong here", "the server's log says what"))


def routes_of(tables: list[Routes], service: Service) -> list[Route]:
    """Answer the router's routes, one for each path; those with fewer variable parts first."""
    by_path: dict[str, list[Operation]] = {}
    for table in tables:
        for operation in table.operations:
            by_path.setdefault(operation.path, []).append(operation)
    paths = sorted(by_path, key=lambda path: (path.count("{"), path != "/api/v1/jobs"))
    return [Route(path, PathEndpoint(by_path[path], service)) for path in paths]


def lasting(value: Any, ages: frozenset[str]) -> Any:
    """Answer what of an answer tells whether it is still good: all of it, but of ages only how long they are in bits.

    Else it would change with every millisecond. So an age that somebody has may have doubled, and no more.
    """
    if isinstance(value, dict):
        return {
            name: None if item is None else (item // 1_000).bit_length() if name in ages else lasting(item, ages)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [lasting(item, ages) for item in value]
    return value


def tagged_response(
    request: Request, content: bytes, headers: Mapping[str, str] | None = None, same: bytes | None = None
) -> Response:
    """Answer JSON with an ETag, a hash of it or, weakly, of what it is the `same` by; 304 to whom has it already."""
    tag = f'"{blake2b(content if same is None else same, digest_size=16).hexdigest()}"'
    headers = {**(headers or {}), "ETag": tag if same is None else f"W/{tag}"}
    known = request.header(b"if-none-match") or ""
    if known.strip() == "*" or tag in {one.strip().removeprefix("W/") for one in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Answer(content, 200, headers)


def problem_response(problem: Problem) -> Response:
    """Answer a problem as a response."""
    return Answer(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


# ---- reading -----------------------------------------------------------------------------------------------

T = typing.TypeVar("T", bound=msgspec.Struct)


def read_query_string(request: Request, kind: type[T]) -> T:
    """Read the query string into a struct: numbers and booleans from text, lists from repeated names.

    Raises Problem (400) for a parameter that does not exist, is there twice, or cannot be read.
    """
    raw: bytes = request.scope["query_string"]
    if len(raw) > QUERY_CHARS_MAX:
        raise Problem(414, "query-too-long", "The query string is too long", f"at most {QUERY_CHARS_MAX} characters")
    parameters = _parameters(kind)
    found: dict[str, Any] = {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:  # bytes that are not UTF-8
        raise Problem(400, "invalid-query", "The query string cannot be read", str(error)[:200]) from None
    for name, text in pairs:
        kinds = parameters.get(name)
        if kinds is None:
            raise _bad_parameter(name, f"there is no parameter {shown(name)}; there are {', '.join(parameters)}")
        if list in kinds:
            found.setdefault(name, []).append(text)
        elif name in found:
            raise _bad_parameter(name, f"{shown(name)} is there twice")
        else:
            found[name] = _read_text(name, text, kinds)
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").partition("[")[0]
        raise _bad_parameter(name, message) from None


def _read_text(name: str, text: str, kinds: frozenset[Any]) -> Any:
    """Read a parameter: one way to write a number and a boolean, or a limit of 1e9 is another (FAILURES C6)."""
    if bool in kinds:
        if text not in {"true", "false"}:
            raise _bad_parameter(name, f"{shown(text)} must be true or false")
        return text == "true"
    if int in kinds:
        if not _WHOLE.fullmatch(text):
            raise _bad_parameter(name, f"{shown(text)} must be a whole number")
        return int(text)
    return text


_WHOLE = re.compile(r"-?[0-9]{1,18}")


@cache
def _parameters(kind: type[msgspec.Struct]) -> dict[str, frozenset[Any]]:
    """Answer which parameters there are, each with the plain types that it may have."""
    return {field.encode_name: frozenset(_plain(field.type)) for field in msgspec.structs.fields(kind)}


def _plain(kind: Any) -> Iterator[Any]:
    origin = typing.get_origin(kind)
    if origin in {list, tuple}:
        yield list
    elif origin is typing.Annotated:
        yield from _plain(typing.get_args(kind)[0])
    elif origin in {typing.Union, types.UnionType}:
        for part in typing.get_args(kind):
            yield from _plain(part)
    else:
        yield kind


def _bad_parameter(name: str, detail: str) -> Problem:
    return Problem(
        400,
        "invalid-query",
        "A parameter is wrong",
        f"{name}: {detail}"[:500],
        faults=(Fault(detail, parameter=name[:80]),),
    )


def _has_no_body(request: Request) -> bool:
    named = request.header(b"content-type") is not None or request.header(b"transfer-encoding") is not None
    return not named and request.header(b"content-length") in {None, "0"}


async def read_body(request: Request, kind: type[T], bytes_max: int = BODY_BYTES_MAX) -> T:
    """Read a JSON body into a struct, strictly. Raises Problem (413, 415, 422), with the place."""
    return await parse_body(await read_json_bytes(request, bytes_max), kind, bytes_max)


async def read_json_bytes(request: Request, bytes_max: int, media_type: str = "application/json") -> bytes:
    """Read a body that says it is JSON: no form and no plain text, which any page may send (FAILURES C2)."""
    given = request.header(b"content-type") or ""
    if given != media_type and not _is_of(given, media_type):
        detail = f"send Content-Type: {media_type}, not {shown(given)}"
        raise Problem(
            415,
            "unsupported-media-type",
            "The body must be JSON" if media_type == "application/json" else "The body is of another type",
            detail,
            faults=(Fault(detail, parameter="Content-Type"),),
        )
    size = request.header(b"content-length")
    if size is not None and size.isascii() and size.isdigit() and int(size[:20]) > bytes_max:
        raise too_large(bytes_max)
    chunks: list[bytes] = []
    total, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        total += len(chunk)
        if total > bytes_max:
            raise too_large(bytes_max)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _is_of(given: str, media_type: str) -> bool:
    """Whether a Content-Type is this one; JSON is UTF-8 (RFC 8259), so no other charset is taken for it."""
    name, *parameters = given.lower().split(";")
    pairs = (parameter.partition("=") for parameter in parameters)
    charsets = {value.strip().strip('"') for name, _, value in pairs if name.strip() == "charset"}
    return name.strip() == media_type and charsets <= {"utf-8"}


def location(place: str, name: str) -> dict[str, str]:
    """Answer the header that says where a thing is; its name is what a stranger chose, perhaps elsewhere."""
    return {"Location": place + quote(name, safe="")}


__all__ = [
    "BODY_BYTES_MAX",
    "Call",
    "Operation",
    "PathEndpoint",
    "Reply",
    "Routes",
    "problem_response",
    "read_body",
    "read_json_bytes",
    "read_query_string",
    "routes_of",
    "tagged_response",
]
