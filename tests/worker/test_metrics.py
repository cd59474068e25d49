"""What a worker counts is what happened: each end of a run once, as what became of its job, and nothing twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from working import ended, faulty_app, until, work

from packhorse import Cancel, Context, Packhorse, Retry, Snooze, State
from packhorse.backends.base import Settlement, Verdict, WorkerInfo
from packhorse.errors import Unavailable
from packhorse.observe import labels
from tests.owning import connect
from tests.scraped import Scraped
from tests.witness import Witness, boot_s

on_stores = pytest.mark.parametrize("store", ["memory", "sqlite"])
_numbers = itertools.count()

Scenario = Callable[[Packhorse], Awaitable[Any]]


def an_app(store: str, tmp_path: Path, **settings: Any) -> Packhorse:
    url = f"memory://metrics-{next(_numbers)}" if store == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"
    return Packhorse(url, **settings)


async def scrape(app: Packhorse, **options: Any) -> Scraped:
    return Scraped(await app.ametrics(**options))


def counted(found: Scraped, name: str, **labels: str) -> float:
    return found.total(f"packhorse_jobs_{name}_total", **labels)


@on_stores
def test_every_end_of_a_run_is_counted_once_as_what_became_of_its_job(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    @app.task
    async def good(n: int) -> int:
        await asyncio.sleep(0 if n % 2 else 0.001)
        return n

    @app.task(max_attempts=2, backoff=0)
    async def bad() -> None:
        raise ValueError("no")

    @app.task(max_attempts=5)
    async def again(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry(0)

    @app.task
    async def early(ctx: Context) -> None:
        if not seen:
            seen.append(1)
            raise Snooze(0)

    @app.task
    async def needless() -> None:
        raise Cancel

    seen: list[int] = []

    async def scenario() -> Scraped:
        made = [await good.aenqueue(n) for n in range(50)]
        made += [await task.aenqueue() for task in (bad, again, early, needless)]
        async with app.worker():
            states = [(await ended(app, job)).state for job in made]
        assert states.count(State.SUCCEEDED) == 52
        found = await scrape(app)
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "enqueued") == 54
    assert counted(found, "completed") == 52
    assert counted(found, "completed", job_type="good", queue="default") == 50
    assert [counted(found, name, job_type="bad") for name in ("failed", "retried", "completed")] == [1, 1, 0]
    assert [counted(found, name, job_type="again") for name in ("retried", "completed", "failed")] == [1, 1, 0]
    assert [counted(found, name, job_type="early") for name in ("released", "completed", "retried")] == [1, 1, 0]
    assert [counted(found, name, job_type="needless") for name in ("cancelled", "completed")] == [1, 0]
    assert found.total("packhorse_settlements_refused_total") == 0
    # Runs: whatever said that it is too early or not needed has neither succeeded nor failed.
    assert found.total("worker_jobs_processed_total", status="success") == 52
    assert found.total("worker_jobs_processed_total", job_type="bad", status="failure") == 2
    assert found.total("worker_jobs_processed_total", status="failure") == 3
    assert found.total("worker_job_duration_seconds_count") == 55
    assert found.total("packhorse_job_duration_seconds_count") == 55
    assert found.total("worker_job_duration_seconds_sum", job_type="good") >= 0.025
    assert found.total("packhorse_job_queue_time_seconds_count") == 57


def test_successes_of_types_and_queues_beyond_the_bounds_are_counted_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share their labels with others. Their runs are put down to be counted, again and again, like all."""
    monkeypatch.setattr(labels, "TYPES_MAX", 1)
    monkeypatch.setattr(labels, "QUEUES_MAX", 1)
    app = an_app("memory", tmp_path)

    @app.task
    async def a_first() -> None: ...

    @app.task
    async def beyond() -> None: ...

    async def scenario() -> Scraped:
        async with app.worker(queues=["default", "also"]) as worker:
            for _ in range(3):
                made = [
                    await task.using(queue=queue).aenqueue()
                    for task in (a_first, beyond)
                    for queue in ("default", "also")
                ]
                for job in made:
                    await ended(app, job)
            found = await scrape(app)
            for handler in worker.engine.handlers.values():
                assert not any(cells.successes_ns for cells in handler.cells.values())
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "completed") == 12
    assert found.total("worker_jobs_processed_total", status="success") == 12
    assert found.total("worker_jobs_processed_total", job_type="unknown", status="success") == 6
    assert found.total("packhorse_job_duration_seconds_count") == 12


