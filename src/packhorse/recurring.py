"""What an app does with schedules: define them by code or data, keep the store in step with the code, steer them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from .backends.base import BATCH_MAX, Backend, Enqueued, Schedule, ScheduleChange
from .client import Job
from .clock import to_datetime
from .errors import ConfigurationError, InvalidOption, NotFound, Unsupported, shown
from .job import JobSpec, check_name
from .schedule import check_job_options, definition_of, make_schedule, next_slots, run_spec
from .task import Task

if TYPE_CHECKING:
    from .app import Packhorse

T = TypeVar("T")
AnyTask = TypeVar("AnyTask", bound=Task[..., Any])

log = logging.getLogger("packhorse.schedules")

_SOURCE = "app:"


class Declared(NamedTuple):
    """A schedule as the code wrote it. It becomes a definition when a worker starts and all of the app is there."""

    task: Task[..., Any]
    payload: object
    times: dict[str, Any]  # keywords of make_schedule
    options: dict[str, Any]  # of its jobs


# ---- in code ---------------------------------------------------------------------------------------------


def declaring(
    app: Packhorse, name: str | None, payload: object, times: dict[str, Any], options: dict[str, Any]
) -> Callable[[AnyTask], AnyTask]:
    """Answer the decorator `@app.schedule(...)`. Times and policies are checked now, the payload when all is there."""

    def declare(task: AnyTask) -> AnyTask:
        if not isinstance(task, Task) or task.app is not app:
            raise ConfigurationError(
                f"@app.schedule stands above @app.task of the same app; {shown(task)} is no task of it"
            )
        own_name = name or task.type
        made = Declared(task, payload, times, options)
        make_schedule(own_name, JobSpec(id="", type=task.type), **times)
        if app.declared.setdefault(own_name, made) != made:
            raise ConfigurationError(
                f"the schedule {own_name!r} is defined twice in this app, and differently; "
                "give one of them another name: @app.schedule(..., name='...')"
            )
        return task

    return declare


def definitions(app: Packhorse) -> dict[str, Schedule]:
    """Answer the schedules of the app's code. Raises what enqueueing such jobs raises."""
    source = _SOURCE + app.name
    return {
        name: make_definition(app, made.task, made.payload, name, {**made.times, "source": source}, made.options)
        for name, made in app.declared.items()
    }


