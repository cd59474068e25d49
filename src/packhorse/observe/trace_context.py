"""W3C trace context: read, written, and carried in the meta of jobs. Pure; knows nothing of OpenTelemetry.

A job has it as `meta["traceparent"]`, and `meta["tracestate"]` where there is one, so that every language and every
store carries it. What is not valid is treated as if it were not there: it may come from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import msgspec

from ..job import META_MAX, JobSpec

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

#: Characters of a tracestate that is carried on (W3C Trace Context section 3.3.1.5: at least 512); a longer one is not.
STATE_CHARS_MAX = 512
#: Characters of a traceparent: 55, and what later versions may add.
_PARENT_CHARS = 55
_PARENT_CHARS_MAX = 256
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
#: Members of a tracestate, and one of them (W3C Trace Context section 3.3.1). What is none would be a line in the log
#: of each worker that reads it.
_MEMBERS_MAX = 32
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}"
)

#: The traceparent of the enqueue that is on its way, for a store at the other end of HTTP.
OUTGOING: ContextVar[str | None] = ContextVar("packhorse_outgoing", default=None)

_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """Where in which trace something was begun: ids in hex, and whether the trace is kept."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def says_unsampled(text: str) -> bool:
    """Tell at a glance that a traceparent says its trace is not kept, without reading the rest of it."""
    return len(text) == _PARENT_CHARS and text[53:] == "00" and text[:3] == "00-"


def read_traceparent(text: object) -> TraceContext | None:
    """Read a traceparent of any version (W3C Trace Context section 3.2); None where it is not valid."""
    if not isinstance(text, str) or not _PARENT_CHARS <= len(text) <= _PARENT_CHARS_MAX:
        return None
    match = _PARENT.match(text)
    if match is None:
        return None
    version, trace_id, span_id, flags = match.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN or version == "ff":
        return None
    if len(text) > _PARENT_CHARS and (version == "00" or text[_PARENT_CHARS] != "-"):
        return None
    return TraceContext(trace_id, span_id, sampled=int(flags, 16) & 1 == 1)


def read_tracestate(text: object) -> str | None:
    """Answer a tracestate that may be carried on; None for anything else."""
    if not isinstance(text, str) or not 0 < len(text) <= STATE_CHARS_MAX:
        return None
    members = [member.strip(" \t") for member in text.split(",")]
    is_valid = len(members) <= _MEMBERS_MAX and all(map(_MEMBER.fullmatch, members))
    return text if is_valid else None


def context_of(meta: Mapping[str, str] | None) -> TraceContext | None:
    """Answer the context that a job carries; None where it has none that is valid."""
    return None if meta is None else read_traceparent(meta.get(TRACEPARENT))


def carrying(spec: JobSpec, traceparent: str, tracestate: str | None = None) -> JobSpec:
    """Answer the job with this context in place of any other; as it was, where its meta has no room."""
    meta = {name: text for name, text in (spec.meta or {}).items() if name not in {TRACEPARENT, TRACESTATE}}
    if len(meta) >= META_MAX:
        return spec
    meta[TRACEPARENT] = traceparent
    if tracestate and len(meta) < META_MAX:
        meta[TRACESTATE] = tracestate
    return msgspec.structs.replace(spec, meta=meta)


def passed_on(specs: Sequence[JobSpec], given: Mapping[str, str]) -> Sequence[JobSpec]:
    """Answer the jobs with the context of `given`, the meta or headers of what made them, unless they have their own.

    So that a trace goes on through a process that makes no spans.
    """
    text = given.get(TRACEPARENT)
    if text is None or read_traceparent(text) is None:
        return specs
    state = read_tracestate(given.get(TRACESTATE))
    return [spec if context_of(spec.meta) is not None else carrying(spec, text, state) for spec in specs]