@on_stores
def test_a_job_of_a_type_nobody_knows_is_parked_and_its_type_is_no_label(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    async def scenario() -> Scraped:
        job = await app.aenqueue("invented.by.a.stranger", {})
        async with app.worker(park_ms=300):
            await ended(app, job)
        found = await scrape(app, store=True)
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "parked", job_type="unknown") >= 1
    assert counted(found, "failed", job_type="unknown") == 1
    assert found.total("worker_jobs_processed_total") == 0
    assert found.total("packhorse_dead_letter_size", queue="default") == 1
    assert "invented" not in found.text


@on_stores
def test_an_end_that_came_too_late_is_refused_and_completes_nothing(store: str, tmp_path: Path) -> None:
    """The sum of completed jobs is the number of jobs that succeeded, whatever was settled too late."""
    app = an_app(store, tmp_path)

    @app.task(max_attempts=5)
    async def slow(ctx: Context) -> None:
        if ctx.attempt == 1:
            running.set()
            await lapsed.wait()

    running, lapsed = asyncio.Event(), asyncio.Event()

    async def scenario() -> Scraped:
        job = await slow.aenqueue()
        async with app.worker(poll_interval_ms=20) as worker:
            await running.wait()
            backend = await app.backend()
            assert len(await backend.retire(worker.engine.info.id, "its worker was thought dead")) == 1
            lapsed.set()
            assert (await ended(app, job)).attempt == 2
        found = await scrape(app)
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "completed") == 1
    assert counted(found, "recovered") == 1
    assert found.total("packhorse_settlements_refused_total") + found.total("packhorse_leases_lost_total") >= 1


def test_an_end_in_a_transaction_of_the_handler_is_a_completion_and_not_refused(tmp_path: Path) -> None:
    app = an_app("sqlite", tmp_path)

    @app.task
    async def follow_up() -> None: ...

    @app.task
    def pay(ctx: Context) -> None:
        connection = connect("sqlite3", app.settings.url)
        connection.execute("BEGIN IMMEDIATE")
        ctx.then("follow_up", {})
        ctx.blocking.settle_in(connection, "paid")
        connection.commit()
        connection.close()

    async def scenario() -> Scraped:
        job = await pay.aenqueue()
        async with app.worker() as worker:
            assert (await ended(app, job)).state is State.SUCCEEDED
            await worker.engine.settler.drained()
        found = await scrape(app)
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "completed", job_type="pay") == 1
    assert counted(found, "enqueued", job_type="follow_up") == 1
    assert found.total("packhorse_settlements_refused_total") == 0


def test_enqueues_in_the_callers_transaction_are_counted_from_any_thread(tmp_path: Path) -> None:
    app = an_app("sqlite", tmp_path)

    @app.task
    async def good(n: int) -> int:
        return n

    with app:
        app.counts()
        connection = connect("sqlite3", app.settings.url)
        connection.execute("BEGIN IMMEDIATE")
        with app.transaction(connection):
            for number in range(3):
                good.enqueue(number)
        connection.commit()
        connection.close()
        found = Scraped(app.metrics(store=True))
    assert counted(found, "enqueued", job_type="good") == 3
    assert found.total("packhorse_queue_depth", state="pending") == 3


