"""The OpenAPI 3.1 document, made from the table of operations and from the tasks that are registered.

Nothing here is written twice: paths, parameters and bodies come from what the handlers declare, descriptions from
their docstrings, and the payload of a job type from the signature of its task.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from .access import role_for
from .door.sessions import COOKIE
from .fields import NAME_PATTERN
from .operation import Operation
from .payloads import payload_schema, rerooted
from .problems import MEDIA_TYPE

if TYPE_CHECKING:
    from ..task import Task

Document = dict[str, Any]

_COMPONENTS = "#/components/schemas/"

#: Statuses that any operation may answer with: a request that cannot be read, the guard, the store, a bug.
_ALWAYS = (400, 401, 403, 429, 500, 503)
_WITH_QUERY = (414,)
_WITH_BODY = (413, 415, 422)

#: Names in paths that follow the one rule for names; what else stands in braces is an id.
_NAMES = frozenset({"queue", "type", "name"})

_TAGS = {
    "jobs": "Jobs in, what became of them, and what stops, reruns and removes them.",
    "queues": "What is in the queues, and whether workers may take it.",
    "limits": "How fast jobs of a type start and how many run at once, over all workers.",
    "dead-letter": "The jobs that have failed for good.",
    "schedules": "Recurring jobs.",
    "workflows": "Jobs that start when others have ended.",
    "stats": "How the whole stands.",
    "job types": "Which jobs can be enqueued, and with what payloads.",
    "work": "For workers in any language: claim, settle, heartbeat.",
    "events": "What happens to jobs, as it happens.",
    "session": "For a page in a browser.",
    "health": "For load balancers and supervisors.",
    "plain": "The routes and words of a simpler job engine.",
    "document": "This document.",
}

_ABOUT = (
    "Jobs in and out, for programs in any language and for operators. Errors are problems (RFC 9457): `type` is for "
    "programs, `detail` says what to do, `errors` point at the wrong places. Lists are `items` and the `next` cursor. "
    "Durations are seconds or text as `30s`; instants are RFC 3339 in UTC. An answer with an `ETag` costs nothing to "
    "ask for again: send it as `If-None-Match`. Where it has ages (`oldest_pending_ms`, `lease_left_ms`), which change "
    "by themselves, 304 says that they have at most doubled. A server that listens on this machine only may need no "
    "token."
)


class FaultBody(msgspec.Struct, frozen=True, kw_only=True):
    """One wrong place of a request: `pointer` (RFC 6901) into the body, or `parameter` of the URL or header."""

    detail: str
    pointer: str | msgspec.UnsetType = msgspec.UNSET
    parameter: str | msgspec.UnsetType = msgspec.UNSET


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong (RFC 9457). `type` does not change; more members say more about some of them."""

    type: str
    title: str
    status: int
    detail: str | msgspec.UnsetType = msgspec.UNSET
    errors: list[FaultBody] | msgspec.UnsetType = msgspec.UNSET


def make_document(operations: Sequence[Operation], tasks: Mapping[str, Task[..., Any]]) -> Document:
    """Make the document of all operations. Raises ValueError where two of them have one name."""
    from .. import __version__

    operations = [operation for operation in operations if operation.raw_body is None]  # packhorses among themselves
    twice = [name for name, count in Counter(operation.name for operation in operations).items() if count > 1]
    if twice:
        raise ValueError(f"several operations are called {', '.join(twice)}; clients are made by these names")
    schemas = _Schemas(operations)
    paths: Document = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    _describe_payloads(schemas.components, tasks)
    tags = list(dict.fromkeys(operation.tag for operation in operations))
    return {
        "openapi": "3.1.0",
        "info": {"title": "packhorse", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"cookie": []}],
        "tags": [{"name": tag, "description": _TAGS.get(tag, tag)} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": dict(sorted(schemas.responses.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


class _Schemas:
    """The schemas of all types that the operations name, made together so that each is there once."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._kinds: list[Any] = [ProblemBody]
        self.responses: dict[str, Document] = {}
        for operation in operations:
            for answer in (operation.answer, operation.body, operation.query, *operation.answers.values()):
                for kind in answer if isinstance(answer, tuple) else (answer,):
                    if kind is not None and kind not in self._kinds:
                        self._kinds.append(kind)
        self._schemas, self.components = msgspec.json.schema_components(
            self._kinds, ref_template=_COMPONENTS + "{name}"
        )
        for kind in self._kinds:  # what a struct's fields alone do not say
            rules = getattr(kind, "openapi", None)
            if rules is not None:
                self.components[self.of(kind)["$ref"].removeprefix(_COMPONENTS)].update(rules)
        queries = {operation.query for operation in operations} - {operation.body for operation in operations}
        self._queries = {
            kind: self.components.pop(self.of(kind)["$ref"].removeprefix(_COMPONENTS))
            for kind in queries
            if kind is not None
        }

    def of(self, kind: Any) -> Document:
        """Answer the schema of a type, mostly a reference; of several, that of any of them."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(one) for one in kind]}
        return self._schemas[self._kinds.index(kind)]

    def problem(self, status: int) -> str:
        """Answer the name of the response that says what went wrong, with this status."""
        name = f"Problem{status}"
        response: Document = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": self.of(ProblemBody)}},
        }
        if status in {429, 503}:
            response["headers"] = {"Retry-After": _header_of("Seconds after which to try again.", "integer")}
        self.responses[name] = response
        return name

    def parameters(self, query: type[msgspec.Struct]) -> list[Document]:
        """Answer the query parameters that a struct describes."""
        whole = self._queries[query]
        found = []
        for name, schema in whole["properties"].items():
            schema = dict(schema)  # noqa: PLW2901  # the component keeps its description
            parameter: Document = {"name": name, "in": "query", "required": name in whole.get("required", ())}
            if "description" in schema:
                parameter["description"] = schema.pop("description")
            found.append(parameter | {"schema": schema})
        return found


