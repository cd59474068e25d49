"""Counters, gauges and histograms: nothing is lost or counted twice, within a process and between them."""

from __future__ import annotations

import os
import threading

import msgspec
import pytest

from packhorse.observe import metrics
from packhorse.observe.labels import OTHER, QUEUES_MAX, TYPES_MAX, UNKNOWN, LabelBounds
from packhorse.observe.meters import HISTOGRAMS_MAX, SERIES_MAX, Exemplar, Histogram, Meters, Rise, Sheet
from packhorse.observe.metrics import METRICS, Kind


def read(meters: Meters) -> dict[tuple[str, ...], float]:
    """Every counter and gauge by name and labels, every histogram as its number of durations."""
    found = {}
    for metric, labels, cell in meters.read():
        found[metric.name, *labels] = sum(cell.counts) if isinstance(cell, Histogram) else cell.value
    return found


def bounds(*types: str) -> LabelBounds:
    return LabelBounds(types or ("email",), ("default",))


def over_the_wire(rises: list[Rise]) -> list[Rise]:
    return msgspec.json.decode(msgspec.json.encode(rises), type=list[Rise])


def test_sheets_are_added_up() -> None:
    meters = Meters(bounds())
    for count in (2, 3):
        meters.sheet().number(metrics.COMPLETED, "default", "email").value += count
    assert read(meters) == {("packhorse_jobs_completed_total", "default", "email"): 5}


def test_a_duration_is_counted_in_the_first_bucket_that_is_not_below_it() -> None:
    one, all_at_once = (Sheet(bounds()).histogram(metrics.CALL_DURATION, "claim") for _ in range(2))
    bounds_ns = one.bounds_ns
    durations = [0, bounds_ns[0], bounds_ns[0] + 1, bounds_ns[-1], bounds_ns[-1] + 1, 10**15]
    for duration in durations:
        one.observe(duration)
    all_at_once.observe_all(list(durations))
    assert one.counts == all_at_once.counts
    assert one.sum_ns == all_at_once.sum_ns == sum(durations)
    assert one.counts[0] == 2
    assert one.counts[1] == 1
    assert one.counts[-2:] == [1, 2]


def test_durations_that_all_fall_into_one_bucket_are_counted_there() -> None:
    for of_one in ([], [1, 5_000, 0], [10**15, 10**16], [70_000_000, 60_000_000]):
        one, all_at_once = Histogram(metrics.JOB_SECONDS_BY_QUEUE), Histogram(metrics.JOB_SECONDS_BY_QUEUE)
        for duration in of_one:
            one.observe(duration)
        all_at_once.observe_all(list(of_one))
        assert (one.counts, one.sum_ns) == (all_at_once.counts, all_at_once.sum_ns)


def test_what_one_process_tells_another_is_what_it_counted_however_often_it_tells() -> None:
    here, there = Meters(bounds()), Meters(bounds())
    ours, theirs = here.sheet(), there.sheet()
    for round_ in range(1, 4):
        ours.number(metrics.FAILED, "default", "email").value += round_
        ours.histogram(metrics.QUEUE_SECONDS, "default", "email").observe(round_ * 1_000_000_000)
        theirs.add(over_the_wire(here.rises()))
        assert here.rises() == []
    assert read(there) == read(here)
    ((_, _, times),) = [each for each in there.read() if each[0] is metrics.QUEUE_SECONDS]
    assert isinstance(times, Histogram)
    assert times.sum_ns == 6_000_000_000


def test_gauges_of_several_sheets_are_told_as_their_sum_and_as_0_when_they_are_gone() -> None:
    here, there = Meters(), Meters()
    first, second = here.sheet(), here.sheet()
    told = there.sheet()
    first.number(metrics.BUSY).value, second.number(metrics.BUSY).value = 3, 4
    told.add(here.rises())
    assert read(there) == {("packhorse_worker_busy",): 7}
    assert here.rises() == []
    here.fold(first)
    told.add(here.rises())
    assert read(there) == {("packhorse_worker_busy",): 4}
    here.fold(second)
    told.add(here.rises())
    assert read(there) == {("packhorse_worker_busy",): 0}


