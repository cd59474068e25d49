"""How one run of a handler ended, as a value. The only place that reads a handler's exceptions.

A handler says what it wants by returning a value or by raising one of `Retry`, `Snooze`, `Fail`, `Cancel`;
any other exception is a failure that is tried again.
"""

from __future__ import annotations

import traceback
from enum import StrEnum

import msgspec

from . import codec
from .errors import Refused
from .settings import duration_ms

MESSAGE_CHARS_MAX = 4_096
TRACEBACK_CHARS_MAX = 16_384


class Control(Exception):
    """The root of what a handler raises to steer its own job."""


class Retry(Control):
    """Run this job again after `delay` (seconds or `"30s"`; None: by the task's backoff). Costs an attempt."""

    def __init__(self, delay: float | str | None = None, reason: str = "") -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.delay_ms = None if delay is None else duration_ms(delay, "Retry(delay)")


class Snooze(Control):
    """Run this job again after `delay`, without counting this attempt: it was too early."""

    def __init__(self, delay: float | str, reason: str = "") -> None:
        super().__init__(reason or "the handler asked to be run later")
        self.delay_ms = duration_ms(delay, "Snooze(delay)")


class Fail(Control):
    """Fail this job for good: no attempt will help."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Cancel(Control):
    """End this job as cancelled: it is not needed any more."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler cancelled its job")


class Ended(Control):
    """Carries an outcome that was made elsewhere: in the process where the handler ran."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class Kind(StrEnum):
    """What the end of a run means; `retry.decide` makes a settlement of it."""

    SUCCEEDED = "succeeded"
    ERROR = "error"  # try again while attempts are left
    PERMANENT = "permanent"  # never try again
    RETRY = "retry"  # as asked by the handler
    SNOOZE = "snooze"
    CANCELLED = "cancelled"
    RELEASED = "released"  # never started here
    UNKNOWN = "unknown"  # this worker cannot run it: park it for one that can


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The end of one run."""

    kind: Kind
    result: bytes | None = None
    error_kind: str = ""
    message: str = ""
    traceback: str = ""
    delay_ms: int | None = None


#: What an error is called whose job is of a type that no worker knows.
UNKNOWN_TYPE = "UnknownType"
SUCCEEDED = Outcome(Kind.SUCCEEDED)
RELEASED = Outcome(Kind.RELEASED)
#: Of a run that succeeded, if its `settle_in` did not take effect: its effects did not either.
NOT_COMMITTED = Outcome(
    Kind.ERROR,
    error_kind="NotCommitted",
    message="settle_in was called but its transaction was not committed; commit it before the handler returns",
)


def from_result(value: object) -> Outcome:
    """Turn what a handler returned into an outcome. A value that cannot be kept is a permanent failure."""
    if value is None:
        return SUCCEEDED
    try:
        result = codec.encode(codec.to_plain(value), codec.RESULT_BYTES_MAX)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # InvalidPayload; and a user's type may raise anything while it is written
        return Outcome(
            Kind.PERMANENT, error_kind="InvalidResult", message=f"the result cannot be stored: {_text(error)}"
        )
    return Outcome(Kind.SUCCEEDED, result=result)


def from_exception(error: BaseException, fail_on: tuple[type[BaseException], ...] = ()) -> Outcome:
    """Turn what a handler raised into an outcome. `fail_on` are the task's permanent errors."""
    match error:
        case Ended():
            return error.outcome
        case Retry():
            return Outcome(Kind.RETRY, error_kind="Retry", message=_text(error), delay_ms=error.delay_ms)
        case Snooze():
            return Outcome(Kind.SNOOZE, message=_text(error), delay_ms=error.delay_ms)
        case Cancel():
            return Outcome(Kind.CANCELLED, error_kind="Cancel", message=_text(error))
    permanent = isinstance(error, Fail) or (bool(fail_on) and isinstance(error, fail_on))
    return Outcome(
        Kind.PERMANENT if permanent else Kind.ERROR,
        error_kind=type(error).__name__[:128],
        message=_text(error),
        traceback=_traceback(error),
    )


def unreadable(error: Refused) -> Outcome:
    """The outcome for a payload this worker's code does not accept: written by newer code, or damaged."""
    return Outcome(Kind.UNKNOWN, error_kind=type(error).__name__, message=_text(error))


def timed_out(timeout_ms: int, how: str = "") -> Outcome:
    """The outcome of a run that was stopped at its time-out."""
    message = f"still running after {timeout_ms / 1000:g} s, its time-out" + (f"; {how}" if how else "")
    return Outcome(Kind.ERROR, error_kind="TimedOut", message=message)


def cancelled(how: str = "") -> Outcome:
    """The outcome of a run that was stopped because somebody asked for it."""
    return Outcome(Kind.CANCELLED, error_kind="Cancelled", message=how or "stopped while running, as asked")


def crashed(how: str) -> Outcome:
    """The outcome of a run whose process died."""
    return Outcome(Kind.ERROR, error_kind="ProcessDied", message=how)


def unknown(job_type: str) -> Outcome:
    """The outcome for a type that is not registered in this worker."""
    return Outcome(Kind.UNKNOWN, error_kind=UNKNOWN_TYPE, message=f"no worker knows the job type {job_type!r}")


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # the user's __str__ is the user's code, and may even exit
        text = f"({type(error).__name__}, whose text raised {type(broken).__name__})"
    return kept_text(text, MESSAGE_CHARS_MAX)


def kept_text(text: str, chars_max: int) -> str:
    """Answer what is kept of a text about an error: bounded, storable, without passwords in URLs (FAILURES C20)."""
    text = codec.clean_text(text, 16 * chars_max)
    if "://" in text:
        from .redaction import without_passwords

        text = without_passwords(text)
    return codec.clean_text(text, chars_max)


def _traceback(error: BaseException) -> str:
    """Write the traceback without locals (they hold secrets) and without the frames of packhorse itself."""
    try:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None and _is_ours(tb.tb_frame.f_globals.get("__name__")):
            tb = tb.tb_next
        frames = traceback.format_list(traceback.extract_tb(tb, limit=-40))
        text = "Traceback (most recent call last):\n" + "".join(frames) + f"{type(error).__name__}: {_text(error)}"
        cause = error.__cause__  # not `or`: an error may be false, or refuse to say
        if cause is None and not error.__suppress_context__:
            cause = error.__context__
        if isinstance(error, BaseExceptionGroup):  # a TaskGroup's own text says only how many there were
            text += "".join(f"\n  - {type(part).__name__}: {_text(part)}" for part in error.exceptions[:10])
        if cause is not None:
            text = f"{type(cause).__name__}: {_text(cause)}\n\nwhich led to\n\n{text}"
    except Exception as broken:  # never let the report of an error become the error
        text = f"(no traceback: {type(broken).__name__})"
    return kept_text(text, TRACEBACK_CHARS_MAX)


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and (module == __package__ or module.startswith(f"{__package__}."))
