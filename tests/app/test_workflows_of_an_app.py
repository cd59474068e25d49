"""Workflows from the side of an application: built, enqueued, waited for, cancelled and rerun."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from packhorse import (
    Context,
    InvalidOption,
    JobSpec,
    NotFound,
    Packhorse,
    Parent,
    Results,
    ResultTimeout,
    State,
    UnknownParent,
    WorkflowFailed,
    chain,
    chord,
    group,
)
from packhorse.backends.base import Steered
from packhorse.testing import drain, inline, jobs, stored


@dataclass
class Row:
    number: int
    text: str = "x"


@pytest.fixture
def ran() -> list[Any]:
    return []


@pytest.fixture
def tasks(app: Packhorse, ran: list[Any]) -> Packhorse:
    @app.task
    async def double(n: int) -> int:
        ran.append(n)
        return n * 2

    @app.task
    async def total(results: Results) -> int:
        return sum(results.values())

    @app.task
    def total_in_thread(results: Results) -> int:
        return sum(results.values())

    @app.task
    async def increase(results: Results, by: int = 1) -> int:
        value: int = results.only + by
        return value

    @app.task(max_attempts=1)
    async def fail(n: int = 0) -> int:
        ran.append(f"fail {n}")
        raise ValueError(f"no {n}")

    @app.task
    async def count_ends(results: Results) -> dict[str, list[str]]:
        return {"succeeded": results.succeeded, "failed": results.failed}

    @app.task
    async def row() -> Row:
        return Row(7)

    return app


def job(app: Packhorse, name: str, payload: object = None, **options: Any) -> JobSpec:
    return app.spec(name, payload, options)


def test_a_chain_passes_results_on(tasks):
    with inline(tasks):
        run = tasks.workflow(
            chain(job(tasks, "double", {"n": 3}), job(tasks, "increase"), job(tasks, "increase", {"by": 10}))
        ).enqueue()
        assert run.result(timeout=60) == {"increase-2": 17}
        assert run.state == {State.SUCCEEDED: 3}
        assert run.ended


@pytest.mark.parametrize("callback", ["total", "total_in_thread"])
def test_a_chord_gets_the_results_of_all(tasks, callback):
    with inline(tasks):
        header = [job(tasks, "double", {"n": n}) for n in range(10)]
        run = tasks.workflow(chord(header, job(tasks, callback))).enqueue()
        assert run.result(timeout=60) == {callback: 90}
        assert run.result(nodes=["double", "double-10"]) == {"double": 0, "double-10": 18}


def test_results_by_node_name(tasks):
    seen: dict[str, Any] = {}

    @tasks.task
    async def look(ctx: Context, results: Results) -> None:
        seen["results"] = dict(results)
        seen["parents"] = {name: (parent.state, parent.type) for name, parent in (await ctx.parents()).items()}
        seen["row"] = results.read("the-row", Row)
        seen["workflow"] = ctx.workflow
        seen["repr"] = repr(results)
        with pytest.raises(LookupError, match="3 parents, not one"):
            _ = results.only

    with inline(tasks):
        outside = tasks.enqueue("double", {"n": 50})
        wf = tasks.workflow()
        wf.add("small", job(tasks, "double", {"n": 1}))
        wf.add("the-row", job(tasks, "row"))
        wf.add("end", job(tasks, "look"), after=["small", "the-row", outside])
        run = wf.enqueue()
        assert run.result(timeout=60) == {"end": None}
    assert seen["results"] == {"small": 2, "the-row": {"number": 7, "text": "x"}, outside.id: 100}
    assert seen["parents"]["small"] == (State.SUCCEEDED, "double")
    assert seen["row"] == Row(7)
    assert seen["workflow"] == run.id
    assert seen["repr"].startswith("<Results of 3 parents: ")


def test_a_node_of_another_workflow_is_known_by_its_id(tasks):
    seen: list[str] = []

    @tasks.task
    async def names(results: Results) -> None:
        seen.extend(results)

    with inline(tasks):
        before = tasks.workflow()
        before.add("same", job(tasks, "double", {"n": 1}))
        other = before.enqueue()["same"]
        wf = tasks.workflow()
        wf.add("same", job(tasks, "double", {"n": 2}))
        wf.add("end", job(tasks, "names"), after=["same", other])
        wf.enqueue()
    assert sorted(seen) == sorted(["same", other.id])


def test_a_job_without_parents_has_no_results(tasks):
    with inline(tasks):
        assert tasks.enqueue("total").result() == 0
        assert tasks.enqueue("count_ends").result() == {"succeeded": [], "failed": []}


def test_a_batch_calls_back_whatever_happens(tasks):
    with inline(tasks):
        good = [job(tasks, "double", {"n": n}) for n in range(3)]
        run = tasks.batch([*good, job(tasks, "fail")], then=job(tasks, "count_ends")).enqueue()
        assert run.result(timeout=60) == {
            "count_ends": {"succeeded": ["double", "double-2", "double-3"], "failed": ["fail"]}
        }
        alone = tasks.batch([job(tasks, "double", {"n": 1}), job(tasks, "double", {"n": 2})]).enqueue()
        assert alone.result(timeout=60) == {"double": 2, "double-2": 4}


def test_how_parents_ended_is_told(tasks):
    told: dict[str, Parent] = {}

    @tasks.task
    async def tell(ctx: Context) -> None:
        told.update(await ctx.parents())

    with stored(tasks):
        doomed = tasks.enqueue("double", {"n": 1}, delay="1h")
        wf = tasks.workflow()
        wf.add("bad", job(tasks, "fail", {"n": 4}))
        wf.add("never", job(tasks, "double", {"n": 4}), after="bad")
        wf.add("tell", job(tasks, "tell"), after=["bad", "never", doomed], after_failed="continue")
        wf.enqueue()
        doomed.delete()
        drain(tasks)
    assert told["bad"].state is State.FAILED
    assert told["bad"].error == "ValueError: no 4"
    assert told["never"].state is State.CANCELLED
    assert told[doomed.id].state is None


def test_a_failure_ends_what_is_behind_it_and_is_named(tasks):
    with inline(tasks):
        wf = tasks.workflow()
        wf.add("first", job(tasks, "double", {"n": 1}))
        wf.add("broken", job(tasks, "fail", {"n": 9}), after="first")
        wf.add("last", job(tasks, "total"), after="broken")
        wf.add("aside", job(tasks, "total"), after="first")
        run = wf.enqueue()
        with pytest.raises(WorkflowFailed, match="broken: ValueError: no 9; last: its parent") as caught:
            run.result(timeout=60)
        assert list(caught.value.nodes) == ["broken", "last"]
        assert caught.value.workflow == run.id
        assert run.state == {State.SUCCEEDED: 2, State.FAILED: 1, State.CANCELLED: 1}
        assert run.result(nodes=["aside"]) == {"aside": 2}


def test_rerun_failed_goes_on_where_it_broke_off(tasks, ran):
    broken = [True]

    @tasks.task(max_attempts=1)
    async def fragile(results: Results) -> int:
        if broken[0]:
            raise ValueError("not yet")
        value: int = results.only
        return value

    with inline(tasks):
        run = tasks.workflow(
            chain(job(tasks, "double", {"n": 5}), job(tasks, "fragile"), job(tasks, "increase"))
        ).enqueue()
        assert run.state == {State.SUCCEEDED: 1, State.FAILED: 1, State.CANCELLED: 1}
        broken[0] = False
        assert run.rerun_failed() == 1
        drain(tasks)
        assert run.result(timeout=60) == {"increase": 11}
        assert ran == [5]
        assert run.rerun_failed() == 0


def test_cancel_ends_all_of_it_and_can_be_taken_back(tasks, ran):
    with stored(tasks):
        wf = tasks.workflow(chain(job(tasks, "double", {"n": 1}), job(tasks, "increase"), job(tasks, "increase")))
        wf.add("always", job(tasks, "count_ends"), after="double", after_failed="continue")
        run = wf.enqueue()
        assert run.cancel() == {Steered.DONE: 4}
        drain(tasks)
        assert run.state == {State.CANCELLED: 4}
        assert run.cancel() == {}
        assert run.rerun_failed() == 0
        assert run.rerun_failed(cancelled=True) == 4
        drain(tasks)
        assert run.state == {State.SUCCEEDED: 4}
    assert ran == [1]


def test_a_handle_by_id_knows_the_same(tasks):
    with inline(tasks):
        wf = tasks.workflow(name="nightly")
        wf.add("rows", job(tasks, "row"))
        wf.add("end", job(tasks, "count_ends"), after="rows")
        run = wf.enqueue()
        again = tasks.workflow_run(run.id)
        assert again.result(timeout=60) == run.result() == {"end": {"succeeded": ["rows"], "failed": []}}
        assert again.jobs == run.jobs
        assert again["rows"].result() == Row(7)
        assert run["rows"].record().meta == {"workflow": "nightly"}
        assert repr(run) == "<WorkflowRun nightly>"
        assert repr(again) == f"<WorkflowRun {run.id}>"
        with pytest.raises(NotFound, match="no node 'x'; there are rows, end"):
            run.result(nodes=["x"])
    with stored(tasks):
        nobody = tasks.workflow_run("nobody")
        for ask in (lambda: nobody.state, lambda: nobody.jobs, nobody.cancel, nobody.rerun_failed, nobody.result):
            with pytest.raises(NotFound, match="no workflow 'nobody'"):
                ask()


def test_waiting_has_an_end(tasks):
    with stored(tasks):
        run = tasks.workflow(group(job(tasks, "double", {"n": 1}))).enqueue()
        with pytest.raises(ResultTimeout, match=r"1 job still live after 50ms"):
            run.result(timeout="50ms")
        run["double"].delete()
        with pytest.raises(NotFound):
            run.result(timeout=60)


def test_a_wait_is_woken_by_the_end(app):
    async def scenario() -> None:
        @app.task
        async def quick(n: int = 0) -> int:
            return n

        async with app.worker():
            run = await app.workflow(group(quick.job(n) for n in range(250))).aenqueue()
            results = await run.aresult(timeout=60)
        assert sorted(results.values()) == list(range(250))
        assert await run.aended()
        assert await run.astate() == {State.SUCCEEDED: 250}
        await app.aclose()

    asyncio.run(scenario())


def test_follow_ups_belong_to_the_workflow_and_may_wait_for_each_other(tasks):
    @tasks.task
    async def grow(ctx: Context) -> None:
        first = ctx.then("double", {"n": 1})
        second = ctx.then("double", {"n": 2})
        ctx.then("total", after=[first, second])
        if ctx.workflow is None:
            ctx.then("count_ends", after="gone", after_failed="continue")

    with inline(tasks):
        run = tasks.workflow(chain(job(tasks, "grow"), job(tasks, "count_ends"))).enqueue()
        assert run.state == {State.SUCCEEDED: 5}
        found = {record.type: record for record in jobs(tasks, workflow=run.id)}
        assert found["total"].result == b"6"
        assert found["total"].node is None
        assert run.result(timeout=60) == {"count_ends": {"succeeded": ["grow"], "failed": []}}
        tasks.enqueue("grow").result()
        assert len(jobs(tasks, workflow=run.id)) == 5


def test_enqueueing_twice_adds_nothing(tasks, ran):
    with inline(tasks):
        wf = tasks.workflow(chain(job(tasks, "double", {"n": 1}), job(tasks, "increase")))
        assert wf.enqueue().jobs == wf.enqueue().jobs
        assert len(jobs(tasks)) == 2
    assert ran == [1]


def test_a_held_key_means_its_holder(tasks):
    with stored(tasks):
        holder = tasks.enqueue("double", {"n": 8}, unique="k")
        run = tasks.workflow(chain(job(tasks, "double", {"n": 1}, unique="k"), job(tasks, "increase"))).enqueue()
        assert run["double"] == holder
        assert not run["double"].created
        drain(tasks)
        assert run.result(timeout=60) == {"increase": 17}


def test_nothing_is_stored_of_what_is_refused(tasks):
    with stored(tasks):
        wf = tasks.workflow(chain(job(tasks, "double", {"n": 1}), job(tasks, "increase", after="gone")))
        with pytest.raises(UnknownParent):
            wf.enqueue()
        bad = tasks.workflow()
        bad.add("a", job(tasks, "double", {"n": 1}))
        bad.add("b", job(tasks, "increase"), after="c")
        with pytest.raises(InvalidOption):
            bad.enqueue()
        assert jobs(tasks) == []


def test_a_workflow_of_another_kind_of_id(tasks):
    """A backend's author, or another program, may have named it otherwise."""
    import msgspec

    with stored(tasks):
        specs = [msgspec.structs.replace(job(tasks, "double", {"n": n}), workflow="mine", node=f"n{n}") for n in (1, 2)]
        tasks.enqueue_many(specs)
        run = tasks.workflow_run("mine")
        assert run.state == {State.PENDING: 2}
        drain(tasks)
        assert run.result(timeout=60) == {"n1": 2, "n2": 4}


def test_a_handler_is_called_by_hand_with_results(tasks):
    assert asyncio.run(tasks.tasks["total"](results=Results({"a": 1, "b": 2}))) == 3
