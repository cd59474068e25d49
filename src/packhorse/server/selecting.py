"""Which jobs an operation is about: filters in a URL and in a body, and jobs by id."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..admin import read_query
from ..admin_text import read_states
from ..backends.base import Query
from ..job import State
from .fields import Cursor, Duration, Ids, Instant, Key, Limit, Name
from .problems import Fault, Problem

States = Annotated[list[State], Meta(min_length=1, description="Only jobs in one of these states: at least one.")]
StatesText = Annotated[
    list[Annotated[str, Meta(extra_json_schema={"enum": [str(state) for state in State]})]],
    Meta(description="Only jobs in one of these states; repeat it, or join them by commas."),
]
Group = Annotated[
    str,
    Meta(
        description="Only failed jobs with this error: the `fingerprint` of a group.",
        extra_json_schema={"pattern": "^([0-9a-f]{12}|none)$"},
    ),
]


class FailedFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which failed jobs; all given parts must match."""

    queue: Name | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    tag: Name | UnsetType = UNSET
    key: Key | UnsetType = UNSET
    created_from: Instant | UnsetType = UNSET
    created_before: Instant | UnsetType = UNSET

    def query(self) -> Query:
        """Answer the filter as the backends take it. Raises InvalidName, InvalidOption."""
        return read_query(
            queue=_given(self.queue),
            job_type=_given(self.type),
            tag=_given(self.tag),
            key=_given(self.key),
            created_from=_given(self.created_from),
            created_before=_given(self.created_before),
        )


class FailedPage(FailedFilter, frozen=True, kw_only=True):
    """Which failed jobs, and how many of them."""

    limit: Limit = 100
    cursor: Cursor | UnsetType = UNSET
    brief: Annotated[bool, Meta(description="Leave out payloads and results: both are null.")] = False

    def query(self) -> Query:
        """Answer the filter as the backends take it. Raises InvalidName, InvalidOption."""
        cursor = read_query(limit=self.limit, cursor=_given(self.cursor)).cursor
        return msgspec.structs.replace(super().query(), limit=self.limit, cursor=cursor, brief=self.brief)


class JobsPage(FailedPage, frozen=True, kw_only=True):
    """Which jobs, in what order, and how many of them."""

    state: StatesText = []
    oldest_first: Annotated[bool, Meta(description="Oldest first instead of newest first.")] = False

    def query(self) -> Query:
        """Answer the filter as the backends take it. Raises InvalidName, InvalidOption."""
        states = read_states(self.state) if self.state else ()  # a parameter that is there has a text, if an empty one
        return msgspec.structs.replace(super().query(), states=states, oldest_first=self.oldest_first)


class JobFilter(FailedFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs; all given parts must match. An empty one is all jobs that the verb can act upon."""

    states: States | UnsetType = UNSET

    def query(self) -> Query:
        """Answer the filter as the backends take it. Raises InvalidName, InvalidOption."""
        states = () if self.states is UNSET else tuple(dict.fromkeys(self.states))
        return msgspec.structs.replace(super().query(), states=states)


class DeadFilter(FailedFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which failed jobs; all given parts must match. An empty one is all of them."""


def _one_of(*choices: str | tuple[str, ...]) -> dict[str, Any]:
    """Answer the JSON Schema of one choice: a member, or any of several."""
    rules = [
        {"required": [choice]} if isinstance(choice, str) else {"anyOf": [{"required": [name]} for name in choice]}
        for choice in choices
    ]
    return {"allOf": [{"oneOf": rules}]}


def _unless_ids(names: dict[str, Any]) -> dict[str, Any]:
    """Answer the JSON Schema of members, by their schemas, that are not for jobs by id."""
    return {"allOf": [{"not": {"required": ["ids", name], "properties": {name: names[name]}}} for name in names]}


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"allOf": one["allOf"] + other["allOf"]}


_DRY = {"dry_run": {"const": True}}
DryRun = Annotated[bool, Meta(description="Only count the jobs that match a filter.")]


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs by `ids`, or all that match a `filter`."""

    openapi: ClassVar[dict[str, Any]] = _both(_one_of("ids", "filter"), _unless_ids(_DRY))

    ids: Ids | UnsetType = UNSET
    filter: JobFilter | UnsetType = UNSET
    dry_run: DryRun = False


class RerunSelection(Selection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs by `ids`, or all that match a `filter`: failed ones only, unless it names other states."""

    delay: Annotated[Duration, Meta(description="Start them after this time.")] | UnsetType = UNSET


class DeleteSelection(Selection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs by `ids`, or all that match a `filter`, a `group` of failed ones, or both."""

    openapi: ClassVar[dict[str, Any]] = _both(_one_of("ids", ("filter", "group")), _unless_ids(_DRY))

    group: Group | UnsetType = UNSET


class DeadSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Failed jobs: all that match a `filter`, a `group`, or both; {"filter": {}} is all of them."""

    openapi: ClassVar[dict[str, Any]] = _one_of(("filter", "group"))

    filter: DeadFilter | UnsetType = UNSET
    group: Group | UnsetType = UNSET
    dry_run: DryRun = False


class DeadRerun(DeadSelection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs by `ids`, or failed jobs: all that match a `filter`, a `group`, or both; {"filter": {}} is all of them."""

    openapi: ClassVar[dict[str, Any]] = _both(_one_of("ids", ("filter", "group")), _unless_ids({**_DRY, "rate": {}}))

    ids: Ids | UnsetType = UNSET
    rate: (
        Annotated[
            str,
            Meta(
                description="Start no more of them in a time, the oldest first: 10/s, 100/m, 5/10s.",
                extra_json_schema={"pattern": "^[1-9][0-9]{0,5}/([1-9][0-9]?)?(ms|s|m|h|d)$"},
            ),
        ]
        | UnsetType
    ) = UNSET
    delay: Annotated[Duration, Meta(description="Start the first of them after this time.")] | UnsetType = UNSET


def check_selection(ids: object, *, filtered: bool, dry_run: bool) -> None:
    """Refuse what names no jobs, or names them twice over. Nothing means all jobs by being left out."""
    if ids is not UNSET and filtered:
        raise _wrong("give ids, or a filter, not both", "/ids")
    if ids is not UNSET and dry_run:
        raise _wrong("a dry run is for filters; look at one job with GET /api/v1/jobs/{id}", "/dry_run")
    if ids is UNSET and not filtered:
        raise _wrong('name the jobs, by ids or by filter; {"filter": {}} is all that the verb can act upon', "")


def _wrong(detail: str, pointer: str) -> Problem:
    return Problem(
        422, "invalid-option", "The jobs are not well named", detail, faults=(Fault(detail, pointer=pointer),)
    )


def _given(value: str | UnsetType) -> str | None:
    return None if value is UNSET else value
