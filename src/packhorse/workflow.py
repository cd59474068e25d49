"""Workflows: jobs that start when others have ended. Any graph without a cycle, built before anything is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .backends.base import BATCH_MAX, Steered
from .client import Job
from .errors import InvalidOption, PackhorseError, Refused, Unavailable, Unsupported, shown
from .job import AFTER_FAILED, AFTER_MAX, JobSpec, check_name
from .transaction import current
from .wording import quantity
from .workflow_jobs import NAME_META
from .workflow_run import WorkflowRun

if TYPE_CHECKING:
    from .app import Packhorse

#: Jobs in one workflow, and waits in all: each is a row or an entry that some move has to touch.
NODES_MAX = 100_000
EDGES_MAX = 1_000_000

_NODE_CHARS_MAX = 128
_TRIES = 4
_PAUSE_S_MAX = 1.0


class Flow:
    """Jobs in an order: what `chain`, `group` and `chord` answer, to be put into each other and into a workflow."""

    def __init__(self, kind: str, parts: Iterable[JobSpec | Flow]) -> None:
        self.kind = kind
        self.parts = tuple(parts)
        for part in self.parts:
            if not isinstance(part, JobSpec | Flow):
                raise _no_job(kind, part)
        if not self.parts:
            raise InvalidOption(f"{kind}: it is empty; give it at least one job")

    def __repr__(self) -> str:
        return f"<{self.kind} of {len(self.parts)}>"


def _no_job(where: str, part: object) -> InvalidOption:
    return InvalidOption(
        f"{where}: {shown(part)} is no job; give task.job(...), task.using(...).job(...), app.spec(type, ...), "
        "or a chain, group or chord"
    )


def chain(*parts: JobSpec | Flow) -> Flow:
    """Put jobs one after the other; each starts when the one before has succeeded.

        app.workflow(chain(fetch.job(url), parse.job(), store.job())).enqueue()

    A parameter annotated `Results` gets what came before: `results.only`, or by name.
    """
    return Flow("chain", parts)


def group(*parts: JobSpec | Flow | Iterable[JobSpec | Flow]) -> Flow:
    """Put jobs side by side: they start together, and what comes after waits for all of them.

    group(fetch.job(url) for url in urls)
    """
    if len(parts) == 1 and not isinstance(parts[0], JobSpec | Flow):
        return Flow("group", _several(parts[0]))
    return Flow("group", parts)  # type: ignore[arg-type]  # Flow refuses what is neither


def chord(header: Flow | JobSpec | Iterable[JobSpec | Flow], callback: JobSpec | Flow) -> Flow:
    """Put jobs side by side and one behind them all, which gets their results.

        chord([count.job(page) for page in pages], total.job())

    Let the callback run even if some fail by giving it `total.using(after_failed="continue").job()`.
    """
    return Flow("chain", (header if isinstance(header, JobSpec | Flow) else group(header), callback))


def _several(parts: Any) -> Iterable[Any]:
    try:
        return tuple(parts)
    except TypeError:
        return (parts,)  # refused by Flow, with the remedy


class Node(NamedTuple):
    """A node of a workflow, or a flow in it, as others may come after it."""

    name: str
    ends: tuple[str, ...]  # ids of the jobs that end it


Before = Node | str | JobSpec | Job[Any]


class _Entry(msgspec.Struct):
    name: str
    spec: JobSpec
    after: list[str]  # ids
    after_names: list[str]


class Workflow:
    """A graph of jobs that is being built. `enqueue` stores it: all of it, or nothing."""

    def __init__(self, app: Packhorse, *, name: str | None = None) -> None:
        self.app = app
        self.id = app.chance.id(app.clock.now_ms())
        self.name = None if name is None else check_name(name, "workflow")
        self._entries: dict[str, _Entry] = {}  # by id of the job
        self._names: dict[str, Node] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Workflow {self.name or self.id} of {quantity(len(self), 'job')}>"

    # ---- building --------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        job: JobSpec | Flow,
        *,
        after: Before | Sequence[Before] = (),
        after_failed: str | None = None,
    ) -> Node:
        """Add a job as the node `name`, to start when all of `after` have succeeded.

            load = wf.add("load", load_rows.job(), after=["extract", check])

        `after` names nodes (also ones added later), or is what `add` answered, or a job outside of the workflow
        (`app.job(id)`). With `after_failed="continue"` it starts once they have ended, however. A flow is added as a
        whole: its nodes are `name.type`, and what comes after `name` waits for its ends. Raises InvalidOption.
        """
        check_name(name, "node")
        if name in self._names:
            raise InvalidOption(f"workflow: there is a node {name!r} already; give this one another name")
        if isinstance(job, JobSpec):
            node = Node(name, self._place_job(job, name, self._before(after), after_failed))
        else:
            node = Node(name, self._place(job, f"{name}.", self._before(after), after_failed))
        self._names[name] = node
        return node

    def put(
        self, flow: JobSpec | Flow, *, after: Before | Sequence[Before] = (), after_failed: str | None = None
    ) -> Node:
        """Add a job or flow under names made of the types: `fetch`, `fetch-2`; see `add`."""
        return Node("", self._place(flow, "", self._before(after), after_failed))

    def _before(self, after: Before | Sequence[Before]) -> tuple[list[str], list[str]]:
        """Answer the ids and the names of what comes before."""
        items: Sequence[Any] = [after] if isinstance(after, Node | str | JobSpec | Job) else after
        ids: list[str] = []
        names: list[str] = []
        for item in items:
            if isinstance(item, Node):
                ids += item.ends
            elif isinstance(item, str):
                names.append(item)
            elif isinstance(item, JobSpec | Job):
                ids.append(item.id)
            else:
                raise InvalidOption(f"after: {shown(item)} must be a node, its name, or the handle of a job")
        return ids, names

    def _place(
        self, part: JobSpec | Flow, prefix: str, before: tuple[list[str], list[str]], after_failed: str | None
    ) -> tuple[str, ...]:
        """Add all jobs of a flow behind `before`; answers the ids of its ends."""
        if isinstance(part, JobSpec):
            return self._place_job(part, self._new_name(prefix, part), before, after_failed)
        if not isinstance(part, Flow):
            raise _no_job("workflow", part)
        try:
            if part.kind == "group":
                return tuple(job for each in part.parts for job in self._place(each, prefix, before, after_failed))
            ends: tuple[str, ...] = ()
            for each in part.parts:
                ends = self._place(each, prefix, before, after_failed)
                before, after_failed = (list(ends), []), None
        except RecursionError:
            raise InvalidOption("workflow: chains and groups are nested too deep; use fewer levels") from None
        return ends

    def _new_name(self, prefix: str, spec: JobSpec) -> str:
        base = prefix + (spec.node or spec.type)
        while True:
            count = self._counts[base] = self._counts.get(base, 0) + 1
            tail = "" if count == 1 else f"-{count}"
            name = base[: _NODE_CHARS_MAX - len(tail)] + tail
            if name not in self._names:
                return name

    def _place_job(
        self, spec: JobSpec, name: str, before: tuple[list[str], list[str]], after_failed: str | None
    ) -> tuple[str, ...]:
        if spec.id in self._entries:
            raise InvalidOption(
                f"workflow: the job of node {name!r} is in it already as {self._entries[spec.id].name!r}; "
                "make another one with task.job(...)"
            )
        if len(self._entries) >= NODES_MAX:
            raise InvalidOption(f"workflow: more than {NODES_MAX:,} jobs; let some of them enqueue others")
        if after_failed is not None:
            if after_failed not in AFTER_FAILED:
                raise InvalidOption(f"after_failed: {shown(after_failed)} must be one of {', '.join(AFTER_FAILED)}")
            spec = msgspec.structs.replace(spec, after_failed=after_failed)
        self._entries[spec.id] = _Entry(name, spec, [*spec.after, *before[0]], list(before[1]))
        self._names.setdefault(name, Node(name, (spec.id,)))
        return (spec.id,)

    # ---- storing ---------------------------------------------------------------------------------------

    def specs(self) -> list[JobSpec]:
        """Answer the jobs, parents before children. Raises InvalidOption for what cannot be a workflow."""
        if not self._entries:
            raise InvalidOption("workflow: it is empty; add jobs with add(name, task.job(...))")
        edges = 0
        made: dict[str, JobSpec] = {}
        for job_id, entry in self._entries.items():
            after = tuple(dict.fromkeys([*entry.after, *self._resolve(entry)]))
            if len(after) > AFTER_MAX:
                raise InvalidOption(
                    f"workflow: node {entry.name!r} comes after {quantity(len(after), 'job')}, and "
                    f"{AFTER_MAX:,} are the most; "
                    "put jobs between that join some of them"
                )
            edges += len(after)
            meta = entry.spec.meta if self.name is None else {**(entry.spec.meta or {}), NAME_META: self.name}
            made[job_id] = msgspec.structs.replace(
                entry.spec, after=after, workflow=self.id, node=entry.name, meta=meta
            )
        if edges > EDGES_MAX:
            raise InvalidOption(
                f"workflow: {edges:,} waits, and {EDGES_MAX:,} are the most; "
                "between two large groups put one job that joins the first"
            )
        return self._in_order(made)

    def _resolve(self, entry: _Entry) -> list[str]:
        ids: list[str] = []
        for name in entry.after_names:
            node = self._names.get(name)
            if node is None:
                names = ", ".join(list(self._names)[:20])
                raise InvalidOption(
                    f"workflow: node {entry.name!r} comes after {shown(name)}, which is not in it; there are {names}. "
                    "A job outside is given as app.job(id)"
                )
            ids += node.ends
        return ids

    def _in_order(self, specs: dict[str, JobSpec]) -> list[JobSpec]:
        """Answer parents before children, else in the order they were added. Raises InvalidOption for a cycle."""
        left = {job_id: sum(parent in specs for parent in spec.after) for job_id, spec in specs.items()}
        children: dict[str, list[str]] = {}
        for job_id, spec in specs.items():
            for parent in spec.after:
                children.setdefault(parent, []).append(job_id)
        ready = [job_id for job_id, count in left.items() if not count]
        for job_id in ready:  # it grows while it is walked
            for child in children.get(job_id, ()):
                left[child] -= 1
                if not left[child]:
                    ready.append(child)
        if len(ready) < len(specs):
            raise InvalidOption(
                f"workflow: {self._cycle(specs, set(ready))} wait for each other; leave out one `after`"
            )
        return [specs[job_id] for job_id in ready]

    def _cycle(self, specs: dict[str, JobSpec], free: set[str]) -> str:
        """Write one cycle as `a → b → a`."""
        at = next(job_id for job_id in specs if job_id not in free)
        path: dict[str, None] = {}
        while at not in path:
            path[at] = None
            at = next(parent for parent in specs[at].after if parent in specs and parent not in free)
        around = list(path)[list(path).index(at) :]
        names = [self._entries[job_id].name for job_id in reversed(around)]
        shown_names = names if len(names) <= 10 else [*names[:9], "…"]
        return " → ".join([*shown_names, names[0]])

    def enqueue(self) -> WorkflowRun:
        """Store the workflow: all of it, or with an error nothing. Blocks.

        Up to 1,000 jobs are stored in one move. Of more, those already stored are cancelled if a later batch fails; a
        program that is killed between two batches leaves a part, which `packhorse workflows cancel` removes. Repeating
        it after Unavailable is safe, and adds nothing twice. Raises InvalidOption, Unsupported and what a job's
        `enqueue` raises.
        """
        return self.app.run_enqueue(self.aenqueue())

    async def aenqueue(self) -> WorkflowRun:
        """Store the workflow in async code; see `enqueue`."""
        specs = self.specs()
        if any(spec.after for spec in specs) and not (await self.app.acapabilities()).dependencies:
            raise Unsupported("dependencies", "enqueue the next job from the one before it with ctx.then()")
        if len(specs) <= BATCH_MAX:
            jobs = await self.app.aenqueue_specs(specs, together=True)
        else:
            jobs = await self._store_many(specs)
        parents = {parent for spec in specs for parent in spec.after}
        return WorkflowRun(
            self.app,
            self.id,
            name=self.name,
            jobs={spec.node or spec.id: job for spec, job in zip(specs, jobs, strict=True)},
            sinks=tuple(spec.node or spec.id for spec in specs if spec.id not in parents),
        )

    async def _store_many(self, specs: list[JobSpec]) -> list[Job[Any]]:
        """Store more than one batch. Parents come in earlier ones, so a child may start before the last is stored."""
        jobs: list[Job[Any]] = []
        instead: dict[str, str] = {}  # jobs whose unique key was held → the holder
        new: list[str] = []
        for start in range(0, len(specs), BATCH_MAX):
            batch = specs[start : start + BATCH_MAX]
            if instead:
                batch = [
                    msgspec.structs.replace(spec, after=tuple(instead.get(parent, parent) for parent in spec.after))
                    for spec in batch
                ]
            try:
                stored = await self._store_batch(batch)
            except BaseException as error:
                # What was refused is not there; of any other end nobody knows.
                left = new if isinstance(error, Refused) else [*new, *(spec.id for spec in batch)]
                if current(self.app) is None:
                    await asyncio.shield(self._undo(left, error))
                else:
                    held = quantity(len(new), "job")
                    error.add_note(f"roll the transaction back: {held} of workflow {self.id} in it")
                raise
            for spec, job in zip(batch, stored, strict=True):
                if job.created:
                    new.append(spec.id)
                elif job.id != spec.id:
                    instead[spec.id] = job.id
            jobs += stored
        return jobs

    async def _store_batch(self, batch: list[JobSpec]) -> list[Job[Any]]:
        for tried in range(1, _TRIES + 1):
            try:
                return await self.app.aenqueue_specs(batch, together=True)
            except Unavailable:
                if tried == _TRIES or current(self.app) is not None:  # what was lost there is the transaction
                    raise
                await asyncio.sleep(self.app.chance.uniform(0, _PAUSE_S_MAX))
        raise AssertionError("the last try answers or raises")

    async def _undo(self, ids: list[str], error: BaseException) -> None:
        """Cancel what was stored of a workflow that cannot be stored whole; adds to `error` what became of it."""
        stopped = 0
        try:
            backend = await self.app.backend()
            for start in range(len(ids), 0, -BATCH_MAX):  # children before parents
                batch = ids[max(0, start - BATCH_MAX) : start][::-1]
                answers = await backend.cancel(batch)
                stopped += sum(answer in {Steered.DONE, Steered.REQUESTED} for answer in answers)
        except PackhorseError as broken:
            error.add_note(
                f"a part of workflow {self.id} may be stored and could not be cancelled ({broken}); "
                f"cancel it with: packhorse workflows cancel {self.id}"
            )
        else:
            gone = quantity(stopped, "job stored before is", "jobs stored before are")
            error.add_note(f"nothing of workflow {self.id} is left to run: {gone} cancelled")
