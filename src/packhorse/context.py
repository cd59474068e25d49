"""What a handler may ask for: its job, and ways to speak about it while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import codec
from .backends.base import Note
from .errors import InvalidOption
from .job import Claimed, JobSpec

if TYPE_CHECKING:
    from .app import Packhorse

#: Follow-up jobs of one run. More belong into a job that enqueues them in batches.
FOLLOW_UPS_MAX = 1_000
NOTE_CHARS_MAX = 500


class Context:
    """The running job as its handler sees it. Ask for it by annotation: `def handler(ctx: Context, ...)`."""

    def __init__(self, app: Packhorse, job: Claimed, state: Any = None) -> None:
        self.app = app
        #: What the lifespan of the worker that runs this job yielded.
        self.state = state
        self._job = job
        self._stop = threading.Event()
        self._note: Note | None = None
        self._restart: Callable[[], None] | None = None
        #: Whether the run waits for a place, which its time-out does not count.
        self.timeout_held = False
        self.follow_ups: list[JobSpec] = []

    @property
    def id(self) -> str:
        """The job's id: with `attempt`, the key for effects that must happen once."""
        return self._job.id

    @property
    def type(self) -> str:
        """The job's type."""
        return self._job.type

    @property
    def queue(self) -> str:
        """The queue the job came from."""
        return self._job.queue

    @property
    def attempt(self) -> int:
        """Which run this is; 1 is the first."""
        return self._job.attempt

    @property
    def max_attempts(self) -> int:
        """How many runs there may be."""
        return self._job.max_attempts

    @property
    def key(self) -> str | None:
        """The tenant or resource the job was enqueued for."""
        return self._job.key

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags."""
        return self._job.tags

    @property
    def meta(self) -> dict[str, str]:
        """The job's meta entries (a copy)."""
        return dict(self._job.meta or {})

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the job."""
        return logging.LoggerAdapter(
            logging.getLogger("packhorse.job"),
            {"job_id": self._job.id, "job_type": self._job.type, "attempt": self._job.attempt},
        )

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop: a handler in a thread must look, nobody can stop it from outside."""
        return self._stop.is_set()

    def wait_cancelled(self, timeout: float) -> bool:
        """Sleep up to `timeout` seconds in a thread, or until the run is asked to stop; answers whether it was."""
        return self._stop.wait(timeout)

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Record how far the run is (0.0 to 1.0); stored with the next heartbeat, about once a second."""
        if not 0.0 <= fraction <= 1.0:
            raise InvalidOption(f"progress: {fraction} must be from 0.0 to 1.0")
        text = None if note is None else codec.clean_text(note, NOTE_CHARS_MAX)
        self.keep_note(Note(id=self._job.id, token=self._job.token, progress=float(fraction), text=text))

    def then(self, task: Any, payload: object = None, /, **options: Any) -> str:
        """Enqueue a follow-up if and only if this run's outcome is stored; answers its id.

        `task` is a task or the name of a type, `payload` its arguments as a mapping, `options` as in `using`.
        """
        if len(self.follow_ups) >= FOLLOW_UPS_MAX:
            raise InvalidOption(f"at most {FOLLOW_UPS_MAX} follow-ups; enqueue one job that enqueues them")
        spec = self.app.spec(task, payload, options)
        self.follow_ups.append(spec)
        return spec.id

    # ---- for the worker --------------------------------------------------------------------------------

    @property
    def claimed(self) -> Claimed:
        """The job as it was claimed."""
        return self._job

    @property
    def has_note(self) -> bool:
        """Whether there is progress to tell."""
        return self._note is not None

    def keep_note(self, note: Note) -> None:
        """Keep progress for the next heartbeat; the latest wins."""
        self._note = note

    def take_note(self) -> Note | None:
        """Take the progress to tell."""
        note, self._note = self._note, None
        return note

    def ask_to_stop(self) -> None:
        """Raise the flag that `cancelled` shows."""
        self._stop.set()

    def on_restart(self, restart: Callable[[], None]) -> None:
        """Set what `restart_timeout` does."""
        self._restart = restart

    def hold_timeout(self) -> None:
        """Do not count the time-out until `restart_timeout`: the run only waits for a place."""
        self.timeout_held = True
        if self._restart is not None:
            self._restart()

    def restart_timeout(self) -> None:
        """Count the time-out from now."""
        self.timeout_held = False
        if self._restart is not None:
            self._restart()
