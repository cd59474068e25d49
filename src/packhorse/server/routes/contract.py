"""`/api/v1/contract`: the verbs of a store as they are, for backends at other ends of a network (`backends/http`).

One operation for each row of `wire.VERBS`. Programs in other languages use `/api/v1/work` and the rest, which is JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from ... import __version__
from ...backends.base import Backend
from ...backends.checkup import Checkup, good_if
from ...backends.http import wire
from ...backends.opening import open_backend, store_url
from ...errors import OutOfScope
from ...worker.options import WorkerOptions, keep_times
from ..access import Permission, lacks
from ..checking import check_arguments
from ..declaring import Changes, is_of_code
from ..feed.streaming import StreamResponse
from ..net.limits import bounds_of
from ..operation import Call, Reply, Routes, read_json_bytes
from ..problems import Problem
from ..tracing import within_request

routes = Routes("contract")

T = TypeVar("T", bound=msgspec.Struct)

Do = Callable[[Call, Backend, Any], Awaitable[Any]]


@routes.get(wire.PATH, may=Permission.LOOK, answer=wire.Contract)
async def show_contract(call: Call) -> Reply:
    """Say what this server speaks with other packhorses, and what its store can do."""
    backend = await call.backend()
    return Reply(
        wire.Contract(
            product="packhorse", version=__version__, revision=wire.REVISION, capabilities=backend.capabilities
        )
    )


async def _claim(call: Call, backend: Backend, given: wire.Claim) -> Any:
    return await call.service.portioning.claim(backend, given)


async def _enqueue(call: Call, backend: Backend, given: wire.Enqueue) -> Any:
    return await backend.enqueue(within_request(call.service.app, call.request, given.specs))


async def _get(call: Call, backend: Backend, given: wire.Get) -> Any:
    return await call.service.portioning.get(backend, given)


async def _find(call: Call, backend: Backend, given: wire.Find) -> Any:
    return await call.service.portioning.find(backend, given)


async def _tick(call: Call, backend: Backend, given: wire.Tick) -> Any:
    """Move time on. How long ended jobs are kept is the server's to say, unless the caller may delete them anyway."""
    keep = given.keep
    if not call.caller.may(Permission.STEER):
        keep = keep_times(WorkerOptions.of(call.service.settings))
    return await backend.tick(given.limit, keep)


async def _heartbeat(call: Call, backend: Backend, given: wire.Heartbeat) -> Any:
    call.service.note_owner(call.caller, given.worker.id)
    return await backend.heartbeat(given.worker, given.lease_ms, given.notes)


async def _limits(call: Call, backend: Backend, given: wire.ChangeLimits) -> Any:
    return await backend.limits(given.changes, about=given.about)


async def _migrate(call: Call, backend: Backend, given: wire.Nothing) -> int:
    """Answer the schema. That the store is open says that it is this version's: nothing is left to migrate."""
    return await backend.migrate()


async def _checkup(call: Call, backend: Backend, given: wire.Nothing) -> Checkup:
    """Look at the store's own server; what it says of itself goes out without the passwords of this one's URL."""
    if call.caller.queues is not None:
        raise OutOfScope(call.caller.queues, None, "the doctor")
    url = store_url(call.service.settings)
    own = open_backend(url, call.service.app.clock)
    try:
        found = await own.checkup()
    finally:
        await own.close()
    refusals = call.service.app.meters.writing.problems(call.service.app.clock.boot_ms())
    clean = call.service.scrub
    taken = good_if(
        not refusals, "takes writes", "no" if refusals else "yes", "; ".join(refusals), "see the server's log"
    )
    findings = tuple(
        msgspec.structs.replace(each, value=clean(each.value), meaning=clean(each.meaning), remedy=clean(each.remedy))
        for each in (*found.findings, *([taken] if refusals else []))
    )
    return msgspec.structs.replace(found, findings=findings)


def _plainly(verb: wire.Verb[Any, Any]) -> Do:
    """Answer what does a verb whose arguments are named as in the contract."""
    fields = verb.arguments.__struct_fields__

    async def do(call: Call, backend: Backend, given: Any) -> Any:
        return await getattr(backend, verb.name)(*[getattr(given, field) for field in fields])

    return do


_RIGHTS: dict[Permission, tuple[wire.Verb[Any, Any], ...]] = {
    Permission.LOOK: (wire.GET, wire.FIND, wire.COUNTS, wire.WORKFLOWS, wire.CHANGES, wire.WORKERS),
    Permission.SUBMIT: (wire.ENQUEUE,),
    Permission.WORK: (wire.CLAIM, wire.SETTLE, wire.HEARTBEAT, wire.RETIRE, wire.TICK, wire.FIRE),
    Permission.STEER: (
        wire.CANCEL,
        wire.RERUN,
        wire.DELETE,
        wire.QUEUES,
        wire.LIMITS,
        wire.SCHEDULES,
        wire.HAND_OVER,
        wire.TAKE_OVER,
        wire.MIGRATE,
        wire.CHECKUP,
    ),
}

