"""packhorse: a job queue that starts with no server and keeps the same promise on every backend.

from packhorse import Packhorse

app = Packhorse("sqlite:///jobs.db")

@app.task
async def greet(name: str) -> str:
    return f"Hello {name}"

greet.enqueue("you")
"""

from __future__ import annotations

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
