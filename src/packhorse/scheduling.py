"""The app's words for schedules. What they do is in `recurring`, imported when one is used."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from .task import Task

if TYPE_CHECKING:
    from datetime import timedelta
    from types import FrameType

    from .app import Packhorse
    from .backends.base import Backend, Schedule
    from .recurring import Declared, ScheduleHandle
    from .sync import Portal

AnyTask = TypeVar("AnyTask", bound=Task[..., Any])

Missed = Literal["skip", "latest", "all"]
Overlap = Literal["allow", "skip"]


class Scheduling:
    """The part of an app that has to do with schedules."""

    declared: dict[str, Declared]
    portal: Portal

    if TYPE_CHECKING:

        async def backend(self) -> Backend: ...

    @property
    def _app(self) -> Packhorse:
        return cast("Packhorse", self)

    def schedule(
        self,
        cron: str | None = None,
        /,
        *,
        every: float | str | timedelta | None = None,
        tz: str | None = None,
        name: str | None = None,
        missed: Missed | None = None,
        overlap: Overlap | None = None,
        jitter: float | str | None = None,
        payload: object = None,
        paused: bool = False,
        **options: Any,
    ) -> Callable[[AnyTask], AnyTask]:
        """Run a task again and again: `@app.schedule("0 9 * * *", tz="Europe/Paris")` above `@app.task`.

        By a cron expression in a time zone (UTC unless given), or `every="30s"`, 1s to 366d. `name` is the type of the
        task unless given: the same task may have several. Slots that came while no worker ran are `missed`: skip them,
        take the latest (unless told otherwise) or all. `overlap="skip"` makes no job while the one before has not
        ended. `jitter` delays each job by chance, up to so much. `paused` is how a new one begins. The other options
        are those of its jobs. Workers of the app bring the store in step with this when they start.
        """
        from .recurring import declaring

        times = {"cron": cron, "every": every, "tz": tz, "missed": missed, "overlap": overlap, "jitter": jitter}
        return declaring(self._app, name, payload, {**times, "paused": paused}, options)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The schedules of this app's code, by name. What the store has is `list_schedules()`."""
        if not self.declared:
            return {}
        from .recurring import definitions

        return definitions(self._app)

    async def adefine_schedule(
        self,
        task: Task[..., Any] | str,
        payload: object = None,
        /,
        *,
        name: str,
        cron: str | None = None,
        every: float | str | timedelta | None = None,
        tz: str | None = None,
        missed: Missed | None = None,
        overlap: Overlap | None = None,
        jitter: float | str | None = None,
        paused: bool = False,
        **options: Any,
    ) -> ScheduleHandle:
        """Make or change a schedule from data rather than code; the arguments are those of `schedule`.

        It is kept until it is removed, and no worker's code changes it. Raises InvalidOption for what cannot work.
        """
        from .recurring import ScheduleHandle, define, make_definition

        times = {"cron": cron, "every": every, "tz": tz, "missed": missed, "overlap": overlap, "jitter": jitter}
        definition = make_definition(self._app, task, payload, name, {**times, "paused": paused}, options)
        await define(await self.backend(), definition)
        return ScheduleHandle(self._app, name)

    def define_schedule(
        self, task: Task[..., Any] | str, payload: object = None, /, *, name: str, **definition: Any
    ) -> ScheduleHandle:
        """Make or change a schedule from data rather than code; blocks. See `adefine_schedule`."""
        return self.portal.call(self.adefine_schedule(task, payload, name=name, **definition))

    def schedule_handle(self, name: str) -> ScheduleHandle:
        """Answer the handle of a schedule by name, to pause, resume, run or remove it; nothing is looked up yet."""
        from .recurring import ScheduleHandle

        return ScheduleHandle(self._app, name)

    async def alist_schedules(self) -> list[Schedule]:
        """Answer all schedules of the store, by name, whoever defined them."""
        return await (await self.backend()).schedules()

    def list_schedules(self) -> list[Schedule]:
        """Answer all schedules of the store, by name, whoever defined them."""
        return self.portal.call(self.alist_schedules())


def calling_module(made: object) -> str:
    """Name the module whose code makes `made`, from its `__init__`: the one `packhorse worker MODULE` will import."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # the documented way, as namedtuple does it
    while frame is not None and frame.f_locals.get("self") is made:
        frame = frame.f_back  # past the __init__ of subclasses too
    module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    if frame is not None and module == "__main__":
        spec = frame.f_globals.get("__spec__")
        module = spec.name if spec is not None else Path(str(frame.f_globals.get("__file__", "main"))).stem
    return re.sub(r"[^A-Za-z0-9._-]", "_", module)[:128] or "app"
