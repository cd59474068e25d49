"""What crosses the network between an HTTP backend and a server: one table of verbs, shared by both ends.

`POST /api/v1/contract/VERB` carries the arguments of a verb of `Backend` as MessagePack and answers what the verb
answers; errors are problem documents (`failures`). `GET /api/v1/contract` says which revision of all this a server
speaks. Repeating any call is as safe as repeating the verb: ids are the client's, tokens name one claim.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from ...job import Claimed, JobRecord, JobSpec
from ..base import BATCH_MAX
from ..checkup import Checkup
from ..messages import (
    Arrival,
    Capabilities,
    Changes,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Ticked,
    Transfer,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
)

#: Rises with every change of a type that crosses the network; `tests/http/test_wire.py` notices one.
REVISION = 3

PATH = "/api/v1/contract"
MEDIA_TYPE = "application/vnd.packhorse+msgpack"
STREAM_MEDIA_TYPE = "application/vnd.packhorse.rings+jsonl"

#: Bytes of one call. Settlements and the like are sent in several calls; new jobs of one call are stored together.
CALL_BYTES_MAX = 16 << 20
#: Bytes of jobs in one answer to a claim, get or find, about: the client asks again for the others.
ANSWER_BYTES = 8 << 20

#: Topics of one stream of rings, and characters of one.
TOPICS_MAX = 10_000
TOPIC_CHARS_MAX = 300
#: A stream says something at least this often, ms, so that a dead one is noticed.
SIGN_OF_LIFE_MS = 10_000

#: What reading bytes that are not what they should be may raise.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")
Batch = Annotated[tuple[T, ...], Meta(max_length=BATCH_MAX)]
Topics = Annotated[tuple[Annotated[str, Meta(max_length=TOPIC_CHARS_MAX)], ...], Meta(max_length=TOPICS_MAX)]


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `GET /api/v1/contract`: what the server speaks, and what its store can do."""

    product: str
    version: str
    revision: int
    capabilities: Capabilities


class Nothing(msgspec.Struct, frozen=True):
    """No arguments."""


class Enqueue(msgspec.Struct, frozen=True):
    """Arguments of `enqueue`."""

    specs: Batch[JobSpec]


class Claim(msgspec.Struct, frozen=True):
    """Arguments of `claim`. The answer may have fewer jobs than there are: no more bytes than one answer takes."""

    queues: Batch[str]
    limit: int
    lease_ms: int
    worker: str


class Settle(msgspec.Struct, frozen=True):
    """Arguments of `settle`."""

    settlements: Batch[Settlement]


class Heartbeat(msgspec.Struct, frozen=True):
    """Arguments of `heartbeat`."""

    worker: WorkerInfo
    lease_ms: int
    notes: Batch[Note]


class Retire(msgspec.Struct, frozen=True):
    """Arguments of `retire`."""

    worker: str
    reason: str


class Tick(msgspec.Struct, frozen=True):
    """Arguments of `tick`."""

    limit: int
    keep: Keep


class Fire(msgspec.Struct, frozen=True):
    """Arguments of `fire`."""

    firings: Batch[Firing]


class Get(msgspec.Struct, frozen=True):
    """Arguments of `get`. The answer may lack those at the end, but not the first: the others are asked for again."""

    ids: Batch[str]


class Find(msgspec.Struct, frozen=True):
    """Arguments of `find`. The page may be shorter than asked for, and still not the last."""

    query: Query


class Workflows(msgspec.Struct, frozen=True):
    """Arguments of `workflows`."""

    limit: int
    before: str | None


class Follow(msgspec.Struct, frozen=True):
    """Arguments of `changes`."""

    cursor: str | None


class Steer(msgspec.Struct, frozen=True):
    """Arguments of `cancel` and `delete`."""

    ids: Batch[str]


class RerunJobs(msgspec.Struct, frozen=True):
    """Arguments of `rerun`."""

    reruns: Batch[Rerun]


class ChangeQueues(msgspec.Struct, frozen=True):
    """Arguments of `queues`."""

    changes: Batch[QueueChange]


class ChangeLimits(msgspec.Struct, frozen=True):
    """Arguments of `limits`."""

    changes: Batch[Limit]
    about: tuple[str, str | None] | None


class ChangeSchedules(msgspec.Struct, frozen=True):
    """Arguments of `schedules`."""

    changes: Batch[ScheduleChange]


class HandOver(msgspec.Struct, frozen=True):
    """Arguments of `hand_over`."""

    to: str
    limit: int
    stored: int | None


class TakeOver(msgspec.Struct, frozen=True):
    """Arguments of `take_over`."""

    transfer: Transfer | None


class Watch(msgspec.Struct, frozen=True):
    """Arguments of `watch`, and of a change to a stream that is open: topics that it hears from now on, or no more."""

    add: Topics
    remove: Topics = ()


