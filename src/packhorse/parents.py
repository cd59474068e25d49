"""What the parents of a job came to, as its handler sees it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from . import codec
from .arguments import convert
from .backends.base import BATCH_MAX
from .errors import ResultsTooLarge
from .job import JobRecord, State
from .wording import quantity

T = TypeVar("T")

#: Results that one call hands to a handler, bytes in all: 10,000 parents with a KB each, or sixteen of the largest.
RESULTS_BYTES_MAX = 16 << 20

#: Parents in the first look-up; twice as many in each further one while they are small, up to `BATCH_MAX`.
_FIRST_LOOK = 16
_SMALL_BYTES = 1 << 20


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """How a parent ended. `name` is its node in the workflow, or its id; `state` is None if it was deleted since."""

    id: str
    name: str
    type: str = ""
    state: State | None = None
    error: str | None = None


class Results(Mapping[str, Any]):
    """The results of a job's parents by node name (by id where a parent has none).

    Ask for it by annotation, and packhorse fills it in when the job runs:

        @app.task
        async def report(results: Results) -> int:
            return sum(results[name] for name in results.succeeded)

    A parent that ended without a result is None here; `parents` tells how each ended. A test that calls the function
    itself passes `Results({"a": 1})`.
    """

    def __init__(self, values: dict[str, Any], parents: dict[str, Parent] | None = None) -> None:
        self._values = values
        self.parents = parents or {}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return (
            f"<Results of {quantity(len(self), 'parent')}: {', '.join(list(self)[:10])}{'…' if len(self) > 10 else ''}>"
        )

    @property
    def only(self) -> Any:
        """The result of the one parent, as in a chain. Raises LookupError if there are more or none."""
        if len(self._values) != 1:
            raise LookupError(
                f"this job has {quantity(len(self._values), 'parent')}, not one; take them by name: {self!r}"
            )
        return next(iter(self._values.values()))

    def read(self, name: str, kind: type[T]) -> T:
        """Answer one result as `kind`: a dataclass, a struct, a pydantic model, `list[int]`. Raises KeyError."""
        value: T = convert(self._values[name], kind)
        return value

    @property
    def succeeded(self) -> list[str]:
        """The names of the parents that succeeded."""
        return [name for name, parent in self.parents.items() if parent.state is State.SUCCEEDED]

    @property
    def failed(self) -> list[str]:
        """The names of the others: failed, cancelled, or deleted since. Only with `after_failed="continue"`."""
        return [name for name, parent in self.parents.items() if parent.state is not State.SUCCEEDED]


#: Asks for jobs by id and is sent their records; returns what it made of them.
Reading = Generator[list[str], "list[JobRecord | None]", T]


def reading_parents(job_id: str, *, results: bool) -> Reading[Results]:
    """Read the parents of a job, with their results or (`results=False`) only how they ended.

    Raises ResultsTooLarge beyond `RESULTS_BYTES_MAX`.
    """
    job = (yield [job_id])[0]
    after: Sequence[str] = job.after if job is not None else ()
    workflow = job.workflow if job is not None else None
    parents: dict[str, Parent] = {}
    values: dict[str, Any] = {}
    bytes_read = at = 0
    look = _FIRST_LOOK
    while at < len(after):
        ids = list(after[at : at + look])
        at += len(ids)
        bytes_seen = 0
        for parent_id, record in zip(ids, (yield ids), strict=True):
            parent = _parent(parent_id, record, workflow)
            parents[parent.name] = parent
            if record is not None:
                bytes_seen += len(record.payload) + len(record.result or b"")
                bytes_seen += sum(map(len, (record.steps or {}).values()))
            values[parent.name] = None
            if results and record is not None and record.result is not None:
                bytes_read += len(record.result)
                if bytes_read > RESULTS_BYTES_MAX:
                    raise ResultsTooLarge(len(after), RESULTS_BYTES_MAX)
                values[parent.name] = codec.decode(record.result)
        if bytes_seen < _SMALL_BYTES:
            look = min(BATCH_MAX, look * 2)
    return Results(values, parents)


def _parent(job_id: str, record: JobRecord | None, workflow: str | None) -> Parent:
    if record is None:
        return Parent(id=job_id, name=job_id)
    # A node's name says who it is inside of its own workflow only.
    name = record.node if record.node is not None and record.workflow == workflow else job_id
    last = record.errors[-1] if record.errors and record.state is not State.SUCCEEDED else None
    return Parent(
        id=job_id,
        name=name,
        type=record.type,
        state=record.state,
        error=f"{last.kind}: {last.message}" if last is not None else None,
    )
