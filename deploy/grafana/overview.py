"""The dashboard to look at first: is anything wrong, and where?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from .panels import NUMBER, PER_SECOND, SECONDS, SHARE, Ask, add, board, figure, heat, lines, rises, rows
from .queries import buckets, failing, largest, quantile, rate, rose, stored

#: Of a store or of several.
IN = 'store=~"$store"'
PENDING = f'{IN}, state="pending"'
#: All but those that are done with.
LIVE = f'{IN}, state=~"waiting|scheduled|pending|running|failed"'


def _mapped(panel: object, **texts: tuple[str, str]) -> object:
    found = {value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in texts.items()}
    return panel.mappings([models.ValueMap(options=found)])  # type: ignore[attr-defined]


def overview() -> dashboard.Dashboard:
    """Make the dashboard."""
    made = board(
        "packhorse: overview",
        "packhorse-overview",
        "Whether jobs run, how fast, and what fails. Every panel has an explanation at its corner.",
    )
    add(made, "Now", *_now())
    add(made, "Flow", *_flow())
    add(made, "Time", *_time())
    add(made, "Trouble", *_trouble())
    add(made, "Workers", *_workers())
    add(made, "Store and server", *_store())
    return made


def _now() -> list[object]:
    running = stored("packhorse_queue_depth", f'{IN}, state="running"', "store, queue")
    store = figure(
        "Store",
        "Whether every process that is scraped gets answers from the store, and can write to it.",
        f"min(packhorse_store_up{{{IN}}})",
        NUMBER,
        rises("red", (1, "green")),
    )
    return [
        _mapped(store, **{"0": ("away", "red"), "1": ("answers", "green")}),
        figure(
            "Workers alive",
            "Runner processes whose lease has not run out.",
            f"sum({stored('packhorse_workers', IN, 'store, state')})",
            NUMBER,
            rises("red", (1, "green")),
        ),
        figure(
            "Jobs waiting",
            "Jobs that are ready and that nobody has started. Delayed jobs are not among them.",
            f"sum({stored('packhorse_queue_depth', PENDING, 'store, queue')})",
            NUMBER,
            rises("blue"),
        ),
        figure(
            "Oldest waiting",
            "How long the oldest of the jobs that are ready has been waiting.",
            f"max(packhorse_queue_latency_seconds{{{IN}}})",
            SECONDS,
            rises("green", (60, "orange"), (300, "red")),
        ),
        figure("Jobs running", "Jobs that were claimed and have not ended.", f"sum({running})", NUMBER, rises("blue")),
        figure(
            "Runs per second",
            "Runs that ended, whether they succeeded or failed.",
            rate("worker_jobs_processed_total", IN),
            PER_SECOND,
            rises("blue"),
        ),
        figure(
            "Failing",
            "The share of runs that failed. Most of them are tried again.",
            failing(IN),
            SHARE,
            rises("green", (0.05, "orange"), (0.2, "red")),
            none="no runs",
        ),
        figure(
            "Dead letters",
            "Jobs that failed for good and wait for somebody to look at them.",
            f"sum({stored('packhorse_dead_letter_size', IN, 'store, queue')})",
            NUMBER,
            rises("green", (1, "orange")),
        ),
    ]


def _flow() -> list[object]:
    depth = stored("packhorse_queue_depth", PENDING, "store, queue")
    states = stored("packhorse_queue_depth", LIVE, "store, queue, state")
    dead = stored("packhorse_dead_letter_size", IN, "store, queue")
    deeper = dashboard.DashboardLink("Drill down").url(
        "/d/packhorse-drilldown?var-queue=${__field.labels.queue}&${__url_time_range}&${store:queryparam}"
    )
    return [
        lines(
            "Jobs in and out",
            "Where more come in than end, the queues grow. Jobs count as enqueued by the process that stored them: a "
            "program that is not scraped is not seen here.",
            Ask(rate("packhorse_jobs_enqueued_total", IN), "enqueued"),
            Ask(rate("packhorse_jobs_completed_total", IN), "succeeded"),
            Ask(rate("packhorse_jobs_retried_total", IN), "failed, tried again"),
            Ask(rate("packhorse_jobs_failed_total", IN), "failed for good"),
            Ask(rate("packhorse_jobs_cancelled_total", IN), "cancelled"),
            unit=PER_SECOND,
        ),
        lines(
            "Jobs by state",
            "All jobs in the store but those that succeeded or were cancelled. A wall of `scheduled` may be retries.",
            Ask(f"sum by (state) ({states})", "{{state}}"),
            unit=NUMBER,
            stacked=True,
        ),
        lines(
            "Jobs waiting, by queue",
            "The twelve longest queues.",
            Ask(largest(f"sum by (queue) ({depth})"), "{{queue}}"),
            unit=NUMBER,
        ).data_links([deeper]),
        lines(
            "Oldest waiting, by queue",
            "How long the oldest job that is ready has been waiting. A line that rises steadily: nobody takes from it.",
            Ask(largest(stored("packhorse_queue_latency_seconds", IN, "queue")), "{{queue}}"),
            unit=SECONDS,
            steps=rises("transparent", (300, "red")),
        ).data_links([deeper]),
        lines(
            "Failing, by type",
            "The share of the runs of each type that failed.",
            Ask(f"topk(12, {failing(IN, 'job_type')} > 0)", "{{job_type}}"),
            unit=SHARE,
            steps=rises("transparent", (0.2, "red")),
        ),
        lines(
            "Dead letters, by queue",
            "Jobs that failed for good. They go down by `packhorse retry-all`, by `purge`, and by their age.",
            Ask(f"topk(12, sum by (queue) ({dead}) > 0)", "{{queue}}"),
            unit=NUMBER,
        ).data_links([deeper]),
    ]


def _time() -> list[object]:
    runs, waits = "packhorse_job_duration_seconds", "packhorse_job_queue_time_seconds"
    return [
        heat("How long runs take", "Runs by how long they took.", buckets(runs, IN)),
        lines(
            "How long runs take: p50, p95, p99",
            "Half, 95 % and 99 % of all runs were quicker. Dots are runs that were traced: they lead to their trace.",
            Ask(quantile(0.5, runs, IN), "p50"),
            Ask(quantile(0.95, runs, IN), "p95"),
            Ask(quantile(0.99, runs, IN), "p99"),
            unit=SECONDS,
            span=12,
            exemplars=True,
        ),
        heat("How long jobs wait", "Jobs by how long they were ready before they were claimed.", buckets(waits, IN)),
        lines(
            "How long jobs wait: p50, p95, p99",
            "Half, 95 % and 99 % of all jobs were claimed sooner after they were ready.",
            Ask(quantile(0.5, waits, IN), "p50"),
            Ask(quantile(0.95, waits, IN), "p95"),
            Ask(quantile(0.99, waits, IN), "p99"),
            unit=SECONDS,
            span=12,
        ),
    ]


def _trouble() -> list[object]:
    return [
        rows(
            "Alerts that fire",
            "Those of deploy/prometheus/alerts.yml, where Prometheus has them. docs/monitoring.md says what to do.",
            f'ALERTS{{alertname=~"Packhorse.*", alertstate="firing", {IN}}}',
            names={"alertname": "alert", "severity": "severity", "queue": "queue", "job_type": "type"},
        ),
        lines(
            "Lost and found",
            "Jobs taken back from workers that died or lost their lease, runs that were stopped for it, and ends of "
            "runs that came too late.",
            Ask(rose("packhorse_jobs_recovered_total", IN), "jobs taken back"),
            Ask(rose("packhorse_leases_lost_total", IN), "runs that lost their lease"),
            Ask(rose("packhorse_settlements_refused_total", IN), "ends that came too late"),
            unit=NUMBER,
        ),
        lines(
            "Processes in trouble",
            "Runner processes that died or were killed by their keeper, and handlers that blocked their event loop.",
            Ask(rose("packhorse_runners_lost_total", IN, "reason"), "runner {{reason}}"),
            Ask(rose("packhorse_loop_blocked_total", IN), "event loop blocked"),
            unit=NUMBER,
        ),
        lines(
            "Held back",
            "Claims that left jobs because their rate was spent, jobs put off because no worker knew their type, jobs "
            "given back by workers that stop or by themselves (snooze).",
            Ask(rate("packhorse_rate_limited_total", IN), "rate"),
            Ask(rate("packhorse_jobs_parked_total", IN), "unknown type"),
            Ask(rate("packhorse_jobs_released_total", IN), "given back"),
            unit=PER_SECOND,
        ),
        lines(
            "Schedules",
            "Slots turned into jobs, and how late the most overdue one is.",
            Ask(rose("packhorse_schedule_slots_total", IN), "slots fired"),
            Ask(f"max(packhorse_schedule_late_seconds{{{IN}}})", "late, s"),
            unit=NUMBER,
        ),
        lines(
            "Paused queues",
            "1 while a queue is paused.",
            Ask(f"topk(12, {stored('packhorse_queue_paused', IN, 'queue')} > 0)", "{{queue}}"),
            unit=NUMBER,
        ),
    ]


def _workers() -> list[object]:
    busy, slots = (f"sum by (instance) (packhorse_worker_{what}{{{IN}}})" for what in ("busy", "slots"))
    return [
        lines(
            "Workers",
            "Runner processes that are alive: idle, busy, or in trouble (blocked or stopped).",
            Ask(f"sum by (state) ({stored('packhorse_workers', IN, 'store, state')})", "{{state}}"),
            unit=NUMBER,
            stacked=True,
        ),
        lines(
            "Slots busy",
            "The share of slots that run a job. Of workers that are scraped.",
            Ask(f"{busy} / {slots}", "{{instance}}"),
            unit=SHARE,
            steps=rises("transparent", (0.9, "red")),
        ),
        lines(
            "Slots",
            "Jobs that run, can run at once, and are claimed and not started.",
            Ask(f"sum(packhorse_worker_slots{{{IN}}})", "slots"),
            Ask(f"sum(packhorse_worker_busy{{{IN}}})", "busy"),
            Ask(f"sum(packhorse_worker_unstarted{{{IN}}})", "claimed, not started"),
            unit=NUMBER,
        ),
    ]


def _store() -> list[object]:
    calls, requests = "packhorse_backend_operation_duration_seconds", "packhorse_http_request_duration_seconds"
    return [
        lines(
            "Calls of the store",
            "Calls in a second, of all processes that are scraped.",
            Ask(rate(f"{calls}_count", IN, "operation"), "{{operation}}"),
            unit=PER_SECOND,
        ),
        lines(
            "How long calls take: p99",
            "99 % of the calls were quicker.",
            Ask(largest(quantile(0.99, calls, IN, "operation")), "{{operation}}"),
            unit=SECONDS,
            steps=rises("transparent", (0.5, "red")),
        ),
        lines(
            "Calls that failed",
            "By call and kind of error.",
            Ask(rate("packhorse_backend_errors_total", IN, "operation, error"), "{{operation}} {{error}}"),
            unit=PER_SECOND,
        ),
        lines(
            "Requests",
            "Requests to packhorse serve, by status.",
            Ask(rate("packhorse_http_requests_total", IN, "status"), "{{status}}"),
            unit=PER_SECOND,
            span=12,
        ),
        lines(
            "How long requests take: p95",
            "The twelve slowest routes. Long polls and streams are meant to be slow.",
            Ask(largest(quantile(0.95, requests, IN, "route")), "{{route}}"),
            unit=SECONDS,
            span=12,
        ),
    ]
