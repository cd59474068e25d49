"""The errors a caller can catch. Every one carries fields and says what to do next.

PackhorseError
├── Refused                  the request is wrong; sending it again will not help
│   ├── InvalidName          a queue, type or tag outside the allowed characters
│   ├── InvalidOption        an unknown option or a value out of bounds
│   ├── InvalidPayload       not plain JSON, too deep, or not what the task accepts
│   │   └── PayloadTooLarge
│   ├── UnknownType          no task of that name is registered here
│   ├── UniqueConflict       a live job holds the unique key
│   ├── IdempotencyConflict  the idempotency key belongs to another job
│   ├── UnknownParent        `after` names a job that is not there
│   ├── QueueFull            the queue is at its capacity; try later
│   ├── ResultsTooLarge      the results of a job's parents are too many bytes to be handed over at once
│   ├── Forbidden            the caller's token does not grant the right to this
│   ├── OutOfScope           the caller's token is for other queues than this concerns
│   └── Unsupported          this backend cannot do it, by the name of the capability
├── NotFound                 no job, queue or worker of that name
├── ConfigurationError       a URL, setting or file that cannot work as given
│   └── SchemaMismatch       the store was made by another version
├── Unavailable              the backend does not answer now; trying again may help
│   └── StoreFull            it answers and has no room: free some, and all goes on by itself
├── LeaseLost                the job belongs to another run by now: nothing this run does counts any more
├── ResultTimeout            the job has not ended within the time given
├── WorkflowFailed           asked for the results of a workflow that did not come to its end
└── JobEndedBadly            asked for the result of a job that has none
    ├── JobFailed
    └── JobCancelled
"""

from __future__ import annotations

from .wording import quantity


class PackhorseError(Exception):
    """The root of all errors that packhorse raises on purpose."""


class Refused(PackhorseError):
    """The request was refused and nothing was changed."""


class InvalidName(Refused):
    """A name outside `[A-Za-z0-9._-]{1,128}`."""


class InvalidOption(Refused):
    """An option that does not exist or a value outside its bounds."""


class InvalidPayload(Refused):
    """A payload that no backend may store; `pointer` (RFC 6901) names the place."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(f"{message} (at {pointer or 'the top level'})")
        self.pointer = pointer


class PayloadTooLarge(InvalidPayload):
    """A payload of more bytes than the limit."""


class UnknownType(Refused):
    """A job type that no task is registered for."""


class UniqueConflict(Refused):
    """The unique key is held by the live job `holder`."""

    def __init__(self, unique: str, holder: str) -> None:
        super().__init__(
            f"unique key {unique!r} is held by job {holder}; wait for it to end, cancel it, "
            "or enqueue with on_conflict='existing'"
        )
        self.unique = unique
        self.holder = holder


class IdempotencyConflict(Refused):
    """The idempotency key was used before, for the job `job_id` of another type or with another payload."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"the idempotency key was used for job {job_id}, which has another type or payload; "
            "send the same again, or use a key of its own for this one"
        )
        self.job_id = job_id


class UnknownParent(Refused):
    """`after` names the job `parent`, which is neither in the store nor in the same call."""

    def __init__(self, parent: str) -> None:
        super().__init__(
            f"after: there is no job {shown(parent, 128)}; enqueue the parents first, or all in one call. "
            "One that ended long ago may have been dropped: then leave it out"
        )
        self.parent = parent


class QueueFull(Refused):
    """The queue holds as many jobs as its capacity allows."""

    def __init__(self, queue: str, capacity: int, retry_after_ms: int = 1_000) -> None:
        super().__init__(f"queue {queue!r} is full ({quantity(capacity, 'job')}); try again later")
        self.queue = queue
        self.capacity = capacity
        self.retry_after_ms = retry_after_ms
        #: How many jobs of the call, from the front, were stored before there was no more room.
        self.stored = 0


class ResultsTooLarge(Refused):
    """The results of `parents` parents are more than `bytes_max` bytes in all."""

    def __init__(self, parents: int, bytes_max: int) -> None:
        super().__init__(
            f"the results of {quantity(parents, 'parent')} are more than {bytes_max:,} bytes; fetch them one by one: "
            "await ctx.app.job(parent.id).aresult() for each parent of ctx.parents()"
        )
        self.parents = parents
        self.bytes_max = bytes_max


class Forbidden(Refused):
    """The caller is known and may not do this. Rights may come back, so that no outcome of a job depends on it."""


class OutOfScope(Refused):
    """The caller may use the queues `allowed` only, and this is for `queue`, or for all (None)."""

    def __init__(self, allowed: frozenset[str], queue: str | None = None, what: str = "this") -> None:
        about = "all queues" if queue is None else f"the queue {shown(queue, 128)}"
        super().__init__(
            f"{what} concerns {about}, and this caller may use {', '.join(sorted(allowed))} only; "
            "use a token that is for more, or name a queue of its own"
        )
        self.queue = queue


class Unsupported(Refused):
    """The backend lacks the capability `flag`; nothing was changed."""

    def __init__(self, flag: str, remedy: str = "") -> None:
        super().__init__(f"this backend does not support {flag!r}" + (f"; {remedy}" if remedy else ""))
        self.flag = flag


class NotFound(PackhorseError):
    """No such job, queue or worker."""


class ConfigurationError(PackhorseError):
    """A URL, setting or file that cannot work as it stands."""


class SchemaMismatch(ConfigurationError):
    """The store's schema is `found`; this version of packhorse works with `wanted`."""

    def __init__(self, found: int, wanted: int, remedy: str) -> None:
        super().__init__(f"the store has schema {found}, this packhorse needs {wanted}; {remedy}")
        self.found = found
        self.wanted = wanted


class Unavailable(PackhorseError):
    """The backend did not answer in time. What was asked may or may not have been done."""


class StoreFull(Unavailable):
    """The store answers and has no room on its disk or in its memory; nothing of the call was stored."""


class LeaseLost(PackhorseError):
    """The job was taken from this run: stop. What is already done may be done again by the run that has it now."""


class ResultTimeout(PackhorseError, TimeoutError):
    """The job did not reach a terminal state within the time given."""


class WorkflowFailed(PackhorseError):
    """Not all nodes that were asked for succeeded; `nodes` has the reason for each that ended otherwise, by name."""

    def __init__(self, workflow: str, nodes: dict[str, str]) -> None:
        shown_max = 5
        text = "; ".join(f"{name}: {reason}" for name, reason in list(nodes.items())[:shown_max])
        more = f"; and {len(nodes) - shown_max:,} more" if len(nodes) > shown_max else ""
        super().__init__(f"workflow {workflow}: {text}{more}")
        self.workflow = workflow
        self.nodes = nodes


class JobEndedBadly(PackhorseError):
    """The job ended without a result."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"job {job_id}: {reason}")
        self.job_id = job_id
        self.reason = reason


class JobFailed(JobEndedBadly):
    """The job is in the dead letter queue; `reason` is its last error."""


class JobCancelled(JobEndedBadly):
    """The job was cancelled."""


def shown(value: object, chars_max: int = 40) -> str:
    """Write a refused value into a message: short, and whatever it is (a number of 5,000 digits has no `str`)."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # the value is the caller's, its __str__ too
        text = f"a {type(value).__name__}"
    return repr(text if len(text) <= chars_max else text[:chars_max] + "…")
