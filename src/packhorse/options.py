"""The options of a job, read the same way wherever they are given: `using(...)`, `enqueue`, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from . import codec
from .chance import named_id
from .errors import InvalidOption, shown
from .job import (
    AFTER_FAILED,
    AFTER_MAX,
    DELAY_MS_MAX,
    KEY_CHARS_MAX,
    MAX_ATTEMPTS_MAX,
    META_MAX,
    META_VALUE_CHARS_MAX,
    PRIORITIES,
    TAGS_MAX,
    TIMEOUT_MS_MAX,
    State,
    Unique,
    check_name,
)
from .settings import duration_ms

#: The key under which a fixed instant travels until the moment of the enqueue.
AT_MS = "at_ms"

#: How long an enqueue waits for room in a full queue. It belongs to the call, not to the job.
FULL_TIMEOUT_MS = "full_timeout_ms"

#: Arguments that a unique key may be made of.
UNIQUE_ARGUMENTS_MAX = 32

#: Options that say more about a unique key, each with the field of `Unique` it becomes.
_UNIQUE_PARTS = {"unique_for_ms": "for_ms", "unique_states": "states", "on_conflict": "on_conflict"}
ON_CONFLICT = ("existing", "replace", "refuse")


class UniqueKey(NamedTuple):
    """A unique key as text, held as the other options say."""

    key: str


class UniqueBy(NamedTuple):
    """A unique key that is made of a job's arguments: of those named, or of all (None)."""

    names: tuple[str, ...] | None


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options as people write them into fields of `JobSpec` (and `at_ms`). None counts as not given.

    Raises InvalidOption or InvalidName with the remedy in the message.
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        reader = _READERS.get(name)
        if reader is None:
            raise InvalidOption(f"there is no option {name!r}; there are {', '.join(sorted(_READERS))}")
        if value is None and name != "timeout":
            continue
        field, read = reader(value)
        if field in fields and fields[field] != read:
            raise InvalidOption(
                f"{name}={shown(value)} contradicts another option: give max_attempts or max_retries, delay or at"
            )
        fields[field] = read
    if AT_MS in fields and "delay_ms" in fields:
        raise InvalidOption("give delay or at, not both")
    return fields


