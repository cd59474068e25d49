"""What a world has to do: jobs, workflows, limits and schedules, all drawn from the seed.

Each seed enables some features and leaves others out, as the storm does with its faults.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...backends.base import EACH_KEY, Limit, Schedule
from ...chance import Chance
from ...clock import Clock
from ...job import AFTER_FAILED, LIVE, JobSpec, State, Unique

FEATURES = ("workflows", "limits", "keys", "windows", "capacity", "schedules", "steps", "deletes", "drops")
NODES_MAX = 12
#: Types with limits: by type, and by key.
METERED, TENANT = "metered", "tenant"
#: A type whose limit the code declares: so many starts a second, so many at once after a pause, so many running.
PACED, PACE = "paced", (4, 2, 2)
#: Schedules of the operator, and one of the code that is steered like them.
SCHEDULES = ("s1", "s2")
DECLARED = "declared"

#: kind of plan → how often it is drawn.
KINDS = {
    "ok": 10, "nap": 14, "yields": 3, "flaky": 8, "hopeless": 2, "retry": 3, "snooze": 3, "fail": 2, "cancel": 2,
    "long": 5, "deaf": 2, "deaf-ok": 2, "tidy": 3, "spawn": 4, "send": 3, "endless": 2, "block": 3, "progress": 3,
    "exit": 1, "cancelled": 1,
}  # fmt: skip
_DRAWN = [kind for kind, weight in KINDS.items() for _ in range(weight)]
#: Drawn where steps are a feature.
STEPS = "steps"
#: What jobs of limited types and of schedules do: many of them must end in time, one after the other.
_QUICK = ("ok", "nap", "nap", "flaky", "yields", "snooze", "retry", "fail", "tidy", "progress")
_STATES = (
    tuple(sorted(LIVE)),
    (State.WAITING, State.SCHEDULED, State.PENDING),
    (State.PENDING,),
    (State.RUNNING, State.SUCCEEDED),
)
_LIMITED = ((METERED, None), (TENANT, None), (TENANT, EACH_KEY), (TENANT, EACH_KEY), (TENANT, "x"), (TENANT, "x"))
#: (starts, period ms) of limits; 0: any rate. None so slow that a world would not come to its end.
_RATES = ((0, 1_000), (0, 1_000), (2, 1_000), (2, 500), (4, 2_000), (4, 500), (20, 1_000), (20, 2_000))

_encode = msgspec.json.Encoder().encode


def draw_features(chance: Chance) -> frozenset[str]:
    """Draw what a world knows beyond plain jobs: nothing, one thing, or some."""
    fate = chance.uniform(0.0, 1.0)
    if fate < 0.15:
        return frozenset()
    if fate < 0.4:
        return frozenset({chance.choice(FEATURES)})
    return frozenset(feature for feature in FEATURES if chance.happens(0.45))


def draw_plan(chance: Chance, lease_ms: int, kind: str = "") -> dict[str, Any]:
    """Draw what a job will do: its kind and durations, ms."""
    kind = kind or chance.choice(_DRAWN)
    plan: dict[str, Any] = {"kind": kind, "ms": 1 + chance.below(600), "times": 1 + chance.below(2)}
    if kind == "long":
        plan["ms"] = lease_ms + chance.below(lease_ms)
    elif kind in {"deaf", "deaf-ok"}:
        plan["ms"] = 800 + chance.below(lease_ms)
    elif kind == "block":
        plan["ms"] = 1 + chance.below(lease_ms * 3 // 2)
    elif kind == STEPS:
        plan["ms"] = 1 + chance.below(lease_ms * 2)
    return plan


class Work:
    """Draws the jobs of one world."""

    def __init__(
        self, chance: Chance, clock: Clock, queues: tuple[str, ...], lease_ms: int, features: frozenset[str]
    ) -> None:
        self._chance = chance
        self._clock = clock
        self._queues = queues
        self._lease_ms = lease_ms
        self._features = features

    def spec(self) -> JobSpec:
        """Draw one job."""
        chance = self._chance
        job_id = chance.id(self._clock.now_ms())
        limited = "limits" in self._features and chance.happens(0.5)
        kind = chance.choice(_QUICK) if limited else ""
        if STEPS in self._features and chance.happens(0.3):
            kind = STEPS
        plan = draw_plan(chance, self._lease_ms, kind)
        kind = plan["kind"]
        job_type = chance.choice((METERED, TENANT, PACED)) if limited else "work"
        payload: dict[str, Any] = {"plan": plan}
        if limited or kind == STEPS:
            pass
        elif kind in {"ok", "nap", "flaky", "yields", "deaf-ok"} and chance.happens(0.4):
            job_type = "plain"
            payload["job"] = job_id
        elif chance.happens(0.06):
            job_type = "rare"
        elif chance.happens(0.03):
            payload["plan"] = "not a plan"
        return JobSpec(
            id=job_id,
            type=job_type,
            payload=_encode(payload),
            queue=chance.choice(self._queues),
            priority=chance.choice((2, 5, 5, 5, 8)),
            max_attempts=chance.choice((1, 2, 3, 4)),
            timeout_ms=500 + chance.below(2_000) if kind == "endless" else chance.choice((0, 700, 2_500, 8_000)),
            delay_ms=chance.choice((0, 0, 0, 1 + chance.below(2_500))),
            unique=self._unique(),
            key=self._key(limited),
            meta={"kind": kind},
        )

    def _unique(self) -> Unique | None:
        chance = self._chance
        if "windows" not in self._features:
            return Unique(key=chance.choice("uvw")) if chance.happens(0.15) else None
        if chance.happens(0.6):
            return None
        return Unique(
            key=chance.choice("uvw"),
            for_ms=chance.choice((0, 0, 300, 2_500)),
            states=chance.choice(_STATES),
            on_conflict=chance.choice(("existing", "refuse", "replace", "replace")),
        )

    def _key(self, limited: bool) -> str | None:
        if ("keys" in self._features or limited) and self._chance.happens(0.7):
            return self._chance.choice("xxxxyz")
        return None

    def batch(self, count: int) -> list[JobSpec]:
        """Draw jobs for one call. Where keys are a feature, some calls are all of one key and kind."""
        specs = [self.spec() for _ in range(count)]
        if "keys" in self._features and self._chance.happens(0.5):
            first = specs[0]
            return [
                msgspec.structs.replace(spec, key="x", queue=first.queue, priority=first.priority, delay_ms=0)
                for spec in specs
            ]
        return specs

    def workflow(self, count: int, known: list[str]) -> list[JobSpec]:
        """Draw a workflow of `count` jobs; its first may wait for jobs that are `known`."""
        chance = self._chance
        shape = chance.choice(("chain", "fan in", "random", "random"))
        workflow = chance.id(self._clock.now_ms())
        policy = chance.choice((*AFTER_FAILED, ""))
        nodes: list[JobSpec] = []
        for index in range(count):
            earlier = [node.id for node in nodes]
            if shape == "chain":
                after = earlier[-1:]
            elif shape == "fan in":
                after = earlier if index == count - 1 else []
            else:
                after = [job_id for job_id in earlier if chance.happens(0.3)]
            if known and not after and chance.happens(0.2):
                after = [chance.choice(known)]
            nodes.append(
                msgspec.structs.replace(
                    self.spec(),
                    after=tuple(after),
                    after_failed=policy or chance.choice(AFTER_FAILED),
                    workflow=workflow,
                    node=f"n{index}",
                )
            )
        if chance.happens(0.3):
            # Children may be named before their parents.
            nodes.reverse()
        return nodes

    def limit(self) -> Limit:
        """Draw a limit, all parts of it named, so that setting it twice is setting it once."""
        chance = self._chance
        job_type, key = chance.choice(_LIMITED)
        rate, period_ms = chance.choice(_RATES)
        return Limit(
            type=job_type,
            key=key,
            rate=rate,
            period_ms=period_ms,
            burst=chance.choice((None, 1, 3)),
            concurrency=chance.choice((0, 1, 2, 3)),
            cleared=chance.happens(0.25),
        )

    def schedule(self, name: str) -> Schedule:
        """Draw the definition of a schedule. Its queue goes by its name: unique keys are of one queue."""
        chance = self._chance
        spec = self.spec()
        limited = spec.type in {METERED, TENANT, PACED}
        plan = draw_plan(chance, self._lease_ms, chance.choice(_QUICK))
        return Schedule(
            name=name,
            spec=msgspec.structs.replace(
                spec,
                id="",
                type=spec.type if limited else "work",
                payload=_encode({"plan": plan}),
                queue=self._queues[len(name) % len(self._queues)],
                delay_ms=0,
                unique=None,
                timeout_ms=8_000,
                meta={"kind": plan["kind"]},
            ),
            every_ms=chance.choice((1_000, 2_000) if limited else (200, 500, 500, 1_000, 2_000)),
            missed=chance.choice(("latest", "all", "skip")),
            overlap=chance.choice(("allow", "skip")),
            jitter_ms=chance.choice((0, 0, 150)),
        )