_OTHERWISE: dict[str, Do] = {
    wire.ENQUEUE.name: _enqueue,
    wire.CLAIM.name: _claim,
    wire.GET.name: _get,
    wire.FIND.name: _find,
    wire.LIMITS.name: _limits,
    wire.TICK.name: _tick,
    wire.HEARTBEAT.name: _heartbeat,
    wire.MIGRATE.name: _migrate,
    wire.CHECKUP.name: _checkup,
}

#: Verbs that only look where they are given nothing to change.
_LOOKS_WITHOUT_CHANGES = frozenset({wire.QUEUES.name, wire.LIMITS.name, wire.SCHEDULES.name})


async def _check_changes(call: Call, backend: Backend, given: Changes) -> None:
    """Refuse changes of a caller who may not steer, unless a worker declares what its own code says."""
    caller = call.caller
    if caller.may(Permission.STEER) or (caller.may(Permission.WORK) and await is_of_code(backend, given)):
        return
    raise lacks(caller, Permission.STEER)


def _register(verb: wire.Verb[Any, Any], may: Permission) -> None:
    do = _OTHERWISE.get(verb.name) or _plainly(verb)
    looks = verb.name in _LOOKS_WITHOUT_CHANGES

    async def handle(call: Call) -> Response:
        given = await _read(call, verb.read_arguments)
        check_arguments(given)
        # Who runs or enqueues jobs handles whole payloads; who only looks is shown what everybody is shown.
        whole = call.caller.may(Permission.SUBMIT)
        find = call.service.backend if whole else call.service.shown_backend
        backend = await find(call.caller, counted_elsewhere=True)  # a worker in Python counts its jobs itself
        if looks and given.changes:
            await _check_changes(call, backend, given)
        answer = await do(call, backend, given)
        return Response(wire.write(answer), media_type=wire.MEDIA_TYPE)

    handle.__name__ = f"contract_{verb.name}"
    handle.__doc__ = f"Do the verb `{verb.name}` of the store."
    routes.post(
        verb.path,
        may=Permission.LOOK if looks else may,
        media_type=wire.MEDIA_TYPE,
        raw_body=wire.MEDIA_TYPE,
        body_bytes_max=wire.CALL_BYTES_MAX,
        problems=(409, 413, 415, 422, 429, 501),
    )(handle)


for _may, _verbs in _RIGHTS.items():
    for _verb in _verbs:
        _register(_verb, _may)


@routes.post(
    wire.WATCH.path,
    may=Permission.LOOK,
    media_type=wire.STREAM_MEDIA_TYPE,
    raw_body=wire.MEDIA_TYPE,
    problems=(413, 415, 422, 429),
)
async def contract_watch(call: Call) -> Response:
    """Say which of some topics rang, a line each time, until the client goes or the server stops."""
    given = await _read(call, wire.WATCH.read_arguments)
    stream = call.service.watching.open(await call.backend(), call.caller, given.add)
    bounds = bounds_of(call.request.scope)
    if bounds is not None:
        bounds.take_time(None)
    headers = {"content-type": wire.STREAM_MEDIA_TYPE, "x-accel-buffering": "no"}
    return StreamResponse(stream, headers)


@routes.post(
    f"{wire.WATCH.path}/{{stream}}",
    may=Permission.LOOK,
    media_type=wire.MEDIA_TYPE,
    raw_body=wire.MEDIA_TYPE,
    problems=(404, 413, 415, 422, 429),
)
async def contract_rewatch(call: Call) -> Response:
    """Change what topics a stream of the same caller hears."""
    given = await _read(call, wire.WATCH.read_arguments)
    call.service.watching.find(call.path["stream"], call.caller).change(given.add, given.remove)
    return Response(wire.write(None), media_type=wire.MEDIA_TYPE)


async def _read(call: Call, read: Callable[[bytes], T]) -> T:
    """Read the arguments of a verb. Raises Problem (413, 415, 422)."""
    data = await read_json_bytes(call.request, wire.CALL_BYTES_MAX, wire.MEDIA_TYPE)
    try:
        return read(data)
    except wire.UNREADABLE as error:
        detail = str(error)[:500] if not isinstance(error, RecursionError) else "nested too deep"
        raise Problem(422, "invalid-body", "The body is not what this verb takes", detail) from None