def over_defaults(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put fields that were given over a task's own. When a job is due is one choice, by `delay` or by `at`.

    A key is held as the task says, unless it was given as a whole `Unique`, or not at all.
    """
    if AT_MS in given or "delay_ms" in given:
        defaults = {name: value for name, value in defaults.items() if name not in {AT_MS, "delay_ms"}}
    lifted = "unique" in given and not isinstance(given["unique"], UniqueKey | UniqueBy)
    if lifted or "unique" not in {**defaults, **given}:
        defaults = {name: value for name, value in defaults.items() if name not in _UNIQUE_PARTS}
    return {**defaults, **given}


def settle_unique(
    fields: Mapping[str, Any], job_type: str, payload: bytes, parameters: Collection[str] = ()
) -> dict[str, Any]:
    """Put what was said about a unique key together, now that the payload is known.

    `parameters` are the arguments the task declares: one that was left out counts as left out. Raises InvalidOption.
    """
    if "unique" not in fields and _UNIQUE_PARTS.keys().isdisjoint(fields):
        return dict(fields)
    parts = {_UNIQUE_PARTS[name]: fields[name] for name in _UNIQUE_PARTS if name in fields}
    fields = {name: value for name, value in fields.items() if name not in _UNIQUE_PARTS}
    unique = fields.get("unique")
    if isinstance(unique, UniqueKey):
        unique = Unique(key=unique.key)
    elif isinstance(unique, UniqueBy):
        unique = Unique(key=_key_of_arguments(unique.names, job_type, payload, parameters))
    if unique is None:
        if parts and "unique" not in fields:  # not where unique=False took the task's own key away
            raise InvalidOption(
                "unique_for, unique_states and on_conflict say more about a unique key: give unique too"
            )
        return fields
    return {**fields, "unique": msgspec.structs.replace(unique, **parts)}


def _key_of_arguments(names: tuple[str, ...] | None, job_type: str, payload: bytes, parameters: Collection[str]) -> str:
    value = codec.decode(payload)
    if names is not None:
        there = value if isinstance(value, dict) else {}
        for name in names:
            if name not in there and name not in parameters:
                known = ", ".join(sorted({*there, *parameters})[:20]) or "none"
                raise InvalidOption(f"unique: there is no argument {shown(name)}; there are {known}")
        value = {name: there[name] for name in sorted(names) if name in there}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"{job_type}:{named_id('unique', job_type, ' '.join(sorted(names or ())), canonical)}"


def _queue(value: object) -> tuple[str, str]:
    return "queue", check_name(value, "queue")


def read_priority(value: object) -> int:
    """Read a priority: high, normal, low, or 0 (soonest) to 9."""
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    if isinstance(value, str) and len(value) == 1 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
        return value
    raise InvalidOption(f"priority: {shown(value)} must be high, normal, low or 0 (soonest) to 9")


def _whole(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidOption(f"{what}: {shown(value)} must be a whole number from {low} to {high}")
    return value


def _timeout(value: object) -> tuple[str, int]:
    return "timeout_ms", 0 if value is None else duration_ms(value, "timeout (None for no limit)", TIMEOUT_MS_MAX)


def read_instant_ms(value: object, what: str = "at") -> int:
    """Read an instant: an aware datetime, or RFC 3339 text with an offset."""
    if isinstance(value, str):
        text = value
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidOption(f"{what}: {shown(text)} is not an instant; write 2030-01-31T09:00:00Z") from None
    if not isinstance(value, datetime):
        raise InvalidOption(f"{what}: {shown(value)} is not an instant; pass an aware datetime or RFC 3339 text")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidOption(
            f"{what}: {value.isoformat()} has no time zone; "
            "write datetime(..., tzinfo=UTC) or end the text with Z or +01:00"
        )
    return round(value.timestamp() * 1000)


def _unique(value: object) -> tuple[str, Unique | UniqueKey | UniqueBy | None]:
    if isinstance(value, bool):
        return "unique", UniqueBy(None) if value else None
    if isinstance(value, list | tuple):
        if not 1 <= len(value) <= UNIQUE_ARGUMENTS_MAX or not all(isinstance(name, str) for name in value):
            raise InvalidOption(f"unique: name 1 to {UNIQUE_ARGUMENTS_MAX} arguments, or give True for all")
        return "unique", UniqueBy(tuple(dict.fromkeys(_short_text(name, "unique") for name in value)))
    if isinstance(value, str):
        return "unique", UniqueKey(_short_text(value, "unique"))
    if not isinstance(value, Unique):
        raise InvalidOption(
            f"unique: {shown(value)} must be a key as text, True (all arguments), a list of arguments, "
            "or packhorse.Unique(key=...)"
        )
    _short_text(value.key, "unique")
    if value.on_conflict not in ON_CONFLICT:
        raise InvalidOption(f"unique: on_conflict={value.on_conflict!r} must be existing, replace or refuse")
    for_ms: object = value.for_ms  # a struct does not check what it is made of
    if not isinstance(for_ms, int) or for_ms < 0 or not set(value.states) <= set(State):
        raise InvalidOption("unique: for_ms must not be negative and states must be states of a job")
    return "unique", value


def _unique_states(value: object) -> tuple[str, tuple[State, ...]]:
    words = value.split(",") if isinstance(value, str) else value
    known = {str(state): state for state in State}
    if not isinstance(words, list | tuple | set | frozenset) or not words:
        raise InvalidOption(f"unique_states: give a list of {', '.join(known)}")
    states = [known.get(str(word).strip()) for word in words]
    if None in states:
        raise InvalidOption(f"unique_states: {shown(value, 80)} must be some of {', '.join(known)}")
    return "unique_states", tuple(state for state in State if state in states)


def _on_conflict(value: object) -> tuple[str, str]:
    if value not in ON_CONFLICT:
        raise InvalidOption(f"on_conflict: {shown(value)} must be existing, replace or refuse")
    return "on_conflict", str(value)


def _idempotency_key(value: object) -> tuple[str, str]:
    """Answer the id of the one job that this key stands for."""
    return "id", named_id("idempotency", _short_text(value, "idempotency_key"))


def _short_text(value: object, what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= KEY_CHARS_MAX or not value.isprintable():
        raise InvalidOption(f"{what}: {shown(value)} must be 1 to {KEY_CHARS_MAX} printable characters")
    return value


def _after(value: object) -> tuple[str, tuple[str, ...]]:
    parents = [value] if isinstance(value, str) or hasattr(value, "id") else value
    if not isinstance(parents, list | tuple) or len(parents) > AFTER_MAX:
        raise InvalidOption(f"after: give a job, its id, or a list of up to {AFTER_MAX}")
    return "after", tuple(dict.fromkeys(_job_id(getattr(parent, "id", parent)) for parent in parents))


def _after_failed(value: object) -> tuple[str, str]:
    if value not in AFTER_FAILED or not isinstance(value, str):
        raise InvalidOption(f"after_failed: {shown(value)} must be one of {', '.join(AFTER_FAILED)}")
    return "after_failed", value


def _job_id(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= KEY_CHARS_MAX or not value.isprintable():
        raise InvalidOption(f"after: {shown(value)} must be a job, its id, or a list of up to {AFTER_MAX}")
    return value


def _tags(value: object) -> tuple[str, tuple[str, ...]]:
    tags = [value] if isinstance(value, str) else value
    if not isinstance(tags, list | tuple | set | frozenset) or len(tags) > TAGS_MAX:
        raise InvalidOption(f"tags: give a list of up to {TAGS_MAX} names")
    return "tags", tuple(dict.fromkeys(check_name(tag, "tag") for tag in tags))


def _meta(value: object) -> tuple[str, dict[str, str]]:
    if not isinstance(value, Mapping) or len(value) > META_MAX:
        raise InvalidOption(f"meta: give up to {META_MAX} names with text")
    for name, text in value.items():
        check_name(name, "meta entry")
        if not isinstance(text, str) or len(text) > META_VALUE_CHARS_MAX or not _storable(text):
            raise InvalidOption(f"meta: {name} must be text of up to {META_VALUE_CHARS_MAX} characters, without NUL")
    return "meta", dict(value)


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


_READERS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "queue": _queue,
    "priority": lambda value: ("priority", read_priority(value)),
    "max_attempts": lambda value: ("max_attempts", _whole(value, "max_attempts", 1, MAX_ATTEMPTS_MAX)),
    "max_retries": lambda value: ("max_attempts", _whole(value, "max_retries", 0, MAX_ATTEMPTS_MAX - 1) + 1),
    "timeout": _timeout,
    "delay": lambda value: ("delay_ms", duration_ms(value, "delay", DELAY_MS_MAX)),
    "at": lambda value: (AT_MS, read_instant_ms(value)),
    "unique": _unique,
    "unique_for": lambda value: ("unique_for_ms", duration_ms(value, "unique_for", DELAY_MS_MAX)),
    "unique_states": _unique_states,
    "on_conflict": _on_conflict,
    "idempotency_key": _idempotency_key,
    "full_timeout": lambda value: (FULL_TIMEOUT_MS, duration_ms(value, "full_timeout", DELAY_MS_MAX)),
    "after": _after,
    "after_failed": _after_failed,
    "key": lambda value: ("key", _short_text(value, "key")),
    "tags": _tags,
    "meta": _meta,
}