def test_what_a_process_that_ended_counted_stays_and_its_gauges_go() -> None:
    meters = Meters(bounds())
    sheet = meters.sheet()
    sheet.number(metrics.COMPLETED, "default", "email").value += 5
    sheet.number(metrics.BUSY).value = 2
    before = meters.rises()
    sheet.number(metrics.COMPLETED, "default", "email").value += 1
    meters.fold(sheet)
    meters.fold(sheet)  # a second time changes nothing
    assert read(meters) == {("packhorse_jobs_completed_total", "default", "email"): 6}
    assert [rise.values for rise in before if rise.name.endswith("completed_total")] == [[5]]
    assert [rise.values for rise in meters.rises() if rise.name.endswith("completed_total")] == [[1]]


def test_an_exemplar_travels_once_and_the_latest_stands() -> None:
    here, there = Meters(bounds()), Meters(bounds())
    times, told = here.sheet().histogram(metrics.CALL_DURATION, "claim"), there.sheet()
    for at_ms in (1, 2):
        times.attach(times.observe(5_000_000), Exemplar("a" * 32, 0.005, at_ms))
        told.add(over_the_wire(here.rises()))
    ((_, _, cell),) = there.read()
    assert isinstance(cell, Histogram)
    assert cell.exemplars == {times.place(5_000_000): Exemplar("a" * 32, 0.005, 2)}


@pytest.mark.parametrize(
    "rise",
    [
        Rise("packhorse_of_tomorrow_total", (), [1]),
        Rise("packhorse_jobs_completed_total", ("default",), [1]),
        Rise("packhorse_jobs_completed_total", ("default", "email", "more"), [1]),
        Rise("packhorse_backend_operation_duration_seconds", ("claim",), [1, 2, 3]),
    ],
)
def test_what_another_version_tells_otherwise_is_left_out(rise: Rise) -> None:
    meters = Meters(bounds())
    meters.sheet().add([rise])
    assert sum(read(meters).values()) == 0


def test_counts_from_many_threads_are_all_there() -> None:
    meters = Meters(bounds())

    def count() -> None:
        for _ in range(2_000):
            meters.count(metrics.ENQUEUED, "default", "email")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read(meters)  # reading meanwhile breaks nothing
    for thread in threads:
        thread.join()
    assert read(meters) == {("packhorse_jobs_enqueued_total", "default", "email"): 8_000}


# ---- bounds ----------------------------------------------------------------------------------------------


def test_a_type_that_no_code_names_is_unknown() -> None:
    told = bounds("email")
    assert told.job_type("email") == "email"
    assert told.job_type("made-up-by-a-stranger") == UNKNOWN
    told.learn(["made-up-by-a-stranger"])
    assert told.job_type("made-up-by-a-stranger") == "made-up-by-a-stranger"


def test_types_and_queues_that_workers_name_are_bounded_too() -> None:
    told = LabelBounds()
    told.learn((f"t{n}" for n in range(2 * TYPES_MAX)), (f"q{n}" for n in range(2 * QUEUES_MAX)))
    assert len({told.job_type(f"t{n}") for n in range(2 * TYPES_MAX)}) == TYPES_MAX + 1
    assert len({told.queue(f"q{n}") for n in range(4 * QUEUES_MAX)}) <= 2 * QUEUES_MAX + 1


def test_a_queue_that_a_worker_takes_from_is_told_apart_however_many_strangers_came_first() -> None:
    told = LabelBounds()
    for number in range(10_000):
        told.queue(f"stranger-{number}")
    assert told.queue("mail") == OTHER
    told.learn(queues=["mail"])
    assert told.queue("mail") == "mail"


def test_10_000_names_make_few_series_and_every_job_is_counted() -> None:
    meters = Meters(bounds())
    sheet = meters.sheet()
    for number in range(10_000):
        sheet.number(metrics.ENQUEUED, f"q{number}", f"t{number}").value += 1
        sheet.histogram(metrics.QUEUE_SECONDS, f"q{number}", f"t{number}").observe(1)
    found = read(meters)
    assert len(found) <= 2 * (QUEUES_MAX + 1)
    assert sum(found.values()) == 20_000


