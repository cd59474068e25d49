"""What `top --json` prints: the figures of the screen as one JSON document."""

from __future__ import annotations

from typing import Any

from ...admin_json import worker_json
from ...job import State
from ...shapes import instant_json
from .history import History
from .panels import name_of
from .samples import ErrorGroup, Failure, Run, Sample


def document(history: History, sample: Sample, store: str) -> dict[str, Any]:
    """Answer all that is known after two looks; rates are jobs a second, null where they are not known."""
    rates = history.rates()
    served = {queue for worker in sample.workers for queue in worker.queues}
    return {
        "store": store,
        "at": instant_json(sample.now_ms),
        "answer_ms": sample.answer_ms,
        "span_ms": history.span_ms,
        "states": {str(state): history.count(state) for state in State},
        "rates": {"in": rates.came, "out": rates.ended, "failed": rates.failed, "at_least": history.at_least},
        "queues": {name: _queue(history, sample, name, name in served) for name in sorted(sample.queues)},
        "workers": [worker_json(worker) for worker in sample.workers],
        "dead_letters": {
            "jobs": history.count(State.FAILED),
            "grew_by": history.dead_grew_by,
            "looked_at": sample.failures.looked_at,
            "groups": [_group(each) for each in sample.failures.groups],
        },
        "failures": [_failure(each) for each in sample.failures.latest],
        "running": None if sample.running is None else [_run(each, sample) for each in sample.running],
    }


def _queue(history: History, sample: Sample, name: str, served: bool) -> dict[str, Any]:
    counts, rates = sample.queues[name], history.rates(name)
    return {
        "states": {str(state): counts.states.get(state, 0) for state in State},
        "oldest_pending_ms": counts.oldest_pending_ms,
        "paused": counts.paused,
        "has_worker": served,
        "rates": {"in": rates.came, "out": rates.ended, "failed": rates.failed},
    }


def _group(group: ErrorGroup) -> dict[str, Any]:
    return {
        "fingerprint": group.fingerprint,
        "title": group.title,
        "jobs": group.jobs,
        "first_at": instant_json(group.first_at_ms),
        "last_at": instant_json(group.last_at_ms),
        "types": list(group.types),
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {
        "id": failure.id,
        "type": failure.type,
        "queue": failure.queue,
        "attempt": failure.attempt,
        "max_attempts": failure.max_attempts,
        "at": instant_json(failure.at_ms),
        "error": failure.error,
        "retries": failure.retries,
    }


def _run(run: Run, sample: Sample) -> dict[str, Any]:
    names = {worker.id: name_of(worker) for worker in sample.workers}
    return {
        "id": run.id,
        "type": run.type,
        "queue": run.queue,
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "worker": run.worker,
        "worker_name": names.get(run.worker),
        "started_at": instant_json(run.started_at_ms),
        "running_ms": max(0, sample.now_ms - run.started_at_ms),
    }
