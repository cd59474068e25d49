"""Log lines of a process: where they go, and what records carry of the job that runs.

Records made while a job runs carry `job_id job_type queue attempt worker`, and `trace_id` where traces are on, whoever
makes them: the handler, a library, in async code or in the handler's thread. It costs per line, never per job.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from ..job import Claimed
from .current import CURRENT_JOB, CURRENT_TRACE, CURRENT_WORKER
from .log_format import FIELDS, formatter, hide, one_line

__all__ = ["configure", "hide", "one_line", "stamp_records", "take_root"]

_FIELDS = frozenset(FIELDS)

#: The logger of `ctx.log`: what it says is the handler's, unlike all else below `packhorse`.
JOB_LOGGER = "packhorse.job"


def configure(level: str = "info", form: str = "console") -> None:
    """Send the log lines of `packhorse` to stderr. `form` is console or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, sys.stderr))
    handler.set_name("packhorse")
    logger = logging.getLogger("packhorse")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def take_root(level: str = "info") -> None:
    """Send all other lines of this process there too, unless the app has said itself where they go.

    After `configure`, and after the app is imported. Its handlers stay, and so does its level.
    """
    ours = logging.getLogger("packhorse")
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        # `logging.config` silences, unless told otherwise, every logger that it does not name.
        if (name == "packhorse" or name.startswith("packhorse.")) and isinstance(logger, logging.Logger):
            logger.disabled = False
    root = logging.getLogger()
    if root.handlers or ours.propagate or not ours.handlers:
        return
    root.addHandler(ours.handlers[0])
    if root.level == logging.WARNING:  # what it is unless somebody chose
        root.setLevel(level.upper())


class Yielding(dict[str, Any]):
    """The attributes of a record of ours to which the program's own factory gave some of FIELDS.

    `in` does not see those: logging refuses `extra=` with what is there already, and our line is about a job.
    """

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return name not in _FIELDS and super().__contains__(name)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class Stamped(dict[str, Any]):
    """The attributes of a record that was stamped. `stamped` are ours.

    `in` does not see them: `extra={"queue": ...}` may have an attribute's name, and must not raise in a job because of
    us (logging refuses what is there already). Formats as `%(job_id)s` do.
    """

    __slots__ = ("stamped",)

    def __init__(self, attributes: dict[str, Any], stamped: dict[str, Any]) -> None:
        super().__init__(attributes)
        self.update(stamped)
        self.stamped = stamped

    def __contains__(self, name: object) -> bool:
        return name not in self.stamped and super().__contains__(name)

    def __reduce__(self) -> Any:  # records are pickled on their way to other processes
        return dict, (dict(self),)


def stamp_records() -> None:
    """Make the records of this process carry the job that runs. Calling it again changes nothing.

    Wraps the record factory that is there, so that formatters of the program's own can use the fields too.
    """
    inner: Callable[..., logging.LogRecord] = logging.getLogRecordFactory()
    if getattr(inner, "stamps", False):
        return

    def make(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = inner(name, *args, **kwargs)
        job = CURRENT_JOB.get()
        # Our own lines say which job they are about: a slot's context names the job that it ran last.
        if name == JOB_LOGGER or not name.startswith("packhorse."):
            if job is not None:
                _stamp(record, job)
        elif not _FIELDS.isdisjoint(record.__dict__):
            record.__dict__ = Yielding(record.__dict__)
        return record

    make.stamps = True  # type: ignore[attr-defined]  # functions take any
    logging.setLogRecordFactory(make)


def _stamp(record: logging.LogRecord, job: Claimed) -> None:
    if isinstance(record.__dict__, Stamped):
        return
    here = CURRENT_WORKER.get()
    stamped: dict[str, Any] = {
        "job_id": job.id,
        "job_type": job.type,
        "queue": job.queue,
        "attempt": job.attempt,
    }
    if here is not None:
        stamped["worker"] = here.id
    if (trace_id := CURRENT_TRACE.get()) is not None:
        stamped["trace_id"] = trace_id
    record.__dict__ = Stamped(record.__dict__, stamped)
    if here is not None and here.keep is not None and record.levelno >= here.level:
        here.keep(job, record)
