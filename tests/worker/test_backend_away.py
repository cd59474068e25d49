"""A backend that is away for a while: nothing is lost, nothing piles up, and everything goes on when it is back."""

from __future__ import annotations

import asyncio
import logging

import pytest
from working import ended, faulty_app, until, work

from packhorse import Context, State, Unavailable
from packhorse.backends.base import Capabilities
from packhorse.errors import Forbidden
from packhorse.worker.settler import BACKLOG_MAX


class Away:
    """Raises an error until told that the backend is back."""

    def __init__(self, error: Exception | None = None) -> None:
        self.tries = 0
        self.back = False
        self.error = error or Unavailable("the server does not answer")

    def __call__(self) -> None:
        self.tries += 1
        if not self.back:
            raise self.error


@pytest.mark.parametrize("verb", ["claim", "settle", "heartbeat", "tick"])
def test_b2_each_part_tries_again_until_the_backend_is_back(verb, caplog):
    app, backend = faulty_app()
    away = backend.fail[verb] = Away()
    runs = []

    @app.task
    async def job(n: int) -> int:
        runs.append(n)
        return n

    async def scenario():
        # Beats that are seldom, but where they are what is away: no lease is to run out on a machine that stands still.
        async with app.worker(lease="1s" if verb == "heartbeat" else "30s"):
            made = [await job.aenqueue(n) for n in range(20)]
            late = await job.using(delay="10ms").aenqueue(99)
            await until(lambda: away.tries >= 3)
            away.back = True
            records = [await ended(app, one) for one in (*made, late)]
            await until(lambda: "answers again" in caplog.text)
        await app.aclose()
        return records

    with caplog.at_level(logging.INFO, "packhorse"):
        records = work(scenario)
    assert {(record.state, record.attempt) for record in records} == {(State.SUCCEEDED, 1)}
    assert sorted(runs) == [*range(20), 99]
    assert caplog.text.count("trying again: the server does not answer") == 1  # however often it was tried
    assert caplog.text.count("the store answers again after") == 1


@pytest.mark.parametrize("verb", ["claim", "settle", "heartbeat", "tick"])
def test_rights_that_are_taken_away_while_a_worker_runs_cost_no_outcome(verb, caplog):
    """C19: a token that was changed is for somebody to mend; until then the worker tries, and drops nothing."""
    app, backend = faulty_app()
    away = Away(Forbidden("this needs the right to work"))

    @app.task
    async def job(ctx: Context) -> int:
        async def one() -> int:
            return 1

        return await ctx.step("one", one)

    async def scenario():
        async with app.worker(lease="30s"):  # none is to run out meanwhile
            backend.fail[verb] = away
            made = await job.aenqueue()
            late = await job.using(delay="10ms").aenqueue()
            await until(lambda: away.tries >= 3)
            away.back = True
            records = [await ended(app, one) for one in (made, late)]
            await until(lambda: "answers again" in caplog.text)
        await app.aclose()
        return records

    with caplog.at_level(logging.INFO, "packhorse"):
        records = work(scenario)
    assert {(record.state, record.attempt) for record in records} == {(State.SUCCEEDED, 1)}
    assert "trying again: this needs the right to work" in caplog.text
    assert "the store answers again after" in caplog.text


def test_b5_ends_that_cannot_be_settled_stop_the_claiming():
    """B5: the backlog is bounded; what is not claimed stays in the store for others."""
    app, backend = faulty_app()
    total = BACKLOG_MAX + 3_000

    @app.task
    async def noop() -> None: ...

    async def scenario():
        await app.aenqueue_many([noop.job() for _ in range(total)])
        away = backend.fail["settle"] = Away()
        async with app.worker(concurrency=10) as worker:
            engine = worker.engine
            await until(lambda: not engine.settler.room.is_set())
            await until(lambda: engine.runner.holding == 0 and engine.claimer.claiming_since_ms is None)
            claimed = engine.claimer.claims
            pending = engine.settler.pending
            await until(lambda: away.tries >= 4)
            assert (engine.claimer.claims, engine.settler.pending) == (claimed, pending)  # it stands still
            assert pending <= BACKLOG_MAX + 2 * 1_000 + 10
            assert (await backend.counts())["default"].states[State.PENDING] == total - pending
            away.back = True

            async def all_done():
                return (await backend.counts())["default"].states == {State.SUCCEEDED: total}

            await until(all_done, limit_s=60)
            assert engine.settler.applied == total
            assert engine.settler.stale == 0
        await app.aclose()

    work(scenario)


