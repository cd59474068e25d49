"""The JSON Schemas of payloads: of the tasks that are registered here."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..task import Task

log = logging.getLogger("packhorse.server")

_DEFS = "#/$defs/"
#: Deeper is no schema that somebody wrote.
_DEPTH_MAX = 100


def payload_schema(task: Task[..., Any]) -> dict[str, Any]:
    """Answer the JSON Schema of a task's payload, whole in itself; of anything where its annotations have none."""
    try:
        schema, parts = rerooted(task.arguments.schema(), _DEFS)
    except Exception as error:  # a model of the user's may raise anything while it describes itself
        log.warning("the payload of %s has no JSON Schema: %s", task.type, error)
        return {}
    return {**schema, "$defs": parts} if parts else schema


def rerooted(schema: dict[str, Any], root: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take a schema apart: it, and the definitions in it by name, with references that begin with `root`.

    Definitions are gathered from everywhere: a model of the user's brings its own, as if it stood alone.
    """
    parts: dict[str, Any] = {}

    def walk(node: Any, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            return {}
        if isinstance(node, list):
            return [walk(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        for name, definition in node.get("$defs", {}).items():
            parts.setdefault(_safe(name), walk(definition, depth + 1))
        found = {name: walk(value, depth + 1) for name, value in node.items() if name not in {"$defs", "$ref"}}
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith(_DEFS):
            found["$ref"] = root + _safe(reference.removeprefix(_DEFS))
        return found

    found = walk(schema, 0)
    return _resolvable(found, root, parts), {name: _resolvable(part, root, parts) for name, part in parts.items()}


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _resolvable(node: Any, root: str, parts: dict[str, Any]) -> Any:
    """Take out references to what is not there."""
    if isinstance(node, list):
        return [_resolvable(item, root, parts) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.removeprefix(root) not in parts:
        node = {name: value for name, value in node.items() if name != "$ref"}
    return {name: _resolvable(value, root, parts) for name, value in node.items()}
