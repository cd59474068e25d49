"""`/api/v1/claims`, `/settlements`, `/heartbeats`: what a worker needs, in any language.

docs/workers-over-http.md says what a worker must do; `examples/workers` has two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from ... import codec
from ...backends.base import BATCH_MAX, Note, WorkerInfo
from ...context import NOTE_CHARS_MAX
from ...errors import InvalidName, InvalidOption
from ...job import Claimed, check_name
from ...settings import duration_ms
from ...shapes import instant_json
from ...worker.lapses import say_lapses
from ..access import Permission
from ..claiming import Claim, Claiming, Handing, HangUp
from ..fields import DURATION_PATTERN, WAIT_PATTERN, Moment, Name
from ..operation import Call, Reply, Routes
from ..problems import Fault, Problem
from ..settling import HeldId, SettledAnswer, SettlementsBody, Settling, Token
from ..waiting import take_wait

routes = Routes("work")

#: Jobs of one claim: each may have a payload of 1 MiB.
CLAIMED_MAX = 100
#: How long a claim waits at most, ms.
WAIT_MS_MAX = 60_000
LEASE_MS_MIN, LEASE_MS_MAX = 1_000, 86_400_000
#: A worker's lease is renewed by a claim when this part of it is gone.
_RENEWED_AFTER = 1 / 3

_WORKER = "Who asks: an id made anew at every start of the worker, so that it is never taken for the one before."
_LEASE = "How long the worker holds its jobs without being heard of: 1s to 1d. The same in every call."
_NAMES_MAX = 100
_WENT_AWAY = "its worker went away"

WorkerId = Annotated[Name, Meta(description=_WORKER)]
Lease = Annotated[
    Annotated[int, Meta(ge=LEASE_MS_MIN // 1000, le=LEASE_MS_MAX // 1000)]
    | Annotated[float, Meta(ge=LEASE_MS_MIN // 1000, le=LEASE_MS_MAX // 1000)]
    | Annotated[str, Meta(extra_json_schema={"pattern": DURATION_PATTERN})],
    Meta(description=_LEASE),
]
Queues = Annotated[
    list[Name], Meta(min_length=1, max_length=_NAMES_MAX, description="Taken from in this order, best first in each.")
]
Types = Annotated[
    list[Name],
    Meta(max_length=1_000, description="The job types it knows. Others are kept for workers that know them."),
]
Slots = Annotated[int, Meta(ge=0, le=100_000)]
Wait = Annotated[
    Annotated[int, Meta(ge=0, le=WAIT_MS_MAX // 1000)]
    | Annotated[float, Meta(ge=0, le=WAIT_MS_MAX // 1000)]
    | Annotated[str, Meta(extra_json_schema={"pattern": WAIT_PATTERN})],
    Meta(description="How long to wait where nothing is there: at most 60s, and no longer than half a lease."),
]
_Label = Annotated[str, Meta(max_length=128)]


class AboutWorker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker says of itself, shown in `/api/v1/workers`. What it leaves out stays as it said before.

    Only a claim says anew what it takes: without `queues` from default, without `types` any.
    """

    queues: Queues | UnsetType = UNSET
    types: Types | UnsetType = UNSET
    concurrency: Annotated[Slots, Meta(description="How many jobs it runs at once.")] | UnsetType = UNSET
    host: Annotated[_Label, Meta(description="The machine it runs on.")] | UnsetType = UNSET
    pid: Annotated[int, Meta(ge=0, le=1 << 31)] | UnsetType = UNSET
    version: Annotated[_Label, Meta(description="Of the worker's own code.")] | UnsetType = UNSET