def test_series_of_labels_without_bounds_of_their_own_are_bounded() -> None:
    meters = Meters()
    sheet = meters.sheet()
    for number in range(SERIES_MAX + 500):
        sheet.number(metrics.CALL_ERRORS, f"operation{number}", "Unavailable").value += 1
        sheet.histogram(metrics.CALL_DURATION, f"operation{number}").observe(1)
    found = read(meters)
    assert sum(name[0] == metrics.CALL_ERRORS.name for name in found) == SERIES_MAX + 1
    assert sum(name[0] == metrics.CALL_DURATION.name for name in found) == HISTOGRAMS_MAX + 1
    assert found[metrics.CALL_ERRORS.name, OTHER, OTHER] == 500
    assert sum(found.values()) == 2 * (SERIES_MAX + 500)


def test_runners_that_come_and_go_do_not_add_up_to_more_series_than_one_may_have() -> None:
    meters = Meters()
    for generation in range(10):
        sheet = meters.sheet()
        sheet.add(
            Rise("packhorse_jobs_enqueued_total", (f"q{generation}-{number}", "email"), [1]) for number in range(200)
        )
        meters.fold(sheet)
    found = read(meters)
    assert len(found) <= QUEUES_MAX + 1
    assert sum(found.values()) == 2_000


def test_what_was_told_and_then_found_no_room_of_its_own_is_not_told_again() -> None:
    here, there = Meters(), Meters()
    told = there.sheet()
    for generation in range(2):
        sheet = here.sheet()
        for number in range(SERIES_MAX):
            sheet.number(metrics.CALL_ERRORS, f"operation{generation}-{number}", "Unavailable").value += 1
        told.add(here.rises())
        here.fold(sheet)
        told.add(here.rises())
    assert sum(read(there).values()) == sum(read(here).values()) == 2 * SERIES_MAX


# ---- the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_table_says_what_prometheus_asks_for(metric: metrics.Metric) -> None:
    assert metric.name.startswith("packhorse_") or metric in (metrics.RUNS, metrics.RUN_SECONDS)
    assert metric.help.endswith(".") or metric is metrics.BUILD
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not {"id", "job_id", "job", "worker", "key", "payload"} & set(metric.labels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_counts_from_0() -> None:
    """Else each of the processes that a web server forks would tell what happened before."""
    meters = Meters(bounds())
    meters.count(metrics.ENQUEUED, "default", "email", by=5)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            meters.count(metrics.ENQUEUED, "default", "email")
            code = 0 if sum(read(meters).values()) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sum(read(meters).values()) == 5


@pytest.mark.parametrize(
    ("name", "labels", "kind"),
    [
        ("worker_jobs_processed_total", "job_type status", "counter"),
        ("worker_job_duration_seconds", "job_type", "histogram"),
        ("packhorse_jobs_enqueued_total", "queue job_type", "counter"),
        ("packhorse_jobs_completed_total", "queue job_type", "counter"),
        ("packhorse_jobs_failed_total", "queue job_type", "counter"),
        ("packhorse_jobs_retried_total", "queue job_type", "counter"),
        ("packhorse_jobs_cancelled_total", "queue job_type", "counter"),
        ("packhorse_jobs_recovered_total", "", "counter"),
        ("packhorse_job_duration_seconds", "queue job_type", "histogram"),
        ("packhorse_job_queue_time_seconds", "queue job_type", "histogram"),
        ("packhorse_queue_depth", "queue state", "gauge"),
        ("packhorse_queue_latency_seconds", "queue", "gauge"),
        ("packhorse_dead_letter_size", "queue", "gauge"),
        ("packhorse_workers", "state", "gauge"),
        ("packhorse_worker_busy", "", "gauge"),
        ("packhorse_rate_limited_total", "job_type", "counter"),
        ("packhorse_schedule_slots_total", "", "counter"),
        ("packhorse_backend_operation_duration_seconds", "operation", "histogram"),
        ("packhorse_build_info", "version python", "gauge"),
    ],
)
def test_names_that_dashboards_and_alerts_of_others_rely_on_stay(name: str, labels: str, kind: str) -> None:
    """Section D of the requirements, word by word. None of it may be renamed."""
    metric = metrics.METRICS[name]
    assert metric.labels == tuple(labels.split())
    assert metric.kind == kind
