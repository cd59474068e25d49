"""What the operations on jobs answer, as types: for the OpenAPI document, which tests hold the answers to."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..backends.base import Steered
from ..job import State
from .fields import Count, Moment

Next = Annotated[str | None, Meta(description="The `cursor` of the next page; null: this was the last.")]
StatusWord = Annotated[str, Meta(description="`state` in the words of another job engine.")]


class StoredJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was stored, or, with `created` false, the one that was there."""

    id: str
    job_id: Annotated[str, Meta(description="The same as `id`.")]
    type: str
    queue: str
    created: bool
    state: State | msgspec.UnsetType = msgspec.UNSET
    status: StatusWord | msgspec.UnsetType = msgspec.UNSET


class StoredJobs(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that were stored together, in the order given."""

    items: list[StoredJob]
    next: Next


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt of a job ended."""

    attempt: Count
    at: Moment
    kind: str
    message: str
    traceback: str


class JobBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job, as everywhere: CLI and HTTP. `status` says `state` in another engine's words."""

    id: str
    type: str
    queue: str
    state: State
    status: StatusWord
    priority: Annotated[int, Meta(ge=0, le=9, description="0 is soonest.")]
    attempt: Annotated[int, Meta(ge=0, description="Runs so far, of `max_attempts`.")]
    max_attempts: Count
    key: str | None
    tags: list[str]
    meta: dict[str, str]
    payload: Any
    result: Any
    error: Annotated[str | None, Meta(description="The last one; null once the job has succeeded.")]
    errors: list[ErrorBody]
    progress: Annotated[float, Meta(ge=0, le=1)] | None
    progress_note: str | None
    cancel_requested: bool
    unique: str | None
    after: Annotated[list[str], Meta(description="Ids of its parents.")]
    after_failed: str
    waiting_for: Annotated[int, Meta(ge=0, description="Parents that have not ended.")]
    workflow: str | None
    node: str | None
    schedule: str | None
    slot: Moment | None
    worker: str | None
    timeout_ms: Count
    created_at: Moment
    due_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class JobsBody(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs. It may be shorter than asked for: it also ends after about 8 MiB."""

    items: list[JobBody]
    next: Next


class ResultBody(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended: `result` is what its handler returned, `error` why it has none."""

    id: str
    state: State
    result: Any
    error: str | None


class StateBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has not ended."""

    id: str
    state: State


class CauseBody(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that holds a job, or the way it ended. `code` is for programs and does not change."""

    code: str
    text: str
    remedy: str | None
    until: Moment | None
    jobs: Annotated[list[str], Meta(description="Ids of others that have to do with it.")]


class WhyBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job is where it is; the most decisive cause first."""

    id: str
    type: str
    queue: str
    state: State
    causes: list[CauseBody]


class AnswerBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a job now. `requested`: it runs, and its worker will be told to stop it."""

    id: str
    answer: Steered


class AnswersBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of each job now; nothing was changed about one that is ended, live, conflict or missing."""

    items: list[AnswerBody]
    next: Next


class SweepBody(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs matched a filter, and what became of them. A dry run only counts."""

    matched: Count
    dry_run: bool
    done: Count
    requested: Count
    ended: Count
    live: Count
    conflict: Count
    missing: Count
