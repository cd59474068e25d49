"""Types of fields that many requests and answers share, with what the OpenAPI document says of them.

What a name or a duration may be is checked by the product's own readers, which say what to do instead; the patterns
here only describe that to generators of clients. `tests/server/test_schemathesis.py` holds the two together.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ..backends.base import BATCH_MAX
from ..backends.messages import CURSOR_CHARS_MAX
from ..cron import EXPRESSION_CHARS_MAX
from ..job import (
    AFTER_FAILED,
    DELAY_MS_MAX,
    KEY_CHARS_MAX,
    MAX_ATTEMPTS_MAX,
    META_VALUE_CHARS_MAX,
    TAGS_MAX,
    TIMEOUT_MS_MAX,
)
from ..options import ON_CONFLICT, UNIQUE_ARGUMENTS_MAX
from ..schedule import JITTER_MS_MAX, MISSED, OVERLAP

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
DURATION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,3})?(ms|s|m|h|d)?$"
#: A duration of at most a minute: a client that waits.
WAIT_PATTERN = r"^([0-5]?[0-9](\.[0-9]{1,3})?s?|60s?|[0-9]{1,4}ms|1m)$"

#: Name of a queue, a job type, a schedule or a tag.
Name = Annotated[str, Meta(extra_json_schema={"pattern": NAME_PATTERN})]
Key = Annotated[
    str, Meta(extra_json_schema={"minLength": 1, "maxLength": KEY_CHARS_MAX}, description="Printable characters.")
]
JobId = Annotated[str, Meta(min_length=1, max_length=KEY_CHARS_MAX)]
Tags = Annotated[list[Name], Meta(max_length=TAGS_MAX, description="Words to find it by.")]

_DURATION = 'Seconds, or text as "250ms", "30s", "5m", "2h", "1d".'
_Text = Annotated[str, Meta(extra_json_schema={"pattern": DURATION_PATTERN})]

#: A time to wait; at most ten years.
Duration = Annotated[
    Annotated[int, Meta(ge=0, le=DELAY_MS_MAX // 1000)] | Annotated[float, Meta(ge=0, le=DELAY_MS_MAX // 1000)] | _Text,
    Meta(description=_DURATION),
]
#: A time that a run may take; at most seven days, 0 for no limit.
Timeout = Annotated[
    Annotated[int, Meta(ge=0, le=TIMEOUT_MS_MAX // 1000)]
    | Annotated[float, Meta(ge=0, le=TIMEOUT_MS_MAX // 1000)]
    | _Text,
    Meta(description=_DURATION + " At most seven days; 0 for no limit."),
]
#: A duration in a URL, where everything is text.
DurationText = Annotated[str, Meta(description=_DURATION, extra_json_schema={"pattern": DURATION_PATTERN})]

#: An instant in a request: with an offset.
Instant = Annotated[
    str,
    Meta(
        description="An instant with an offset, RFC 3339: 2030-01-31T09:00:00Z.",
        extra_json_schema={"format": "date-time"},
    ),
]
#: An instant in an answer.
Moment = Annotated[str, Meta(description="In UTC.", extra_json_schema={"format": "date-time"})]

Priority = Annotated[
    Annotated[int, Meta(ge=0, le=9)]
    | Annotated[str, Meta(extra_json_schema={"enum": ["high", "normal", "low", *"0123456789"]})],
    Meta(description="high, normal, low, or 0 (soonest) to 9."),
]
MaxAttempts = Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS_MAX, description="Runs in all.")]
Count = Annotated[int, Meta(ge=0)]

UniqueBy = Annotated[
    bool | Key | Annotated[list[Key], Meta(min_length=1, max_length=UNIQUE_ARGUMENTS_MAX)],
    Meta(description="A key that one live job of the queue holds: text, true (all arguments) or names of arguments."),
]
OnConflict = Annotated[
    str,
    Meta(
        description="Where the unique key is held: answer with its holder, take its place, or refuse.",
        extra_json_schema={"enum": list(ON_CONFLICT)},
    ),
]
AfterFailed = Annotated[
    str,
    Meta(
        description="If one of `after` ends badly: cancel this job (the default), or start it all the same.",
        extra_json_schema={"enum": list(AFTER_FAILED)},
    ),
]
MetaText = Annotated[str, Meta(extra_json_schema={"maxLength": META_VALUE_CHARS_MAX})]

CronText = Annotated[
    str,
    Meta(
        description="Five fields, six with the second first, or @daily and the like.",
        extra_json_schema={"minLength": 1, "maxLength": EXPRESSION_CHARS_MAX},
    ),
]
Missed = Annotated[
    str,
    Meta(
        description="Slots while no worker ran: skip them, take the latest (unless given) or all.",
        extra_json_schema={"enum": list(MISSED)},
    ),
]
Overlap = Annotated[
    str,
    Meta(
        description="allow (unless given), or skip a slot while the job before has not ended.",
        extra_json_schema={"enum": list(OVERLAP)},
    ),
]
Jitter = Annotated[
    Annotated[int, Meta(ge=0, le=JITTER_MS_MAX // 1000)]
    | Annotated[float, Meta(ge=0, le=JITTER_MS_MAX // 1000)]
    | _Text,
    Meta(description=_DURATION + " Delays each job by chance, up to this; at most a day."),
]

Limit = Annotated[int, Meta(ge=1, le=BATCH_MAX, description="Items on a page.")]
Cursor = Annotated[str, Meta(min_length=1, max_length=CURSOR_CHARS_MAX, description="The `next` of the page before.")]
#: Jobs by id, of one call.
Ids = Annotated[list[JobId], Meta(min_length=1, max_length=BATCH_MAX)]
