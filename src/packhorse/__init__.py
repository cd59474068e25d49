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
    from .backends.messages import Schedule
    from .client import Job
    from .context import Context
    from .errors import (
        ConfigurationError,
        IdempotencyConflict,
        InvalidName,
        InvalidOption,
        InvalidPayload,
        JobCancelled,
        JobEndedBadly,
        JobFailed,
        LeaseLost,
        NotFound,
        PackhorseError,
        PayloadTooLarge,
        QueueFull,
        Refused,
        ResultsTooLarge,
        ResultTimeout,
        SchemaMismatch,
        Unavailable,
        UniqueConflict,
        UnknownParent,
        UnknownType,
        Unsupported,
        WorkflowFailed,
    )
    from .job import JobError, JobRecord, JobSpec, State, Unique
    from .observe.failures import Failure
    from .outcome import Cancel, Fail, Retry, Snooze
    from .parents import Parent, Results
    from .posting.failures import post_failures
    from .recurring import ScheduleHandle
    from .sentry import sentry_failures
    from .task import Task
    from .transaction import Transaction
    from .workflow import Flow, Node, Workflow, chain, chord, group
    from .workflow_run import WorkflowRun

__version__ = "0.1.0"

__all__ = [
    "Cancel",
    "ConfigurationError",
    "Context",
    "Fail",
    "Failure",
    "Flow",
    "IdempotencyConflict",
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
    "LeaseLost",
    "Node",
    "NotFound",
    "Packhorse",
    "PackhorseError",
    "Parent",
    "PayloadTooLarge",
    "QueueFull",
    "Refused",
    "ResultTimeout",
    "Results",
    "ResultsTooLarge",
    "Retry",
    "Schedule",
    "ScheduleHandle",
    "SchemaMismatch",
    "Snooze",
    "State",
    "Task",
    "Transaction",
    "Unavailable",
    "Unique",
    "UniqueConflict",
    "UnknownParent",
    "UnknownType",
    "Unsupported",
    "Workflow",
    "WorkflowFailed",
    "WorkflowRun",
    "__version__",
    "chain",
    "chord",
    "group",
    "post_failures",
    "sentry_failures",
]

_HOMES = {
    "app": ("Packhorse",),
    "backends.messages": ("Schedule",),
    "client": ("Job",),
    "context": ("Context",),
    "job": ("JobError", "JobRecord", "JobSpec", "State", "Unique"),
    "observe.failures": ("Failure",),
    "outcome": ("Cancel", "Fail", "Retry", "Snooze"),
    "parents": ("Parent", "Results"),
    "posting.failures": ("post_failures",),
    "recurring": ("ScheduleHandle",),
    "sentry": ("sentry_failures",),
    "task": ("Task",),
    "transaction": ("Transaction",),
    "workflow": ("Flow", "Node", "Workflow", "chain", "chord", "group"),
    "workflow_run": ("WorkflowRun",),
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
