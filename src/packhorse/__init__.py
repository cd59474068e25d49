"""packhorse: a job queue that starts with no server and keeps the same promise on every backend.

from packhorse import Packhorse

app = Packhorse("sqlite:///jobs.db")

@app.task
async def greet(name: str) -> str:
    return f"Hello {name}"

greet.enqueue("you")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app import Packhorse
    from .client import Job
    from .context import Context
    from .errors import (
        ConfigurationError,
        InvalidName,
        InvalidOption,
        InvalidPayload,
        JobCancelled,
        JobEndedBadly,
        JobFailed,
        NotFound,
        PackhorseError,
        PayloadTooLarge,
        QueueFull,
        Refused,
        ResultTimeout,
        SchemaMismatch,
        Unavailable,
        UniqueConflict,
        UnknownType,
        Unsupported,
    )
    from .job import JobError, JobRecord, JobSpec, State, Unique
    from .outcome import Cancel, Fail, Retry, Snooze
    from .task import Task

__version__ = "0.1.0"

__all__ = [
    "Cancel",
    "ConfigurationError",
    "Context",
    "Fail",
    "InvalidName",
    "InvalidOption",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobEndedBadly",
    "JobError",
    "JobFailed",
    "JobRecord",
    "JobSpec",
    "NotFound",
    "Packhorse",
    "PackhorseError",
    "PayloadTooLarge",
    "QueueFull",
    "Refused",
    "ResultTimeout",
    "Retry",
    "SchemaMismatch",
    "Snooze",
    "State",
    "Task",
    "Unavailable",
    "Unique",
    "UniqueConflict",
    "UnknownType",
    "Unsupported",
    "__version__",
]

_HOMES = {
    "app": ("Packhorse",),
    "client": ("Job",),
    "context": ("Context",),
    "job": ("JobError", "JobRecord", "JobSpec", "State", "Unique"),
    "outcome": ("Cancel", "Fail", "Retry", "Snooze"),
    "task": ("Task",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: the command line and the runners need few of them (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