@on_stores
def test_an_operators_cancel_is_counted(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    async def scenario() -> Scraped:
        jobs = [await app.aenqueue("waits", {}) for _ in range(3)]
        for job in (*jobs, jobs[0]):
            await job.acancel()
        found = await scrape(app)
        await app.aclose()
        return found

    assert counted(work(scenario), "cancelled") == 3


@on_stores
def test_slots_of_schedules_and_their_jobs_are_counted(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    @app.schedule(every="1s")
    @app.task
    async def beat() -> None: ...

    async def scenario() -> Scraped:
        async def fired() -> Scraped | None:
            found = await scrape(app)
            return found if found.total("packhorse_schedule_slots_total") >= 1 else None

        async with app.worker():
            found = await until(fired)
        await app.aclose()
        return found

    found = work(scenario)
    assert counted(found, "enqueued", job_type="beat") == found.total("packhorse_schedule_slots_total")


@on_stores
def test_claims_that_a_rate_holds_back_are_counted_and_nothing_else_is(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    @app.task(rate="1/h")
    async def rare(n: int) -> int:
        return n

    @app.task
    async def free() -> None: ...

    async def scenario() -> tuple[Scraped, Scraped]:
        async def limited() -> Scraped | None:
            found = await scrape(app)
            return found if found.has("packhorse_rate_limited_total") else None

        async with app.worker(poll_interval_ms=50):
            await ended(app, await free.aenqueue())
            await ended(app, await rare.aenqueue(1))
            before = await scrape(app)
            await rare.aenqueue(2)
            found = await until(limited)
        await app.aclose()
        return before, found

    before, found = work(scenario)
    assert not before.has("packhorse_rate_limited_total")
    assert found.values("packhorse_rate_limited_total", "job_type") == {"rare"}


@on_stores
def test_gauges_of_queues_and_workers(store: str, tmp_path: Path) -> None:
    app = an_app(store, tmp_path)

    @app.task
    async def waits() -> None:
        running.set()
        await go.wait()

    running, go = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        await app.aenqueue("other", {}, queue="unserved")
        nothing = await scrape(app, store=True)
        assert nothing.total("packhorse_queue_workers", queue="unserved") == 0
        assert nothing.total("packhorse_type_workers", job_type="waits") == 0
        assert nothing.has("packhorse_type_workers", job_type="waits")
        assert nothing.total("packhorse_queue_latency_seconds", queue="unserved") < 10
        async with app.worker(queues="default", concurrency=7):
            job = await waits.aenqueue()
            await running.wait()

            async def shown() -> bool:
                found = await scrape(app, store=True)
                return found.total("packhorse_worker_busy") == 1 and found.total("packhorse_workers") == 1

            await until(shown)
            found = await scrape(app, store=True)
            assert found.total("packhorse_queue_workers", queue="default") == 1
            assert found.total("packhorse_type_workers", job_type="waits") == 1
            assert found.total("packhorse_queue_depth", queue="default", state="running") == 1
            assert found.total("packhorse_worker_slots") == 7
            assert found.total("packhorse_store_up") == 1
            go.set()
            await ended(app, job)
        assert not (await scrape(app)).has("packhorse_worker_busy")
        await app.aclose()

    work(scenario)


def test_errors_of_the_store_are_told_by_names_of_ours(tmp_path: Path) -> None:
    app, backend = faulty_app()

    class OfSomebodyElse(Unavailable):
        pass

    def fail() -> None:
        raise OfSomebodyElse("secret detail")

    async def scenario() -> Scraped:
        store = await app.backend()
        backend.fail["settle"] = fail
        with pytest.raises(OfSomebodyElse):
            await store.settle([Settlement(id="a", token="b", state=State.SUCCEEDED)])
        found = await scrape(app)
        await app.aclose()
        return found

    found = work(scenario)
    assert found.total("packhorse_backend_errors_total", operation="settle", error="Unavailable") == 1
    assert found.total("packhorse_backend_operation_duration_seconds_count", operation="settle") == 1
    assert "SomebodyElse" not in found.text
    assert "secret" not in found.text


def test_a_store_that_does_not_answer_is_down_within_two_seconds_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, witness: Witness
) -> None:
    from packhorse.observe import store_gauges

    monkeypatch.setattr(store_gauges, "WAIT_MS_MAX", 50)
    app, backend = faulty_app()
    hangs = asyncio.Event()

    async def counts() -> Any:
        await hangs.wait()
        return {}

    async def scenario() -> None:
        await app.aenqueue("some", {})
        backend.counts = counts
        for patience_s in (1.0, 0.05):  # the second does not wait for what the first waited for
            began_s = boot_s()
            found = await scrape(app, store=True)
            assert witness.since_s(began_s) < patience_s + 0.2
            assert found.total("packhorse_store_up") == 0
            assert found.has("packhorse_store_up")
            assert not found.has("packhorse_queue_depth")
            assert counted(found, "enqueued") == 1
        hangs.set()

        async def is_back() -> bool:
            return (await scrape(app, store=True)).total("packhorse_store_up") == 1

        await until(is_back)
        await app.aclose()

    work(scenario)


def test_a_store_that_is_away_is_asked_at_most_once_a_second() -> None:
    app, backend = faulty_app()
    calls = []

    async def counts() -> Any:
        calls.append(1)
        raise Unavailable("gone")

    async def scenario() -> None:
        await app.backend()
        backend.counts = counts
        began = asyncio.get_running_loop().time()
        for _ in range(20):
            assert (await scrape(app, store=True)).total("packhorse_store_up") == 0
        assert len(calls) <= 2 + asyncio.get_running_loop().time() - began
        await app.aclose()

    work(scenario)


def test_at_most_200_queues_are_told_apart_those_with_workers_first_and_the_rest_is_summed() -> None:
    app = an_app("memory", Path())

    async def scenario() -> Scraped:
        await app.aenqueue_many([{"type": "t", "queue": f"q{n}", "payload": {}} for n in range(1_000)])
        await app.aenqueue_many([{"type": "t", "queue": "large", "payload": {}} for _ in range(5)])
        backend = await app.backend()
        await backend.heartbeat(WorkerInfo(id="w1", queues=("served", "q999"), types=("t",)), 30_000)
        await backend.heartbeat(WorkerInfo(id="w2", queues=("q999",), types=("t",), busy=1), 30_000)
        await backend.heartbeat(WorkerInfo(id="w3", trouble="a handler blocks its event loop", busy=1), 30_000)
        found = await scrape(app, store=True)
        await app.aclose()
        return found

    found = work(scenario)
    queues = found.values("packhorse_queue_depth", "queue")
    assert len(queues) == 201
    assert {"served", "q999", "large", "other"} <= queues
    assert found.total("packhorse_queue_depth", state="pending") == 1_005
    assert found.total("packhorse_queue_workers", queue="q999") == 2
    assert found.total("packhorse_type_workers", job_type="t") == 2
    assert [found.total("packhorse_workers", state=state) for state in ("idle", "busy", "trouble")] == [1, 1, 1]


def test_what_measures_answers_what_the_store_answers() -> None:
    app = an_app("memory", Path())

    async def scenario() -> None:
        job = await app.aenqueue("t", {}, queue="q")
        backend = await app.backend()
        (claimed,) = await backend.claim(["q"], 1, 30_000, "w")
        assert claimed.id == job.id
        late = Settlement(id=job.id, token="of-another", state=State.SUCCEEDED)
        right = replace(late, token=claimed.token)
        assert await backend.settle([late, right, right]) == [Verdict.STALE, Verdict.APPLIED, Verdict.STALE]
        found = await scrape(app)
        assert found.total("packhorse_settlements_refused_total") == 2
        await app.aclose()

    work(scenario)
