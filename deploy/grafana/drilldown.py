"""The dashboard for one type, one queue, one worker, or some of each."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from .panels import NUMBER, PER_SECOND, SECONDS, SHARE, Ask, add, board, heat, lines, rises, rows
from .queries import buckets, failing, largest, quantile, rate, rose, stored

#: Of what a process counts, by queue and type.
OF_JOBS = 'store=~"$store", queue=~"$queue", job_type=~"$job_type", instance=~"$instance"'
OF_TYPES = 'store=~"$store", job_type=~"$job_type", instance=~"$instance"'
OF_PROCESSES = 'store=~"$store", instance=~"$instance"'
#: Of what the store holds: which process tells it makes no difference.
QUEUES = 'store=~"$store", queue=~"$queue"'
TYPES = 'store=~"$store", job_type=~"$job_type"'

RUNS, WAITS = "packhorse_job_duration_seconds", "packhorse_job_queue_time_seconds"


def drilldown() -> dashboard.Dashboard:
    """Make the dashboard."""
    made = board(
        "packhorse: types, queues, workers",
        "packhorse-drilldown",
        "One type, queue or worker, or some of each. A choice above holds for all panels that can be told apart by it.",
        queue=("Queue", 'label_values(packhorse_queue_depth{store=~"$store"}, queue)'),
        job_type=("Type", 'label_values(worker_jobs_processed_total{store=~"$store"}, job_type)'),
        instance=("Process", 'label_values(packhorse_build_info{store=~"$store"}, instance)'),
    )
    add(made, "Types: $job_type", *_types())
    add(made, "Time", *_time())
    add(made, "Queues: $queue", *_queues())
    add(made, "Processes: $instance", *_processes())
    return made


def _types() -> list[object]:
    slowest = f"topk(20, {quantile(0.95, RUNS, OF_JOBS, 'queue, job_type')} >= 0)"
    return [
        lines(
            "Runs",
            "Runs that ended in a second.",
            Ask(largest(rate("worker_jobs_processed_total", OF_TYPES, "job_type")), "{{job_type}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Failing",
            "The share of runs that failed.",
            Ask(largest(failing(OF_TYPES, "job_type")), "{{job_type}}"),
            unit=SHARE,
            steps=rises("transparent", (0.2, "red")),
        ),
        lines(
            "Jobs in and out",
            "Enqueued by processes that are scraped; ends of jobs that workers told the store.",
            Ask(rate("packhorse_jobs_enqueued_total", OF_JOBS), "enqueued"),
            Ask(rate("packhorse_jobs_completed_total", OF_JOBS), "succeeded"),
            Ask(rate("packhorse_jobs_retried_total", OF_JOBS), "failed, tried again"),
            Ask(rate("packhorse_jobs_failed_total", OF_JOBS), "failed for good"),
            Ask(rate("packhorse_jobs_cancelled_total", OF_JOBS), "cancelled"),
            Ask(rate("packhorse_jobs_released_total", OF_JOBS), "given back"),
            Ask(rate("packhorse_jobs_parked_total", OF_JOBS), "put off, type unknown"),
            unit=PER_SECOND,
        ),
        rows(
            "Slowest types",
            "p95 of the runs.",
            slowest,
            names={"job_type": "type", "queue": "queue", "Value": "p95"},
            unit=SECONDS,
            span=12,
        ),
        rows(
            "Types that take the most time",
            "How many runs of each type there are at any moment, on average: what workers are busy with.",
            f"topk(20, {rate(f'{RUNS}_sum', OF_JOBS, 'queue, job_type')})",
            names={"job_type": "type", "queue": "queue", "Value": "runs at once"},
            span=12,
        ),
        lines(
            "Workers that know the type",
            "Live runner processes that can run jobs of a type. 0: its jobs wait, and fail in the end.",
            Ask(stored("packhorse_type_workers", TYPES, "job_type"), "{{job_type}}"),
            unit=NUMBER,
            span=12,
        ),
        lines(
            "Held back by a rate",
            "Claims in a second that left jobs of a type because its rate was spent.",
            Ask(largest(rate("packhorse_rate_limited_total", OF_TYPES, "job_type")), "{{job_type}}"),
            unit=PER_SECOND,
            span=12,
        ),
    ]


def _time() -> list[object]:
    return [
        heat("How long runs take", "Runs by how long they took. Dots lead to traces.", buckets(RUNS, OF_JOBS)),
        lines(
            "How long runs take: p50, p95, p99",
            "Half, 95 % and 99 % of the runs were quicker. Dots are runs that were traced.",
            Ask(quantile(0.5, RUNS, OF_JOBS), "p50"),
            Ask(quantile(0.95, RUNS, OF_JOBS), "p95"),
            Ask(quantile(0.99, RUNS, OF_JOBS), "p99"),
            unit=SECONDS,
            span=12,
            exemplars=True,
        ),
        heat(
            "How long jobs wait", "Jobs by how long they were ready before they were claimed.", buckets(WAITS, OF_JOBS)
        ),
        lines(
            "How long runs take, by type: p95",
            "The twelve slowest.",
            Ask(largest(quantile(0.95, RUNS, OF_JOBS, "job_type")), "{{job_type}}"),
            unit=SECONDS,
            span=12,
            exemplars=True,
        ),
    ]


def _queues() -> list[object]:
    states = stored("packhorse_queue_depth", QUEUES + ', state!~"succeeded|cancelled"', "store, queue, state")
    return [
        lines(
            "Jobs by state",
            "Jobs in the chosen queues, but those that succeeded or were cancelled.",
            Ask(f"sum by (state) ({states})", "{{state}}"),
            unit=NUMBER,
            stacked=True,
        ),
        lines(
            "Oldest waiting",
            "How long the oldest job that is ready has been waiting.",
            Ask(largest(stored("packhorse_queue_latency_seconds", QUEUES, "queue")), "{{queue}}"),
            unit=SECONDS,
            steps=rises("transparent", (300, "red")),
        ),
        lines(
            "Wait for a claim: p95",
            "95 % of the jobs were claimed sooner after they were ready.",
            Ask(largest(quantile(0.95, WAITS, OF_JOBS, "queue")), "{{queue}}"),
            unit=SECONDS,
        ),
        lines(
            "Workers that take from the queue",
            "Live runner processes. 0 while jobs wait: nobody will run them.",
            Ask(largest(stored("packhorse_queue_workers", QUEUES, "queue")), "{{queue}}"),
            unit=NUMBER,
        ),
        lines(
            "Dead letters",
            "Jobs that failed for good.",
            Ask(largest(stored("packhorse_dead_letter_size", QUEUES, "queue")), "{{queue}}"),
            unit=NUMBER,
        ),
        lines(
            "Paused",
            "1 while a queue is paused.",
            Ask(f"{stored('packhorse_queue_paused', QUEUES, 'queue')} > 0", "{{queue}}"),
            unit=NUMBER,
        ),
    ]


def _processes() -> list[object]:
    calls = "packhorse_backend_operation_duration_seconds"
    lost = rose("packhorse_runners_lost_total", OF_PROCESSES, "instance, reason")
    return [
        lines(
            "Slots",
            "Jobs that run, and that can run at once.",
            Ask(f"sum by (instance) (packhorse_worker_busy{{{OF_PROCESSES}}})", "{{instance}} busy"),
            Ask(f"sum by (instance) (packhorse_worker_slots{{{OF_PROCESSES}}})", "{{instance}} slots"),
            Ask(f"sum by (instance) (packhorse_worker_unstarted{{{OF_PROCESSES}}})", "{{instance}} not started"),
            unit=NUMBER,
        ),
        lines(
            "In trouble",
            "Runner processes lost, and handlers that blocked their event loop.",
            Ask(lost, "{{instance}} runner {{reason}}"),
            Ask(rose("packhorse_loop_blocked_total", OF_PROCESSES, "instance"), "{{instance}} loop blocked"),
            unit=NUMBER,
        ),
        lines(
            "Calls of the store: p99",
            "99 % of the calls of a process were quicker.",
            Ask(largest(quantile(0.99, calls, OF_PROCESSES, "instance")), "{{instance}}"),
            unit=SECONDS,
        ),
        lines(
            "Scraped",
            "1 while Prometheus reaches a process.",
            Ask('up{job=~"packhorse.*", instance=~"$instance"}', "{{instance}}"),
            unit=NUMBER,
            span=12,
        ),
        rows(
            "What runs",
            "Versions of packhorse and Python.",
            f"packhorse_build_info{{{OF_PROCESSES}}}",
            names={"instance": "process", "version": "packhorse", "python": "python", "store": "store"},
            span=12,
        ),
    ]