class Rings(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the stream that `watch` answers. The first names the stream; one without topics is a sign of life."""

    stream: str = ""
    rung: tuple[str, ...] = ()


Arguments = TypeVar("Arguments", bound=msgspec.Struct)
Answer = TypeVar("Answer")


class Verb(Generic[Arguments, Answer]):
    """One verb: its name in the URL, its arguments, and what it answers."""

    def __init__(self, name: str, arguments: type[Arguments], answer: Any) -> None:
        self.name = name
        self.arguments = arguments
        self.answer = answer
        self.read_arguments = msgspec.msgpack.Decoder(arguments).decode
        self.read_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(answer)

    @property
    def path(self) -> str:
        """Where a server takes it."""
        return f"{PATH}/{self.name}"


ENQUEUE: Verb[Enqueue, list[Enqueued]] = Verb("enqueue", Enqueue, list[Enqueued])
CLAIM: Verb[Claim, list[Claimed]] = Verb("claim", Claim, list[Claimed])
SETTLE: Verb[Settle, list[Verdict]] = Verb("settle", Settle, list[Verdict])
HEARTBEAT: Verb[Heartbeat, Pulse] = Verb("heartbeat", Heartbeat, Pulse)
RETIRE: Verb[Retire, list[Lapse]] = Verb("retire", Retire, list[Lapse])
TICK: Verb[Tick, Ticked] = Verb("tick", Tick, Ticked)
FIRE: Verb[Fire, list[Verdict]] = Verb("fire", Fire, list[Verdict])
GET: Verb[Get, list[JobRecord | None]] = Verb("get", Get, list[JobRecord | None])
FIND: Verb[Find, Page] = Verb("find", Find, Page)
COUNTS: Verb[Nothing, dict[str, QueueCounts]] = Verb("counts", Nothing, dict[str, QueueCounts])
WORKFLOWS: Verb[Workflows, list[WorkflowCounts]] = Verb("workflows", Workflows, list[WorkflowCounts])
CHANGES: Verb[Follow, Changes] = Verb("changes", Follow, Changes)
WORKERS: Verb[Nothing, list[WorkerInfo]] = Verb("workers", Nothing, list[WorkerInfo])
CANCEL: Verb[Steer, list[Steered]] = Verb("cancel", Steer, list[Steered])
RERUN: Verb[RerunJobs, list[Steered]] = Verb("rerun", RerunJobs, list[Steered])
DELETE: Verb[Steer, list[Steered]] = Verb("delete", Steer, list[Steered])
QUEUES: Verb[ChangeQueues, dict[str, QueueChange]] = Verb("queues", ChangeQueues, dict[str, QueueChange])
LIMITS: Verb[ChangeLimits, list[Limit]] = Verb("limits", ChangeLimits, list[Limit])
SCHEDULES: Verb[ChangeSchedules, list[Schedule]] = Verb("schedules", ChangeSchedules, list[Schedule])
HAND_OVER: Verb[HandOver, Transfer] = Verb("hand_over", HandOver, Transfer)
TAKE_OVER: Verb[TakeOver, Arrival] = Verb("take_over", TakeOver, Arrival)
MIGRATE: Verb[Nothing, int] = Verb("migrate", Nothing, int)
CHECKUP: Verb[Nothing, Checkup] = Verb("checkup", Nothing, Checkup)
WATCH: Verb[Watch, None] = Verb("watch", Watch, None)  # answers a stream of `Rings`, one a line

VERBS: tuple[Verb[Any, Any], ...] = (
    ENQUEUE,
    CLAIM,
    SETTLE,
    HEARTBEAT,
    RETIRE,
    TICK,
    FIRE,
    GET,
    FIND,
    COUNTS,
    WORKFLOWS,
    CHANGES,
    WORKERS,
    CANCEL,
    RERUN,
    DELETE,
    QUEUES,
    LIMITS,
    SCHEDULES,
    HAND_OVER,
    TAKE_OVER,
    MIGRATE,
    CHECKUP,
)

write = msgspec.msgpack.Encoder().encode


def bytes_of(*texts: bytes | None) -> int:
    """Answer how many bytes these take on the wire, and about what travels beside them."""
    return 256 + sum(len(text) for text in texts if text is not None)


def bytes_of_record(record: JobRecord | None) -> int:
    """Answer about how many bytes a record takes on the wire."""
    if record is None:
        return 1
    errors = sum(len(one.message) + len(one.traceback) for one in record.errors)
    steps = sum(len(result) for result in (record.steps or {}).values())
    return bytes_of(record.payload, record.result) + errors + steps + 40 * len(record.after)


def bytes_of_spec(spec: JobSpec) -> int:
    """Answer about how many bytes a new job takes on the wire."""
    return bytes_of(spec.payload) + 40 * len(spec.after)
