"""Workflows on real workers: order, results in every executor, types that are gone, ends that come late."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from process_jobs import app as process_app
from working import ended, new_app, until, work

from packhorse import Context, Fail, Results, ResultsTooLarge, State, chain, chord, group
from packhorse.backends.base import Query
from packhorse.parents import RESULTS_BYTES_MAX


def test_no_job_starts_before_those_before_it_have_ended():
    app = new_app()
    chance = random.Random(7)
    log: list[tuple[str, int]] = []

    @app.task(max_attempts=1)
    async def node(number: int, fails: bool) -> int:
        log.append(("start", number))
        await asyncio.sleep(chance.random() / 1000)
        log.append(("end", number))
        if fails:
            raise ValueError("as planned")
        return number

    parents = {number: chance.sample(range(number), min(number, chance.randrange(4))) for number in range(200)}
    continues = {number for number in parents if chance.random() < 0.5}

    async def scenario():
        wf = app.workflow()
        for number, before in parents.items():
            wf.add(
                f"n{number}",
                node.job(number, chance.random() < 0.1),
                after=[f"n{parent}" for parent in before],
                after_failed="continue" if number in continues else "cancel",
            )
        async with app.worker(concurrency=20), app.worker(concurrency=20):
            run = await wf.aenqueue()
            await until(run.aended)
            records = {name: await job.arecord() for name, job in (await run.ajobs()).items()}
        await app.aclose()
        return records

    records = work(scenario)
    at = {event: index for index, event in enumerate(log)}
    assert len(at) == len(log), "a node ran twice"
    for number, before in parents.items():
        record = records[f"n{number}"]
        ran = ("start", number) in at
        bad = [parent for parent in before if records[f"n{parent}"].state is not State.SUCCEEDED]
        assert ran == (record.state is not State.CANCELLED)
        assert ran == (number in continues or not bad)
        for parent in before:
            if ran and ("end", parent) in at:
                assert at["end", parent] < at["start", number]
    assert {record.state for record in records.values()} == {State.SUCCEEDED, State.FAILED, State.CANCELLED}


@pytest.mark.parametrize(("task", "expected"), [("sum_of_parents", [30, 30, 4]), ("sum_of_parents_async", [30, 4])])
def test_a_child_process_gets_the_results_of_parents(task, expected):
    async def scenario():
        header = [process_app.spec("add", {"a": n, "b": n}) for n in (1, 2, 3, 9)]
        async with process_app.worker():
            run = await process_app.workflow(chord(header, process_app.spec(task))).aenqueue()
            results = await run.aresult(60)
        await process_app.aclose()
        return results

    assert work(scenario) == {task: expected}


def test_results_of_parents_are_bounded():
    """At the limit they come, one byte past it they do not, and how the parents ended can still be read."""
    app = new_app()
    size = 1 << 20

    @app.task
    async def big(length: int) -> str:
        return "x" * (length - 2)  # and two quotes

    @app.task(max_attempts=1)
    async def take(ctx: Context, fails: bool = False) -> int:
        parents = await ctx.parents()
        if fails:
            with pytest.raises(ResultsTooLarge, match="fetch them one by one") as caught:
                await ctx.results()
            assert caught.value.parents == len(parents)
        results = await ctx.results()
        return sum(len(value) + 2 for value in results.values())

    @app.task(max_attempts=1)
    async def take_by_annotation(results: Results) -> None:
        raise AssertionError("not reached")

    async def scenario():
        async with app.worker(concurrency=4):
            sixteen = [big.job(size) for _ in range(16)]
            fits = await app.workflow(chord(sixteen, take.job())).aenqueue()
            assert (await fits.aresult(60))["take"] == RESULTS_BYTES_MAX
            one_more = [*(big.job(size) for _ in range(16)), big.job(3)]
            wf = app.workflow()
            wf.put(app.spec("take_by_annotation"), after=wf.put(group(one_more)))
            wf.add("other", take.job(fails=True), after=one_more)
            beyond = await wf.aenqueue()
            ends = [await ended(app, (await beyond.ajobs())[name]) for name in ("take_by_annotation", "other")]
        await app.aclose()
        return ends

    for record in work(scenario):
        assert record.state is State.FAILED
        assert record.errors[-1].kind == "ResultsTooLarge"


def test_a_wide_fan_in_is_read_in_batches():
    app = new_app()
    asked: list[int] = []

    @app.task
    async def leaf(n: int) -> int:
        return n

    @app.task
    async def gather_all(results: Results) -> int:
        return sum(results.values())

    async def scenario():
        backend = await app.backend()
        get = backend.get

        async def counting(ids: Any) -> Any:
            asked.append(len(ids))
            return await get(ids)

        async with app.worker(concurrency=100):
            run = await app.workflow(chord([leaf.job(n) for n in range(3_000)], gather_all.job())).aenqueue()
            backend.get = counting  # type: ignore[method-assign]
            await until(run.aended)
            backend.get = get  # type: ignore[method-assign]
            results = await run.aresult(60)
        await app.aclose()
        return results

    assert work(scenario) == {"gather_all": sum(range(3_000))}
    assert asked == [1, 16, 32, 64, 128, 256, 512, 1000, 992]


@pytest.mark.parametrize("policy", ["cancel", "continue"])
def test_a_node_whose_type_was_removed_ends_and_the_rest_by_policy(policy):
    """It waits for a worker that knows it, fails with the reason, and what is behind it does not hang."""
    old, new = new_app(), new_app()
    new.settings = old.settings

    @old.task
    async def removed() -> int:
        return 1

    for app in (old, new):

        @app.task
        async def kept(results: Results) -> list[str]:
            return [*results.succeeded, *results.failed]

    async def scenario():
        wf = old.workflow()
        wf.add("first", old.spec("kept"))
        wf.add("gone", old.spec("removed"), after="first")
        wf.add("behind", old.spec("kept"), after="gone", after_failed=policy)
        wf.add("last", old.spec("kept"), after="behind")
        run = await wf.aenqueue()
        async with new.worker(park_ms=300):
            await until(run.aended)
            records = {name: await job.arecord() for name, job in (await run.ajobs()).items()}
        await new.aclose()
        await old.aclose()
        return records

    records = work(scenario)
    assert records["gone"].state is State.FAILED
    assert records["gone"].errors[-1].kind == "UnknownType"
    if policy == "cancel":
        assert records["behind"].state is records["last"].state is State.CANCELLED
        assert records["behind"].errors[-1].kind == "ParentFailed"
    else:
        assert json.loads(records["behind"].result) == ["gone"]
        assert json.loads(records["last"].result) == ["behind"]


def test_follow_ups_of_a_run_that_fails_are_not_added():
    app = new_app()

    @app.task(backoff=0)
    async def grow(ctx: Context) -> None:
        first = ctx.then("leaf", {"n": ctx.attempt})
        ctx.then("leaf", {"n": 10 + ctx.attempt}, after=first)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        if ctx.meta:
            raise Fail("never")

    @app.task
    async def leaf(n: int) -> int:
        return n

    async def scenario():
        async with app.worker():
            run = await app.workflow(chain(grow.job())).aenqueue()
            failing = await app.workflow(chain(grow.using(meta={"a": "b"}).job())).aenqueue()
            await until(run.aended)
            await until(failing.aended)
            backend = await app.backend()
            found = [await backend.find(Query(workflow=one.id, type="leaf")) for one in (run, failing)]
        await app.aclose()
        return [sorted(json.loads(job.payload)["n"] for job in page.jobs) for page in found]

    assert work(scenario) == [[3, 13], []]


def test_cancelling_a_workflow_stops_what_runs():
    app = new_app()
    stopped: list[str] = []

    @app.task
    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append("stopped")

    async def scenario():
        async with app.worker() as worker:
            run = await app.workflow(chain(forever.job(), forever.job())).aenqueue()
            await until(lambda: worker.engine.runner.busy == 1)
            assert {str(answer): count for answer, count in (await run.acancel()).items()} == {
                "done": 1,
                "requested": 1,
            }
            await until(run.aended)
            state = await run.astate()
        await app.aclose()
        return state

    assert work(scenario) == {State.CANCELLED: 2}
    assert stopped == ["stopped"]
