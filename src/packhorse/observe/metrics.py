"""The table of all metrics: names, labels, buckets, in base units. Nothing is counted that is not in it.

Names and labels of the first group are those of REQUIREMENTS section D. Never a job id as a label; what comes from
outside as a label is bounded by `labels.LabelBounds`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """How values of a metric go together."""

    COUNTER = "counter"  # rises; over processes the sum
    GAUGE = "gauge"  # goes up and down; over the runners of a worker the sum
    HISTOGRAM = "histogram"  # seconds, counted by bucket


#: Seconds a job may run or wait: from what is quick to what a lease is long, then to the longest time-outs people use.
JOB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
#: Seconds a call of a store takes: from memory to a server's time-out.
CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metric(msgspec.Struct, frozen=True):
    """One metric. `help` is what the exposition says of it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_BY_JOB = ("queue", "job_type")

ENQUEUED = Metric("packhorse_jobs_enqueued_total", Kind.COUNTER, "Jobs stored, by this process.", _BY_JOB)
COMPLETED = Metric("packhorse_jobs_completed_total", Kind.COUNTER, "Jobs that ended as succeeded.", _BY_JOB)
FAILED = Metric("packhorse_jobs_failed_total", Kind.COUNTER, "Jobs that went to the dead letter queue.", _BY_JOB)
RETRIED = Metric("packhorse_jobs_retried_total", Kind.COUNTER, "Attempts that failed and are tried again.", _BY_JOB)
CANCELLED = Metric("packhorse_jobs_cancelled_total", Kind.COUNTER, "Jobs that were cancelled.", _BY_JOB)
RELEASED = Metric(
    "packhorse_jobs_released_total", Kind.COUNTER, "Jobs given back without an attempt: stop, snooze.", _BY_JOB
)
PARKED = Metric(
    "packhorse_jobs_parked_total", Kind.COUNTER, "Times a job was put off for a worker that knows its type.", _BY_JOB
)
RECOVERED = Metric(
    "packhorse_jobs_recovered_total", Kind.COUNTER, "Jobs taken back from workers that died or lost their lease."
)
REFUSED = Metric(
    "packhorse_settlements_refused_total", Kind.COUNTER, "Ends of runs that came too late: the lease was lost."
)
RUNS = Metric(
    "worker_jobs_processed_total", Kind.COUNTER, "Runs that ended, by success or failure.", ("job_type", "status")
)
RUN_SECONDS = Metric("worker_job_duration_seconds", Kind.HISTOGRAM, "How long runs took.", ("job_type",), JOB_SECONDS)
JOB_SECONDS_BY_QUEUE = Metric(
    "packhorse_job_duration_seconds", Kind.HISTOGRAM, "How long runs took, by queue.", _BY_JOB, JOB_SECONDS
)
QUEUE_SECONDS = Metric(
    "packhorse_job_queue_time_seconds",
    Kind.HISTOGRAM,
    "How long jobs that were ready waited for their claim.",
    _BY_JOB,
    JOB_SECONDS,
)
DEPTH = Metric("packhorse_queue_depth", Kind.GAUGE, "Jobs in the store.", ("queue", "state"))
LATENCY = Metric("packhorse_queue_latency_seconds", Kind.GAUGE, "Age of the oldest pending job.", ("queue",))
PAUSED = Metric("packhorse_queue_paused", Kind.GAUGE, "1 where a queue is paused.", ("queue",))
QUEUE_WORKERS = Metric("packhorse_queue_workers", Kind.GAUGE, "Live workers that take from a queue.", ("queue",))
TYPE_WORKERS = Metric("packhorse_type_workers", Kind.GAUGE, "Live workers that know a type.", ("job_type",))
DEAD_LETTERS = Metric("packhorse_dead_letter_size", Kind.GAUGE, "Jobs in the dead letter queue.", ("queue",))
WORKERS = Metric("packhorse_workers", Kind.GAUGE, "Live workers: idle, busy or in trouble.", ("state",))
STORE_UP = Metric("packhorse_store_up", Kind.GAUGE, "1 while the store answers and takes writes, else 0.")
BUSY = Metric("packhorse_worker_busy", Kind.GAUGE, "Jobs that this worker runs now.")
SLOTS = Metric("packhorse_worker_slots", Kind.GAUGE, "Jobs that this worker can run at once.")
UNSTARTED = Metric("packhorse_worker_unstarted", Kind.GAUGE, "Jobs that this worker claimed and has not started.")
RATE_LIMITED = Metric(
    "packhorse_rate_limited_total",
    Kind.COUNTER,
    "Claims that left jobs of a type because its rate was spent.",
    ("job_type",),
)
SLOTS_FIRED = Metric("packhorse_schedule_slots_total", Kind.COUNTER, "Slots of schedules turned into jobs.")
SCHEDULE_LATE = Metric(
    "packhorse_schedule_late_seconds", Kind.GAUGE, "How long the most overdue slot of all schedules has been due."
)
CALL_DURATION = Metric(
    "packhorse_backend_operation_duration_seconds",
    Kind.HISTOGRAM,
    "How long calls of the store took.",
    ("operation",),
    CALL_SECONDS,
)
CALL_ERRORS = Metric(
    "packhorse_backend_errors_total", Kind.COUNTER, "Calls of the store that failed.", ("operation", "error")
)
LEASES_LOST = Metric("packhorse_leases_lost_total", Kind.COUNTER, "Runs stopped because their job was lost.")
LOOP_BLOCKED = Metric(
    "packhorse_loop_blocked_total", Kind.COUNTER, "Times a handler blocked the event loop of its runner."
)
RUNNERS_LOST = Metric(
    "packhorse_runners_lost_total", Kind.COUNTER, "Runner processes that died or were killed.", ("reason",)
)
HTTP_REQUESTS = Metric(
    "packhorse_http_requests_total",
    Kind.COUNTER,
    "Requests that this server answered, by the pattern of their route.",
    ("method", "route", "status"),
)
HTTP_SECONDS = Metric(
    "packhorse_http_request_duration_seconds",
    Kind.HISTOGRAM,
    "How long requests took until their answer began, by the pattern of their route.",
    ("method", "route"),
    CALL_SECONDS,
)
BUILD = Metric("packhorse_build_info", Kind.GAUGE, "1; the labels say what runs.", ("version", "python"))

METRICS: dict[str, Metric] = {value.name: value for value in list(globals().values()) if isinstance(value, Metric)}
