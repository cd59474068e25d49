"""Ends of runs from workers of other languages: read, turned into settlements by the product's one retry policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .. import codec
from ..backends.base import Backend, Settlement, Verdict
from ..errors import InvalidOption
from ..job import Claimed, JobRecord
from ..outcome import (
    MESSAGE_CHARS_MAX,
    RELEASED,
    TRACEBACK_CHARS_MAX,
    Kind,
    Outcome,
    from_result,
    kept_text,
    unknown,
)
from ..retry import Backoff, decide, hear, is_unheard
from ..settings import duration_ms
from .fields import Duration
from .problems import Fault, Problem

if TYPE_CHECKING:
    from .service import Service

#: Ends of runs in one call: their results may have 1 MiB each.
SETTLEMENTS_MAX = 100

#: Jobs looked up at a time, whose payloads and results are in memory then.
_LOOK_UP_MAX = 20
_KIND_CHARS_MAX = 128

#: The id of a job that a worker holds, and the token it holds it under.
HeldId = Annotated[str, Meta(min_length=1, max_length=256)]
Token = Annotated[str, Meta(min_length=1, max_length=256, description="As the claim answered it.")]


class GivenError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What went wrong, for people. Kept as text, bounded; nothing in it is ever run."""

    kind: Annotated[str, Meta(description="Groups errors: the name of the exception, at most 128 characters.")] = (
        "Error"
    )
    message: Annotated[str, Meta(description="At most 4,096 characters; the middle of a longer one is cut out.")] = ""
    traceback: Annotated[str, Meta(description="At most 16,384 characters, likewise. No secrets.")] = ""


class _End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="outcome", tag=str.lower):
    """The end of a run: the job, and the token under which the worker holds it."""

    id: HeldId
    token: Token


class Succeeded(_End, frozen=True, kw_only=True):
    """The job is done."""

    result: Annotated[
        Any, Meta(description="Any JSON, 64 levels at most; one of more than 1 MiB fails the job for good.")
    ] = None


class Failed(_End, frozen=True, kw_only=True):
    """The run failed. The job is tried again while it has attempts left, unless no attempt will help."""

    error: GivenError = GivenError()
    permanent: Annotated[bool, Meta(description="No attempt will help: to the dead letter queue at once.")] = False


class Retry(_End, frozen=True, kw_only=True):
    """The run wants another attempt, after `delay` or, without it, as after a failure. Costs an attempt, has a last."""

    delay: Duration | UnsetType = UNSET
    error: GivenError = GivenError(kind="Retry", message="the worker asked for a retry")


class Snoozed(_End, frozen=True, kw_only=True):
    """It was too early: run it again after `delay`. Costs no attempt."""

    delay: Duration


class Cancelled(_End, frozen=True, kw_only=True):
    """The job is not needed any more, or was stopped because a heartbeat said so."""

    error: GivenError = GivenError(kind="Cancelled", message="stopped by its worker")


class Released(_End, frozen=True, kw_only=True):
    """The job was not started: it is pending again at once. Costs no attempt."""


class Unknown(_End, frozen=True, kw_only=True):
    """This worker cannot run this type or read this payload: the job is kept for one that can.

    It fails after ten minutes of that; not for its type, while another live worker of its queue names that in `types`.
    """

    message: Annotated[str, Meta(description="What it cannot read; empty: the type is not known.")] = ""


End = Succeeded | Failed | Retry | Snoozed | Cancelled | Released | Unknown


class SettlementsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ends of runs, each judged by itself."""

    payload_depth: ClassVar[int] = 3

    settlements: Annotated[list[End], Meta(min_length=1, max_length=SETTLEMENTS_MAX)]


class SettledBody(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one settlement: `stale` changed nothing, for the job was not held under that token."""

    id: str
    verdict: Literal["applied", "stale"]


class SettledAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the settlements, in the order they were sent."""

    settlements: list[SettledBody]


class Settling:
    """Settles ends of runs. `scoped`: not all jobs of the store may be seen, so each is looked up (FAILURES C19)."""

    def __init__(self, service: Service, backend: Backend, *, scoped: bool) -> None:
        self._app = service.app
        self._park_ms = service.settings.park_ms
        self._backend = backend
        self._handed = service.handed
        self._scoped = scoped

    async def settle(self, ends: Sequence[End]) -> list[Verdict]:
        """Settle ends; answers for each, in order. Raises Problem (422) for a delay that is none, Unavailable."""
        outcomes = [_outcome(end, f"/settlements/{index}") for index, end in enumerate(ends)]
        made: dict[int, Settlement] = {}
        for start in range(0, len(ends), _LOOK_UP_MAX):
            some = range(start, min(len(ends), start + _LOOK_UP_MAX))
            records = await self._records({index: ends[index].id for index in some if self._is_asked(outcomes[index])})
            for index in some:
                record = records.get(index)
                if record is not None or not self._is_asked(outcomes[index]):
                    made[index] = await self._decide(ends[index], outcomes[index], record)
        settlements = list(made.values())
        verdicts = dict(zip(made, await self._backend.settle(settlements), strict=True))
        self._handed.count(settlements, [outcomes[index] for index in made], list(verdicts.values()))
        return [verdicts.get(index, Verdict.STALE) for index in range(len(ends))]

    def _is_asked(self, outcome: Outcome) -> bool:
        """Answer whether a job has to be looked up: what a success comes to depends on nothing."""
        return self._scoped or outcome.kind is not Kind.SUCCEEDED

    async def _records(self, ids: dict[int, str]) -> dict[int, JobRecord | None]:
        if not ids:
            return {}
        return dict(zip(ids, await self._backend.get(list(ids.values())), strict=True))

    async def _decide(self, end: End, outcome: Outcome, record: JobRecord | None) -> Settlement:
        """Make the settlement of an end. Where the job is claimed anew before it arrives, its token is STALE."""
        job = _held(end, record)
        task = self._app.tasks.get(job.type)
        if outcome.kind is Kind.UNKNOWN and not outcome.message:
            outcome = unknown(job.type)
        backoff = task.backoff if task is not None else Backoff()
        made = decide(job, outcome, backoff, self._app.chance, self._app.clock.now_ms(), self._park_ms)
        if not is_unheard(outcome, made):
            return made
        store = await self._app.backend()  # all of it: a scoped view hides types of workers that are shared
        (whole,) = await store.get([job.id])
        return hear(job, made, await store.workers(), None if whole is None else whole.worker)


def _held(end: End, record: JobRecord | None) -> Claimed:
    """Answer a job as its worker holds it. Of one that succeeded only id and token matter."""
    if record is None:
        return Claimed(end.id, end.token, "", b"", 1, 1, 0, "", 0, 0, 0)
    return Claimed(
        end.id,
        end.token,
        record.type,
        b"",
        record.attempt,
        record.max_attempts,
        record.timeout_ms,
        record.queue,
        record.priority,
        record.created_at_ms,
        record.due_at_ms,
        record.parked_at_ms,
    )


def _outcome(end: End, place: str) -> Outcome:
    """Answer the end of a run as an outcome. Raises Problem with the place of what is wrong."""
    match end:
        case Succeeded():
            return from_result(end.result)
        case Failed():
            return _error_outcome(Kind.PERMANENT if end.permanent else Kind.ERROR, end.error)
        case Retry():
            return _error_outcome(Kind.RETRY, end.error, _delay_ms(end.delay, place))
        case Snoozed():
            return Outcome(Kind.SNOOZE, delay_ms=_delay_ms(end.delay, place))
        case Cancelled():
            return _error_outcome(Kind.CANCELLED, end.error)
        case Released():
            return RELEASED
        case Unknown():
            text = kept_text(end.message, MESSAGE_CHARS_MAX)
            return Outcome(Kind.UNKNOWN, error_kind="InvalidPayload", message=text)


def _error_outcome(kind: Kind, error: GivenError, delay_ms: int | None = None) -> Outcome:
    return Outcome(
        kind,
        error_kind=codec.clean_text(error.kind[:_KIND_CHARS_MAX], _KIND_CHARS_MAX),
        message=kept_text(error.message, MESSAGE_CHARS_MAX),
        traceback=kept_text(error.traceback, TRACEBACK_CHARS_MAX),
        delay_ms=delay_ms,
    )


def _delay_ms(delay: object, place: str) -> int | None:
    if delay is UNSET:
        return None
    try:
        return duration_ms(delay, "delay")
    except InvalidOption as error:
        fault = Fault(str(error), pointer=f"{place}/delay")
        raise Problem(422, "invalid-option", "A delay is out of bounds", str(error), faults=(fault,)) from None