def make_definition(
    app: Packhorse,
    task: Task[..., Any] | str,
    payload: object,
    name: str,
    times: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Schedule:
    """Make a definition whose jobs are those that `app.enqueue(task, payload, **options)` stores."""
    known = task if isinstance(task, Task) else app.tasks.get(task)
    check_job_options(options)
    check_job_options(known.defaults if known is not None else {})
    return make_schedule(name, app.spec(task, payload, options), **times)


async def sync(app: Packhorse, backend: Backend) -> None:
    """Bring the store to what the app's code says. Schedules of others are left as they are.

    What an operator paused stays paused; what the code has no more is removed. Raises Unsupported where the code has
    schedules and the backend cannot.
    """
    wanted = app.schedules
    check_capable(wanted, backend)
    if not backend.capabilities.schedules:
        return
    source = _SOURCE + app.name
    stored = {schedule.name: schedule for schedule in await backend.schedules()}
    changes = []
    for name, definition in wanted.items():
        held = stored.get(name)
        if held is None or (held.source == source and definition_of(held) != definition_of(definition)):
            # Runners that start at once all write the same. The store keeps the template of the first, known by its id.
            spec = msgspec.structs.replace(definition.spec, id=app.chance.id(app.clock.now_ms()))
            changes.append(ScheduleChange(name=name, define=msgspec.structs.replace(definition, spec=spec)))
        elif held.source != source:
            log.warning(
                "the schedule %s of this app is not used: %s has one of that name; remove that (packhorse schedules "
                "remove %s), or give this one another: @app.schedule(..., name='...')",
                name,
                f"the app {held.source.removeprefix(_SOURCE)!r}" if held.source else "an operator",
                name,
            )
    changes += [
        ScheduleChange(name=name, removed=True)
        for name, held in stored.items()
        if held.source == source and name not in wanted
    ]
    taken: set[str] = set()
    for start in range(0, len(changes), BATCH_MAX):
        taken |= {one.spec.id for one in await backend.schedules(changes[start : start + BATCH_MAX])}
    for change in changes:
        if change.define is not None:
            if change.define.spec.id in taken:
                log.info("the schedule %s is defined as the code says", change.name)
        else:
            log.warning(
                "the schedule %s is removed: the code of the app %r has it no more (if another app is called that too, "
                "name them: Packhorse(name='...'))",
                change.name,
                app.name,
            )


def check_capable(wanted: Mapping[str, Schedule], backend: Backend) -> None:
    """Refuse code with schedules where the backend cannot keep any."""
    if wanted and not backend.capabilities.schedules:
        raise Unsupported("schedules", f"use another backend, or take @app.schedule from {min(wanted)}")


# ---- from data -------------------------------------------------------------------------------------------


async def define(backend: Backend, definition: Schedule) -> str:
    """Make or change a schedule that belongs to no code; answers `added`, `changed` or `unchanged`.

    `paused` counts for a new one only. Raises InvalidOption where an app's code has one of that name.
    """
    held = {schedule.name: schedule for schedule in await backend.schedules()}.get(definition.name)
    if held is not None and held.source != definition.source:
        raise InvalidOption(
            f"name: the schedule {definition.name!r} belongs to the code of {held.source.removeprefix(_SOURCE)!r}; "
            "change it there, or use another name"
        )
    if held is not None and definition_of(held) == definition_of(definition):
        return "unchanged"
    await backend.schedules([ScheduleChange(name=definition.name, define=definition)])
    return "added" if held is None else "changed"


async def look(backend: Backend, name: str) -> Schedule:
    """Answer a schedule by name. Raises NotFound."""
    check_name(name, "schedule")
    for schedule in await backend.schedules():
        if schedule.name == name:
            return schedule
    raise NotFound(f"no schedule {name!r}; packhorse schedules list shows what there is")


async def steer(backend: Backend, names: Iterable[str], *, paused: bool | None = None, removed: bool = False) -> None:
    """Pause, resume or remove schedules, all or none. Raises NotFound for one that is not there."""
    known = {schedule.name for schedule in await backend.schedules()}
    for name in names:
        if check_name(name, "schedule") not in known:
            raise NotFound(f"no schedule {name!r}; packhorse schedules list shows what there is")
    await backend.schedules(
        [ScheduleChange(name=name, paused=paused, removed=removed) for name in dict.fromkeys(names)]
    )


async def run_now(backend: Backend, name: str, job_id: str) -> Enqueued:
    """Enqueue one job of a schedule now; its slots are as before. With overlap='skip' a live job of it is answered."""
    return (await backend.enqueue([run_spec(await look(backend, name), job_id)]))[0]


class ScheduleHandle:
    """A schedule by its name. Blocking methods for blocking code; the same with an `a` before it for async code."""

    def __init__(self, app: Packhorse, name: str) -> None:
        self.app = app
        self.name = check_name(name, "schedule")

    def __repr__(self) -> str:
        return f"<ScheduleHandle {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduleHandle) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def _blocking(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.app.portal.call(coroutine)

    async def arecord(self) -> Schedule:
        """Answer all that is kept of the schedule. Raises NotFound."""
        return await look(await self.app.backend(), self.name)

    def record(self) -> Schedule:
        """Answer all that is kept of the schedule. Raises NotFound."""
        return self._blocking(self.arecord())

    async def anext(self, count: int = 5) -> list[datetime]:
        """Answer its next slots from now, in UTC, at most 1,000, whether or not it is paused."""
        return [to_datetime(slot_ms) for slot_ms in next_slots(await self.arecord(), self.app.clock.now_ms(), count)]

    def next(self, count: int = 5) -> list[datetime]:
        """Answer its next slots from now, in UTC, at most 1,000, whether or not it is paused."""
        return self._blocking(self.anext(count))

    async def apause(self) -> None:
        """Make no more jobs of its slots until it is resumed."""
        await steer(await self.app.backend(), [self.name], paused=True)

    def pause(self) -> None:
        """Make no more jobs of its slots until it is resumed."""
        self._blocking(self.apause())

    async def aresume(self) -> None:
        """Go on with the slots from now on; those of the pause are left out."""
        await steer(await self.app.backend(), [self.name], paused=False)

    def resume(self) -> None:
        """Go on with the slots from now on; those of the pause are left out."""
        self._blocking(self.aresume())

    async def aremove(self) -> None:
        """Remove the schedule; its jobs stay. One of an app's code comes back when a worker of the app starts."""
        await steer(await self.app.backend(), [self.name], removed=True)

    def remove(self) -> None:
        """Remove the schedule; its jobs stay. One of an app's code comes back when a worker of the app starts."""
        self._blocking(self.aremove())

    async def arun(self) -> Job[Any]:
        """Enqueue one job of it now; its slots are as before."""
        app = self.app
        answer = await run_now(await app.backend(), self.name, app.chance.id(app.clock.now_ms()))
        return Job(app, answer.id, created=answer.created)

    def run(self) -> Job[Any]:
        """Enqueue one job of it now; its slots are as before."""
        return self._blocking(self.arun())