def test_a_settle_whose_answer_was_lost_is_repeated_and_counts_once():
    app, backend = faulty_app()
    settle = backend.settle
    calls = []

    async def lossy(settlements):
        verdicts = await settle(settlements)
        calls.append(verdicts)
        if len(calls) == 1:
            raise Unavailable("the answer was lost")
        return verdicts

    backend.settle = lossy

    @app.task
    async def parent(ctx: Context) -> None:
        ctx.then("child")

    async def scenario():
        job = await parent.aenqueue()
        async with app.worker() as worker:
            await until(lambda: len(calls) >= 2)
            await worker.engine.settler.drained()
            assert worker.engine.settler.stale == 1  # the repetition: it was applied before
        record = await job.arecord()
        counts = await app.acounts()
        await app.aclose()
        return record, counts

    record, counts = work(scenario)
    assert record.state is State.SUCCEEDED
    assert sum(counts["default"].states.values()) == 2


def test_an_outcome_that_the_backend_refuses_fails_its_job_alone():
    """One follow-up that cannot be kept must not hold back the ends of all other runs."""
    app, backend = faulty_app()
    backend.capabilities = Capabilities(durable=False, shared=False)

    @app.task
    async def job(n: int, ctx: Context) -> int:
        if n == 3:
            ctx.then("child", after=[ctx.id])  # this backend keeps no dependencies
        return n

    async def scenario():
        made = [await job.aenqueue(n) for n in range(6)]
        async with app.worker():
            records = [await ended(app, one) for one in made]
        await app.aclose()
        return records

    records = work(scenario)
    assert [record.state for record in records] == [State.FAILED if n == 3 else State.SUCCEEDED for n in range(6)]
    assert records[3].errors[0].kind == "Unsupported"
    assert "its outcome was refused" in records[3].errors[0].message


def test_stopping_does_not_wait_for_ever_for_a_backend_that_is_away(monkeypatch, caplog):
    monkeypatch.setattr("packhorse.worker.engine.SETTLE_MS_MAX", 100)
    app, backend = faulty_app()

    @app.task
    async def job() -> None: ...

    async def scenario():
        made = await job.aenqueue()
        backend.fail["settle"] = Away()
        async with app.worker() as worker:
            await until(lambda: worker.engine.settler.pending == 1)
        state = await made.astate()
        await app.aclose()
        return state

    with caplog.at_level(logging.WARNING, "packhorse"):
        assert work(scenario, limit_s=5) is State.RUNNING  # it lapses
    assert "stopping with 1 end of a run unsettled: no answer within" in caplog.text


def test_stopping_an_idle_worker_whose_store_is_gone_counts_nothing(caplog):
    app, backend = faulty_app()

    async def scenario():
        async with app.worker():
            for verb in ("heartbeat", "retire"):
                backend.fail[verb] = Away(RuntimeError("no such table"))
        await app.aclose()

    with caplog.at_level(logging.WARNING, "packhorse"):
        work(scenario)
    assert "stopping without a word to the store: no such table" in caplog.text
    assert "unsettled" not in caplog.text


def test_a_part_that_fails_is_not_hidden(caplog):
    """B2: a worker with a broken part must not look healthy."""
    app, backend = faulty_app()

    def broken() -> None:
        raise ZeroDivisionError("a bug in a backend")

    async def scenario():
        backend.fail["claim"] = broken
        with pytest.raises(RuntimeError, match="a part of the worker failed"):
            await app.worker().run()
        await app.aclose()

    with caplog.at_level(logging.CRITICAL, "packhorse"):
        work(scenario)
    assert "a bug in a backend" in caplog.text


def test_a_broken_clock_of_errors_does_not_spin():
    """Pauses between tries grow: an outage must not burn a processor."""
    app, backend = faulty_app()
    away = backend.fail["claim"] = Away()

    async def scenario():
        async with app.worker():
            await until(lambda: away.tries >= 2)
            before = away.tries
            await asyncio.sleep(0.3)
            assert away.tries - before <= 8
        await app.aclose()

    work(scenario)
