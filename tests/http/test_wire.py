"""The table both ends share: complete, its revision true to its types, and errors that come back as they were."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from packhorse import errors, job
from packhorse.backends import messages
from packhorse.backends.base import Backend
from packhorse.backends.http import failures, wire
from packhorse.backends.http.backend import HTTPBackend
from packhorse.backends.http.failures import Answered, error_of
from packhorse.errors import PackhorseError
from packhorse.limits import check_limit_change
from packhorse.server import checking, problems
from packhorse.server.app import operations
from packhorse.server.problems import as_problem

NOT_ON_THE_WIRE = {"open", "close", "bind"}

#: What the revision stands for. When this differs, raise `wire.REVISION` and write down the new digest.
REVISIONS = {1: "9cb10a05b4445f99", 2: "7f0a64725faab044", 3: "4b3065273f7758c2"}


def test_every_verb_of_the_contract_is_on_the_wire() -> None:
    verbs = {name for name, member in vars(Backend).items() if inspect.isfunction(member) and not name.startswith("_")}
    named = {verb.name for verb in wire.VERBS} | {wire.WATCH.name}
    assert named == verbs - NOT_ON_THE_WIRE
    assert verbs - {"bind"} <= set(vars(HTTPBackend)), "bind is refused, all others are passed on"
    served = {operation.path for operation in operations()}
    assert {verb.path for verb in (*wire.VERBS, wire.WATCH)} <= served


def test_every_verb_has_its_check() -> None:
    assert {verb.arguments for verb in wire.VERBS} == set(checking._CHECKS)


#: Fields that need no look: their type leaves nothing to be wrong.
FREE = {"refund", "park", "cancel_requested", "paused", "removed", "cleared", "oldest_first", "brief", "last"}


@pytest.mark.parametrize("verb", wire.VERBS, ids=lambda verb: verb.name)
def test_every_field_that_arrives_is_looked_at(verb: wire.Verb[Any, Any]) -> None:
    """A new field of a struct that crosses the network is checked, or said to need no check."""
    seen: dict[str, Any] = {}
    _describe(verb.arguments, seen)
    source = inspect.getsource(checking) + inspect.getsource(check_limit_change)
    for name in seen:
        kind = next((vars(module)[name] for module in (wire, messages, job) if hasattr(module, name)), None)
        if kind is None or not hasattr(kind, "__struct_fields__"):
            continue
        missing = [field for field in kind.__struct_fields__ if field not in FREE and f".{field}" not in source]
        assert not missing, f"nobody looks at {missing} of {name}"


def _describe(kind: Any, seen: dict[str, Any]) -> str:
    """Describe a type with all structs below it, so that any change of a field shows."""
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        if kind.__name__ not in seen:
            seen[kind.__name__] = ""
            hints = get_type_hints(kind, include_extras=True)
            fields = [f"{name}: {_describe(hints[name], seen)}" for name in kind.__struct_fields__]
            seen[kind.__name__] = f"{', '.join(fields)} {kind.__struct_config__.array_like}"
        return kind.__name__
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct | str | int) and hasattr(kind, "__members__"):
        return f"{kind.__name__}({', '.join(str(member.value) for member in kind)})"
    below = [_describe(part, seen) for part in get_args(kind)]
    name = getattr(kind, "__origin__", kind)
    return f"{getattr(name, '__name__', name)}[{', '.join(below)}]" if below else str(getattr(kind, "__name__", kind))


def test_a_changed_type_on_the_wire_raises_the_revision() -> None:
    seen: dict[str, Any] = {}
    text = "\n".join(
        f"{verb.name} {_describe(verb.arguments, seen)} {_describe(verb.answer, seen)}" for verb in wire.VERBS
    )
    text += f"{_describe(wire.Rings, seen)} {_describe(wire.Watch, seen)}"
    digest = hashlib.sha256(f"{text}\n{sorted(seen.items())}".encode()).hexdigest()[:16]
    assert REVISIONS.get(wire.REVISION) == digest, f"what crosses the network changed: revision {wire.REVISION + 1}?"


ERRORS: list[PackhorseError] = [
    errors.InvalidName("a name"),
    errors.InvalidOption("an option"),
    errors.InvalidPayload("not JSON", "/a/0"),
    errors.PayloadTooLarge("too much", "/b"),
    errors.UnknownType("no task"),
    errors.UniqueConflict("key", "holder"),
    errors.IdempotencyConflict("job-1"),
    errors.UnknownParent("parent"),
    errors.QueueFull("mail", 7, 250),
    errors.ResultsTooLarge(3, 16),
    errors.Forbidden("this needs the right to work"),
    errors.OutOfScope(frozenset({"a"}), "b"),
    errors.OutOfScope(frozenset({"a"})),
    errors.Unsupported("bind", "do otherwise"),
    errors.NotFound("nothing"),
    errors.ConfigurationError("a setting"),
    errors.SchemaMismatch(3, 5, "migrate"),
    errors.Unavailable("away"),
    errors.StoreFull("full"),
    errors.Refused("no"),
    errors.PackhorseError("something else"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_with_its_words_and_fields(error: PackhorseError) -> None:
    problem = as_problem(error) or problems.Problem(500, "internal", "Something went wrong here", str(error))
    answer = Answered(problem.status, failures.MEDIA_TYPE, problem.body())
    back = error_of(answer, "http://server", opened=True)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_every_error_of_the_servers_table_is_known_to_the_client() -> None:
    own = {"unauthorized"}
    kinds = {name: kind for kind, _, name, _ in problems._TABLE}
    for name, kind in kinds.items():
        if name not in own and kind.__module__ == "packhorse.errors":
            assert failures.KINDS.get(name, (None,))[0] is kind, name


def test_an_error_with_fields_of_another_type_still_is_one() -> None:
    body = b'{"type":"urn:packhorse:queue-full","detail":"full","queue":{"a":1},"capacity":"x","retry_after_ms":null}'
    back = error_of(Answered(429, failures.MEDIA_TYPE, body), "http://server", opened=True)
    assert isinstance(back, errors.QueueFull)
    assert (back.queue, back.capacity, back.retry_after_ms) == ("", 0, 1_000)


def test_arguments_are_read_without_the_http_client() -> None:
    """The server needs no aiohttp: what both ends share imports none of it."""
    import subprocess
    import sys

    code = "import sys, packhorse.server.app; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_client_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from packhorse.backends.opening import open_backend

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ConfigurationError, match=r"pip install 'packhorse\[http\]'"):
        open_backend("https://:secret@host")


def test_bind_is_refused_by_name() -> None:
    backend = HTTPBackend("http://127.0.0.1:1")
    with pytest.raises(errors.Unsupported) as refused:
        backend.bind(object())
    assert refused.value.flag == "bind"
    assert not asyncio.iscoroutinefunction(backend.bind)
