"""Where in a request what was refused stands, for errors that the product raises without knowing of a request.

Their messages begin with the option (`delay: …`), or say what a name cannot name: this looks which member of the body,
which parameter of the URL or which part of the path that is.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import InvalidName, InvalidOption, PackhorseError, UnknownParent
from .problems import Fault, Problem

if TYPE_CHECKING:
    from .operation import Operation

_OPTION = re.compile(r"[a-z_]+(?=[:=])")
_NAMED = re.compile(r"cannot name an? (?:job )?([a-z]+)")


def option_of(error: PackhorseError) -> str:
    """Answer which option an error is about, by its message; empty where it does not say."""
    if isinstance(error, InvalidName):
        found = _NAMED.search(str(error))
        return found[1] if found is not None else ""
    found = _OPTION.match(str(error))
    return found[0] if found is not None else ""


def with_place(problem: Problem, error: PackhorseError, operation: Operation) -> Problem:
    """Answer `problem` with the place in the request where the operation takes what `error` is about, if it is one."""
    if not problem.faults and isinstance(error, InvalidName | InvalidOption | UnknownParent):
        place = _places(operation.path, operation.query, operation.body).get(option_of(error))
        if place is not None:
            problem.faults = (Fault(problem.detail, **place),)
    return problem


@cache
def _places(path: str, query: type[msgspec.Struct] | None, body: type[msgspec.Struct] | None) -> dict[str, Any]:
    """Answer the place of each option: what of a body is meant where several have one name, is the outermost."""
    places: dict[str, Any] = {name: {"parameter": name} for name in re.findall(r"{(\w+)}", path)}
    places |= {name: {"parameter": name} for name in _members(query)}
    outer = dict(_members(body))
    for name, kind in outer.items():
        for part in _structs(kind):
            places |= {inner: {"pointer": f"/{name}/{inner}"} for inner in _members(part)}
    places |= {name: {"pointer": f"/{name}"} for name in outer}
    if "states" in places:  # messages speak of a `state`, as the command line does
        places.setdefault("state", places["states"])
    return places


def _members(kind: type[msgspec.Struct] | None) -> dict[str, Any]:
    return {} if kind is None else {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Answer the structs that a member may be; not those in lists, where nobody knows which one is meant."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    elif typing.get_origin(kind) not in {list, tuple, dict}:
        for part in typing.get_args(kind):
            yield from _structs(part)
