"""What jobs a demo makes: how many of which type, in which order, and which of them are to fail. Pure, by a seed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from ..chance import Chance
from .faults import FAULT_META
from .textindex import DOCUMENT_BYTES_MAX

TASKS_MAX = 100_000
#: Scaling pictures in pure Python, in processes of their own, is the dearest of the jobs.
_IMAGES_MAX = 24

#: Shares of the jobs with failures on purpose.
_TRANSIENT_PERCENT = 10
_PERMANENT_PER_1000 = 5
_EXHAUSTED_PER_1000 = 3

#: More failing runs than any `max_attempts` the demo accepts.
_ALWAYS = 1_000

_PRIORITIES = {"email": "high", "notification": "high", "report": "low"}
_IMAGES = ("gray.png", "rgb.png", "rgba.png")
_SIZES = ((80, 50), (64, 64), (200, 125), (40, 100))


class Planned(msgspec.Struct, kw_only=True):
    """A job to be enqueued. `doomed` says why it is meant to end in the dead letter queue; empty: it is not."""

    type: str
    payload: dict[str, Any]
    fault: str = ""
    doomed: str = ""

    @property
    def path(self) -> str:
        """The document of an index or delete job."""
        return str(self.payload.get("path", ""))

    def item(self, max_attempts: int) -> dict[str, Any]:
        """Answer the job as an item of `enqueue_many`."""
        return {
            "type": self.type,
            "payload": self.payload,
            "priority": _PRIORITIES.get(self.type, "normal"),
            "max_attempts": max_attempts,
            "meta": {FAULT_META: self.fault} if self.fault else None,
            "tags": ["demo"],
        }


class Plan(msgspec.Struct, kw_only=True):
    """The jobs of the first round in their order, and how many are kept for the second, when the first has ended."""

    first: list[Planned]
    deletions: int
    final_report: bool
    victim: Planned | None = None

    @property
    def total(self) -> int:
        """All jobs of both rounds."""
        return len(self.first) + self.deletions + self.final_report


def find_documents(root: Path) -> list[str]:
    """List the Python sources and texts below `root`, relative to it: no installed packages, empty files or links.

    A link may lead out of the tree, where no job may read (Debian's sitecustomize.py does).
    """
    found: list[str] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix in {".py", ".txt"} and not path.is_symlink() and _fits(path):
                found.append(str(path.relative_to(root)))
    return found


def _fits(path: Path) -> bool:
    try:
        return path.is_file() and 0 < path.stat().st_size <= DOCUMENT_BYTES_MAX and str(path).isprintable()
    except OSError:
        return False


def make_plan(documents: list[str], tasks: int | None, max_attempts: int, chance: Chance, *, kill: bool) -> Plan:
    """Plan `tasks` jobs (None: one for each document, and the others beside them)."""
    chosen: list[Any] = list(documents)
    chance.shuffle(chosen)
    counts = _other_jobs(len(chosen) if tasks is None else tasks)
    if tasks is not None:
        wanted = tasks - sum(counts.values())
        counts["math"] += max(0, wanted - len(chosen))  # more jobs than there are documents: compute the rest
        chosen = chosen[:wanted]
    first = [Planned(type="index_document", payload={"path": path}) for path in chosen]
    for job_type, make in _MAKERS.items():
        first += [make(number, chance) for number in range(counts[job_type])]
    if counts["report"] > 1:
        first.append(Planned(type="report", payload={"name": "interim"}))
    mixed: list[Any] = first
    chance.shuffle(mixed)
    plan = Plan(first=first, deletions=counts["delete_document"], final_report=counts["report"] > 0)
    _add_unfit(plan)
    _add_faults(plan, max_attempts, chance, kill=kill)
    return plan


def _other_jobs(total: int) -> dict[str, int]:
    """Answer how many jobs there are of the types beside index_document: each at least once, as soon as they fit."""
    counts = {
        "math": max(total // 12, total >= 2),
        "email": max(total // 20, total >= 3),
        "notification": max(total // 20, total >= 4),
        "image_resize": min(_IMAGES_MAX, max(total // 40, total >= 5)),
        "report": (total >= 6) + (total >= 100),
        "delete_document": max(total // 60, total >= 8),
    }
    return {job_type: int(count) for job_type, count in counts.items()}


def _math(number: int, chance: Chance) -> Planned:
    makes = (
        {"operation": "fibonacci", "value": 10 + chance.below(2_000)},
        {"operation": "factorial", "value": chance.below(300)},
        {"operation": "is_prime", "value": (1 << 61) - 1 - 2 * chance.below(1_000)},
        {"operation": "gcd", "value": 1 + chance.below(1 << 40), "other": 1 + chance.below(1 << 40)},
    )
    return Planned(type="math", payload={"operation": "fibonacci", "value": 10} if not number else makes[number % 4])


def _email(number: int, chance: Chance) -> Planned:
    to = f"reader{number}@example.com"
    body = f"Dear reader {number},\n\nyour number is {chance.below(1_000_000):,}.\n\nEver yours, packhorse ☺\n"
    return Planned(type="email", payload={"to": to, "subject": f"Letter number {number}", "body": body})


def _notification(number: int, chance: Chance) -> Planned:
    return Planned(
        type="notification",
        payload={"to": f"reader{number}", "message": f"Shelf {1 + chance.below(50)} was sorted", "channel": "library"},
    )


def _image(number: int, chance: Chance) -> Planned:
    width, height = _SIZES[chance.below(len(_SIZES))]
    payload = {"source": _IMAGES[number % len(_IMAGES)], "width": width, "height": height}
    return Planned(type="image_resize", payload=payload)


_MAKERS = {"math": _math, "email": _email, "notification": _notification, "image_resize": _image}

#: Arguments that no retry makes fit, one for each type that has such: real errors, not injected ones.
_UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "math": ({"operation": "factorial", "value": -1}, "a number out of bounds"),
    "email": ({"to": "nobody at example.com", "subject": "Lost"}, "not an address"),
    "image_resize": ({"source": "broken.png", "width": 40, "height": 40}, "a damaged picture"),
    "index_document": ({"path": "no/such/file.py"}, "a file that is not there"),
}


def _add_unfit(plan: Plan) -> None:
    if plan.total < 20:
        return
    for job_type, (payload, why) in _UNFIT.items():
        jobs = [job for job in plan.first if job.type == job_type]
        if len(jobs) > 1:  # not the only one of its type: people want to see one succeed
            jobs[-1].payload = payload
            jobs[-1].doomed = why


def _add_faults(plan: Plan, max_attempts: int, chance: Chance, *, kill: bool) -> None:
    candidates: list[Any] = [job for job in plan.first if not job.doomed]
    chance.shuffle(candidates)
    if kill:
        plan.victim = next(job for job in candidates if job.type == "index_document")
        plan.victim.fault = "hang"
        candidates.remove(plan.victim)
        place = len(plan.first) // 4
        plan.first.remove(plan.victim)
        plan.first.insert(place, plan.victim)
    total = plan.total
    # In a small demo no document is given up, so that some are left to search in.
    safe = [job for job in candidates if total >= 40 or job.type != "index_document"]
    for count, fault, why in (
        (max(total * _PERMANENT_PER_1000 // 1000, total >= 6), "never", "injected: permanent"),
        (max(total * _EXHAUSTED_PER_1000 // 1000, total >= 20), f"before:{_ALWAYS}", "injected: in every run"),
    ):
        for job in safe[: int(count)]:
            job.fault, job.doomed = fault, why
            candidates.remove(job)
        safe = safe[int(count) :]
    for job in candidates[: max(total * _TRANSIENT_PERCENT // 100, min(2, total // 4))]:
        _make_transient(job, max_attempts, chance)


def _make_transient(job: Planned, max_attempts: int, chance: Chance) -> None:
    """Let a job fail in its first runs, and succeed in its last if not before."""
    if max_attempts == 1:
        job.fault, job.doomed = "before:1", "injected: in its only run"
        return
    runs = 1 + chance.below(min(2, max_attempts - 1))
    # A handler in a process of its own reports its end past the middleware, so it can only fail before.
    when = "before" if job.type == "image_resize" else ("before", "after")[chance.below(2)]
    job.fault = f"{when}:{runs}"