class ClaimBody(AboutWorker, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A claim. Without `worker` it makes an id: use that from then on. Without `queues`: default."""

    worker: WorkerId | UnsetType = UNSET
    limit: Annotated[
        int, Meta(ge=1, le=CLAIMED_MAX, description="How many jobs at most: as many as can start now.")
    ] = 1
    lease: Lease = "30s"
    wait: Wait = 0


class ClaimedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job in the worker's hands until it is settled, under this token. The fields always come in this order."""

    id: str
    token: str
    type: str
    queue: str
    attempt: Annotated[int, Meta(description="1 in the first run.")]
    max_attempts: int
    timeout_ms: Annotated[int, Meta(description="How long the run may take; 0: as long as it likes.")]
    priority: int
    created_at: Moment
    ready_at: Annotated[Moment, Meta(description="Since when it could have been claimed.")]
    key: str | None
    tags: list[str]
    workflow: str | None
    payload: Any
    meta: dict[str, str]


class ClaimsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs, none where there was nothing."""

    worker: str
    lease_ms: Annotated[int, Meta(description="The lease, counted from `waited_ms` after the claim was sent.")]
    waited_ms: Annotated[int, Meta(description="How long there was nothing to claim.")]
    jobs: list[ClaimedJob]


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A job under a token."""

    id: str
    token: str


class HeldJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job that the worker believes to hold, with how far it is."""

    id: HeldId
    token: Token
    progress: Annotated[float, Meta(ge=0, le=1, description="0.0 to 1.0.")] | UnsetType = UNSET
    text: Annotated[str, Meta(description="A word on it, at most 1,024 characters are kept.")] | UnsetType = UNSET


class HeartbeatBody(AboutWorker, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sign of life."""

    worker: WorkerId
    lease: Lease = "30s"
    busy: Annotated[Slots, Meta(description="How many jobs run now.")] | UnsetType = UNSET
    progress: Annotated[
        list[HeldJob], Meta(max_length=BATCH_MAX, description="All jobs that it runs, with or without progress.")
    ] = []


class HeartbeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of the worker now."""

    worker: str
    lease_ms: int
    held: Annotated[dict[str, str], Meta(description="The jobs it holds, with their tokens.")]
    lost: Annotated[list[Holding], Meta(description="Those of `progress` that it does not hold any more: stop them.")]
    cancel: Annotated[list[str], Meta(description="Those it holds and is to stop: settle them as cancelled.")]


class RetiredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is gone, and how many jobs it still held."""

    worker: str
    lapsed: int


@routes.post(
    "/api/v1/claims",
    may=Permission.WORK,
    answer=ClaimsAnswer,
    example={"worker": "box-7-3f9a", "queues": ["default"], "types": ["email"], "limit": 10, "wait": "10s"},
)
async def claim_jobs(call: Call, body: ClaimBody) -> Response:
    """Take jobs to run, and wait for them where there are none.

    Each job goes to one worker only, counts an attempt, and is the worker's until it is settled or the lease runs out.
    The answer is empty when the time to wait is over or the server stops: claim again. What was claimed for a client
    that hung up before the answer was sent is given back, without an attempt.
    """
    service, clock = call.service, call.service.app.clock
    worker = service.app.chance.id(clock.now_ms()) if body.worker is UNSET else _checked(body.worker, "worker")
    lease_ms = _lease_ms(body.lease)
    backend = await call.backend()
    asked_ms = clock.boot_ms()
    info, is_news = await _info(call, worker, body, {"queues": ("default",), "types": ()})
    claim = Claim(
        worker=worker,
        queues=info.queues,
        limit=body.limit,
        lease_ms=lease_ms,
        wait_ms=min(_duration_ms(body.wait, "wait", WAIT_MS_MAX), lease_ms // 2),
        types=None if body.types is UNSET else frozenset(info.types),
    )
    take_wait(call, claim.wait_ms)
    if is_news or service.known_workers.age_ms(call.caller.queues, worker, asked_ms) > lease_ms * _RENEWED_AFTER:
        await backend.heartbeat(info, lease_ms)
        service.known_workers.beaten(call.caller.queues, info, asked_ms)
    hang_up = HangUp(call.request)
    try:
        claiming = Claiming(service, backend, claim, hang_up)
        jobs = await claiming.jobs()
        answer = {
            "worker": worker,
            "lease_ms": lease_ms,
            "waited_ms": claiming.waited_ms,
            "jobs": [_claimed_json(job) for job in jobs],
        }
        return Handing(msgspec.json.encode(answer), hang_up, (lambda: claiming.release(jobs)) if jobs else None)
    except BaseException:
        hang_up.close()
        raise


def _claimed_json(job: Claimed) -> dict[str, Any]:
    # In an order that a shell can cut: what a stranger chose comes last. test_example_workers.
    return {
        "id": job.id,
        "token": job.token,
        "type": job.type,
        "queue": job.queue,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "timeout_ms": job.timeout_ms,
        "priority": job.priority,
        "created_at": instant_json(job.created_at_ms),
        "ready_at": instant_json(job.ready_at_ms),
        "key": job.key,
        "tags": job.tags,
        "workflow": job.workflow,
        "payload": msgspec.Raw(job.payload),  # as it was stored; `claiming` looked that it is JSON
        "meta": job.meta or {},
    }


@routes.post("/api/v1/settlements", may=Permission.WORK, answer=SettledAnswer, body_bytes_max=8 << 20)
async def settle_jobs(call: Call, body: SettlementsBody) -> Reply:
    """End runs: say what each came to.

    `applied` where the worker held the job under that token, else `stale` and nothing is changed: the job was lost, or
    this very settlement was applied before and its answer got lost. Either way the worker is done with it.
    """
    settling = Settling(call.service, await call.backend(), scoped=call.caller.queues is not None)
    verdicts = await settling.settle(body.settlements)
    return Reply(
        {
            "settlements": [
                {"id": end.id, "verdict": verdict} for end, verdict in zip(body.settlements, verdicts, strict=True)
            ]
        }
    )


@routes.post("/api/v1/heartbeats", may=Permission.WORK, answer=HeartbeatAnswer)
async def beat(call: Call, body: HeartbeatBody) -> Reply:
    """Keep the lease of a worker, tell progress, and learn which jobs were lost or are to stop.

    One call keeps all that the worker holds for `lease` from now. Send one every third of a lease.
    """
    worker, lease_ms = _checked(body.worker, "worker"), _lease_ms(body.lease)
    notes = [_note(job) for job in body.progress if job.progress is not UNSET or job.text is not UNSET]
    asked_ms = call.service.app.clock.boot_ms()
    info, _ = await _info(call, worker, body)
    info.busy = len(body.progress) if body.busy is UNSET else body.busy
    pulse = await (await call.backend()).heartbeat(info, lease_ms, notes)
    call.service.known_workers.beaten(call.caller.queues, info, asked_ms)
    lost = [{"id": job.id, "token": job.token} for job in body.progress if pulse.held.get(job.id) != job.token]
    return Reply(
        {"worker": worker, "lease_ms": lease_ms, "held": pulse.held, "lost": lost, "cancel": sorted(pulse.cancel)}
    )


def _note(job: HeldJob) -> Note:
    return Note(
        id=job.id,
        token=job.token,
        progress=None if job.progress is UNSET else float(job.progress),
        text=None if job.text is UNSET else codec.clean_text(job.text, NOTE_CHARS_MAX),
    )


@routes.delete("/api/v1/workers/{id}", may=Permission.WORK, answer=RetiredAnswer, problems=(404,))
async def retire_worker(call: Call) -> Reply:
    """End the lease of a worker now, as it stops. What it still holds lapses at once, which costs an attempt.

    Release what was not started first. A worker that is not known is gone already: 0.
    """
    worker = call.path["id"]
    try:
        check_name(worker, "worker")
    except InvalidName as error:
        raise Problem(404, "not-found", "There is no such worker", str(error)) from None
    lapses = await (await call.backend()).retire(worker, _WENT_AWAY)
    say_lapses(lapses, _WENT_AWAY, worker=worker)
    call.service.known_workers.forget(call.caller.queues, worker)
    return Reply({"worker": worker, "lapsed": len(lapses)})


# ---- reading -----------------------------------------------------------------------------------------------


async def _info(
    call: Call, worker: str, body: AboutWorker, otherwise: Mapping[str, Any] | None = None
) -> tuple[WorkerInfo, bool]:
    """Answer what is known of a worker with what it says of itself now, and whether that is new here.

    `otherwise` is what it says by leaving something out.
    """
    given: dict[str, Any] = dict(otherwise or {}) | {
        name: value for name in AboutWorker.__struct_fields__ if (value := getattr(body, name)) is not UNSET
    }
    for field, what in (("queues", "queue"), ("types", "job type")):
        if field in given:
            given[field] = tuple(_checked(name, what, f"/{field}") for name in dict.fromkeys(given[field]))
    for field in ("host", "version"):
        if field in given:
            given[field] = codec.clean_text(given[field], 128)
    call.service.note_owner(call.caller, worker)
    now_ms = call.service.app.clock.now_ms()
    known = call.service.known_workers
    info, is_news = await known.info(call.caller.queues, worker, given, await call.backend(), now_ms)
    if not info.queues:
        info = msgspec.structs.replace(info, queues=("default",))
    return info, is_news


def _checked(name: str, what: str, place: str = "/worker") -> str:
    try:
        return check_name(name, what)
    except InvalidName as error:
        fault = Fault(str(error), pointer=place)
        raise Problem(422, "invalid-name", "A name is not allowed", str(error), faults=(fault,)) from None


def _lease_ms(lease: object) -> int:
    lease_ms = _duration_ms(lease, "lease")
    if not LEASE_MS_MIN <= lease_ms <= LEASE_MS_MAX:
        raise _out_of_bounds("lease", f"a lease of {lease_ms} ms must be from 1s to 1d; 30s is the default")
    return lease_ms


def _duration_ms(value: object, what: str, max_ms: int = LEASE_MS_MAX) -> int:
    try:
        return duration_ms(value, what, max_ms)
    except InvalidOption as error:
        raise _out_of_bounds(what, str(error)) from None


def _out_of_bounds(what: str, detail: str) -> Problem:
    fault = Fault(detail, pointer=f"/{what}")
    return Problem(422, "invalid-option", "An option is out of bounds", detail, faults=(fault,))
