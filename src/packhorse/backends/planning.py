"""What is to become of the specs of one enqueue: who gets a unique key, who is replaced, who is there already.

Pure: what was looked up in the store comes in, and the store must not change until the plan is carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from ..errors import UniqueConflict, UnknownParent
from ..job import JobSpec
from .messages import Enqueued
from .rules import REPLACEABLE, holds_key
from .stored import CANCELLED, PENDING, SCHEDULED, STATES, SUCCEEDED, WAITING, Holder, Parent, Slot, missing_parent


def first_state(spec: JobSpec) -> int:
    """Answer the state a new job is stored in. One with parents waits, be it for nobody."""
    return WAITING if spec.after else SCHEDULED if spec.delay_ms > 0 else PENDING


class New(msgspec.Struct):
    """A job to be stored. `state` is how it stands while the call is looked through, one spec after the other."""

    spec: JobSpec
    state: int
    replaced_by: str | None = None


class Plan:
    """What is to become of the specs of a call.

    `parents` are the jobs among the ids and parents that are there already, `takers` who took each key, the last one
    last. With `refuse` a refusal of the contract is raised; without, what cannot be stored is left out.
    """

    def __init__(
        self,
        specs: Sequence[JobSpec],
        now_ms: int,
        parents: dict[str, Parent],
        takers: Mapping[Slot, Sequence[Holder]],
        *,
        refuse: bool,
    ) -> None:
        self.specs = specs
        self.now_ms = now_ms
        self.refuse = refuse
        self.answers: list[Enqueued] = []
        self.new: dict[str, New] = {}
        self.replaced: dict[int, str] = {}  # seq of a holder that makes way → id of who takes its place
        self.instead: dict[str, str] = {}  # id that is not stored → the job that holds its key
        self.room: Counter[str] = Counter()  # by queue: pending jobs this adds
        self.parents = parents
        self._takers: dict[Slot, list[Holder | New]] = {slot: [*found] for slot, found in takers.items()}
        ids = {spec.id for spec in specs}
        self.known = {job_id for job_id in ids if job_id in self.parents}
        for spec in specs:
            if refuse and spec.id not in self.known:
                for parent in spec.after:
                    if parent not in ids and parent not in self.parents:
                        raise UnknownParent(parent)
            self._plan(spec)

    def _plan(self, spec: JobSpec) -> None:
        if spec.id in self.known:
            self.answers.append(Enqueued(spec.id, False))
            return
        new = New(spec, first_state(spec))
        if spec.unique is not None:
            holder = self._give_key(new, (spec.queue, spec.unique.key))
            if holder is not None:
                self.instead[spec.id] = holder
                self.answers.append(Enqueued(holder, False))
                return
        self.known.add(spec.id)
        self.new[spec.id] = new
        self.room[spec.queue] += new.state == PENDING
        self.answers.append(Enqueued(spec.id, True))

    def _give_key(self, new: New, slot: Slot) -> str | None:
        """Let a new job take a key; answers the id of who keeps it from that, None where nobody does."""
        unique = new.spec.unique
        assert unique is not None
        takers = self._takers.setdefault(slot, [])
        holder = next((one for one in reversed(takers) if self._holds(one)), None)
        if holder is not None:
            holder_id = holder.spec.id if isinstance(holder, New) else holder.id
            if self.refuse and unique.on_conflict == "refuse":
                raise UniqueConflict(unique.key, holder_id)
            if unique.on_conflict != "replace" or STATES[holder.state] not in REPLACEABLE:
                if isinstance(holder, Holder):
                    self.parents[holder_id] = Parent(holder_id, holder.seq, holder.state)
                return holder_id
            self.room[slot[0]] -= holder.state == PENDING
            if isinstance(holder, New):
                holder.replaced_by = new.spec.id
                holder.state = CANCELLED
            else:
                self.replaced[holder.seq] = new.spec.id
                holder.state = CANCELLED
                self.parents[holder_id] = Parent(holder_id, holder.seq, CANCELLED)
        self._takers[slot] = [*(one for one in takers if one.state < SUCCEEDED), new]
        return None

    def _holds(self, taker: Holder | New) -> bool:
        if isinstance(taker, Holder):
            return taker.holds(self.now_ms)
        rule = taker.spec.unique
        return rule is not None and holds_key(rule, STATES[taker.state], self.now_ms, self.now_ms)

    def starts_at_once(self, spec: JobSpec) -> bool:
        """Tell whether a new job with parents need not wait for any of them, and is not cancelled because of one."""
        for name in (self.instead.get(parent, parent) for parent in spec.after):
            if name in self.new:
                if self.new[name].replaced_by is None:
                    return False
                is_bad = True
            else:
                parent = self.parents.get(name, missing_parent(name))
                if parent.lives:
                    return False
                is_bad = parent.is_bad
            if is_bad and spec.after_failed == "cancel":
                return False
        return spec.delay_ms <= 0