def _operation(operation: Operation, schemas: _Schemas) -> Document:
    summary, _, rest = inspect.cleandoc(operation.handler.__doc__ or operation.name).partition("\n")
    described: Document = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": summary.strip(),
        "responses": _responses(operation, schemas),
    }
    about = [" ".join(part.split()) for part in rest.split("\n\n") if part.strip()]
    if operation.may is None:
        described["security"] = []
    else:
        about.append(f"Needs the right to {operation.may}: a token of role {role_for(operation.may)}.")
    if about:
        described["description"] = "\n\n".join(about)
    parameters = [_path_parameter(name) for name in re.findall(r"{(\w+)}", operation.path)]
    if operation.query is not None:
        parameters += schemas.parameters(operation.query)
    parameters += [_header(name, text) for name, text in operation.headers.items()]
    if operation.polled:
        parameters.append(_header("If-None-Match", "The ETag of an answer that is here already."))
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        content: Document = {"schema": schemas.of(operation.body)}
        if operation.example is not None:
            content["example"] = operation.example
        described["requestBody"] = {"required": operation.body_needed, "content": {"application/json": content}}
    return described


def _path_parameter(name: str) -> Document:
    schema = {"type": "string", "pattern": NAME_PATTERN} if name in _NAMES else {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, text: str) -> Document:
    schema: Document = {"type": "string"}
    if name == "Idempotency-Key":
        schema |= {"minLength": 1, "maxLength": 256}
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _responses(operation: Operation, schemas: _Schemas) -> Document:
    problems = {*_ALWAYS, *operation.problems}
    if operation.query is not None:
        problems.update(_WITH_QUERY)
    if operation.body is not None:
        problems.update(_WITH_BODY)
    successes = {operation.status: operation.answer, **operation.answers}
    found: Document = {}
    for status in sorted({*successes, *problems}):
        if status not in successes:
            found[str(status)] = {"$ref": f"#/components/responses/{schemas.problem(status)}"}
            continue
        content: Document = {}
        if successes[status] is not None:
            content["application/json"] = {"schema": schemas.of(successes[status])}
        elif status != 204:
            content[operation.media_type] = {"schema": {"type": "string"}}
        if status in problems:
            content[MEDIA_TYPE] = {"schema": schemas.of(ProblemBody)}
        response: Document = {"description": HTTPStatus(status).phrase}
        if content:
            response["content"] = content
        if operation.polled and status == 200:
            response["headers"] = {"ETag": _header_of("Names this answer.", "string")}
        found[str(status)] = response
    if operation.polled:
        found["304"] = {"description": "The answer is the one that `If-None-Match` names."}
    return found


def _header_of(text: str, kind: str) -> Document:
    return {"description": text, "schema": {"type": kind}}


def _describe_payloads(components: dict[str, Any], tasks: Mapping[str, Task[..., Any]]) -> None:
    """Add the payload of each registered type, and say in `NewJob` which belongs to which."""
    branches: list[Document] = []
    for job_type, task in sorted(tasks.items()):
        name = f"payload.{job_type}"
        schema, parts = _inlined(*rerooted(payload_schema(task), f"{_COMPONENTS}{name}."))
        required = ["type", "payload"] if _required(schema, parts) else ["type"]
        if task.description:
            schema["description"] = task.description
        components[name] = schema
        components.update({f"{name}.{part}": part_schema for part, part_schema in parts.items()})
        branches.append(
            {
                "properties": {"type": {"enum": [job_type]}, "payload": {"$ref": _COMPONENTS + name}},
                "required": required,
            }
        )
    if branches and "NewJob" in components:
        branches.append({"properties": {"type": {"not": {"enum": sorted(tasks)}}}})
        components["NewJob"]["allOf"] = [*components["NewJob"].get("allOf", ()), {"oneOf": branches}]


def _inlined(schema: Document, parts: dict[str, Document]) -> tuple[Document, dict[str, Document]]:
    """Put the schema that a reference alone names in its place.

    Titles go: generators name classes by them, and every handler's struct is called Arguments.
    """
    reference = schema.get("$ref")
    if reference is not None and len(schema) == 1:
        name = reference.rpartition(".")[2]
        schema = parts[name] if reference in str(parts) else parts.pop(name)
    plain = [{key: value for key, value in each.items() if key != "title"} for each in (schema, *parts.values())]
    return plain[0], dict(zip(parts, plain[1:], strict=True))


def _required(schema: Document, parts: Mapping[str, Document]) -> bool:
    """Tell whether a payload of {} would not do."""
    if "anyOf" in schema:
        return all(_required(one, parts) for one in schema["anyOf"])
    schema = parts.get(schema.get("$ref", "").rpartition(".")[2], schema)
    return bool(schema.get("required")) or schema.get("type", "object") != "object" or "not" in schema
