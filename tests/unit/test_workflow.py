"""Graphs of jobs, before anything is stored: names, orders, and what is refused with its remedy."""

from __future__ import annotations

import re

import pytest

from packhorse import Flow, InvalidName, InvalidOption, JobSpec, Packhorse, chain, chord, group
from packhorse.job import AFTER_MAX
from packhorse.workflow import EDGES_MAX, NODES_MAX, Workflow

app = Packhorse("memory://unit-workflow")


def job(name: str = "work", **options: object) -> JobSpec:
    return app.spec(name, None, options)


def edges(workflow: Workflow) -> dict[str, set[str]]:
    """The parents of each node, by name; those outside by id."""
    specs = workflow.specs()
    names = {spec.id: spec.node for spec in specs}
    return {str(spec.node): {names.get(parent) or parent for parent in spec.after} for spec in specs}


SHAPES: list[tuple[Flow, dict[str, set[str]]]] = [
    (chain(job("a"), job("b"), job("c")), {"a": set(), "b": {"a"}, "c": {"b"}}),
    (group(job("a"), job("b")), {"a": set(), "b": set()}),
    (group(job("a") for _ in range(3)), {"a": set(), "a-2": set(), "a-3": set()}),
    (chord([job("a"), job("b")], job("c")), {"a": set(), "b": set(), "c": {"a", "b"}}),
    (chord(job("a"), job("c")), {"a": set(), "c": {"a"}}),
    (
        chain(job("a"), group(job("b"), job("c")), job("d")),
        {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}},
    ),
    (
        chain(group(job("a"), job("b")), group(job("c"), job("d"))),
        {"a": set(), "b": set(), "c": {"a", "b"}, "d": {"a", "b"}},
    ),
    (
        chord(group(chain(job("a"), job("b")), chord([job("c")], job("d"))), chain(job("e"), job("f"))),
        {"a": set(), "b": {"a"}, "c": set(), "d": {"c"}, "e": {"b", "d"}, "f": {"e"}},
    ),
    (chain(job("a"), chain(job("a"), chain(job("a")))), {"a": set(), "a-2": {"a"}, "a-3": {"a-2"}}),
]


@pytest.mark.parametrize(("flow", "expected"), SHAPES, ids=lambda value: repr(value) if isinstance(value, Flow) else "")
def test_flows_nest(flow: Flow, expected: dict[str, set[str]]) -> None:
    assert edges(app.workflow(flow)) == expected


def test_a_graph_by_name_forwards_and_backwards():
    wf = app.workflow(name="nightly")
    wf.add("load", job(), after=["extract", "check"], after_failed="continue")
    extract = wf.add("extract", job())
    wf.add("check", job(), after=extract)
    wf.add("tell", job(), after=[extract, "load"])
    assert edges(wf) == {
        "extract": set(),
        "check": {"extract"},
        "load": {"extract", "check"},
        "tell": {"extract", "load"},
    }
    specs = {spec.node: spec for spec in wf.specs()}
    assert {spec.workflow for spec in specs.values()} == {wf.id}
    assert {name: spec.after_failed for name, spec in specs.items()} == {
        "extract": "cancel",
        "check": "cancel",
        "load": "continue",
        "tell": "cancel",
    }
    assert specs["load"].meta == {"workflow": "nightly"}
    assert repr(wf) == "<Workflow nightly of 4 jobs>"


def test_parents_come_before_children():
    wf = app.workflow()
    names = [f"n{number}" for number in range(300)]
    for number, name in enumerate(names):
        wf.add(name, job(), after=[f"n{number + 1}"] if number + 1 < len(names) else [])
    seen: set[str] = set()
    for spec in wf.specs():
        assert seen.issuperset(spec.after)
        seen.add(spec.id)


def test_a_flow_is_a_node_with_parts():
    wf = app.workflow()
    wf.add("prepare", chain(job("fetch"), group(job("left"), job("right"))))
    wf.add("use", chain(job("one"), job("two")), after="prepare", after_failed="continue")
    assert edges(wf) == {
        "prepare.fetch": set(),
        "prepare.left": {"prepare.fetch"},
        "prepare.right": {"prepare.fetch"},
        "use.one": {"prepare.left", "prepare.right"},
        "use.two": {"use.one"},
    }
    policies = {spec.node: spec.after_failed for spec in wf.specs()}
    assert policies["use.one"] == "continue"
    assert policies["use.two"] == "cancel"


def test_jobs_outside_by_handle_or_option():
    wf = app.workflow()
    inside = job("inside")
    wf.add("inside", inside)
    wf.add("both", job("both", after="given-before"), after=[app.job("from-outside"), inside])
    assert edges(wf)["both"] == {"given-before", "from-outside", "inside"}


def test_after_takes_handles_ids_and_specs():
    parent = job()
    assert job(after=parent).after == (parent.id,)
    assert job(after=[app.job("x"), "y", parent, "x"]).after == ("x", "y", parent.id)
    assert job(after_failed="continue").after_failed == "continue"
    for value in ("stop", None, 1, ["cancel"]):
        if value is not None:
            with pytest.raises(InvalidOption, match="must be one of cancel, continue"):
                job(after_failed=value)


def test_a_batch_and_its_callback():
    wf = app.batch([job("resize") for _ in range(3)], then=job("report"))
    assert edges(wf)["report"] == {"resize", "resize-2", "resize-3"}
    assert {spec.node: spec.after_failed for spec in wf.specs()}["report"] == "continue"
    assert edges(app.batch([job("only")])) == {"only": set()}


def test_names_made_of_types_avoid_those_given():
    wf = app.workflow()
    wf.add("a", job("b"))
    wf.add("a-2", job("b"))
    wf.put(group(job("a"), job("a"), job("x" * 128), job("x" * 128)))
    names = list(edges(wf))
    assert names[:4] == ["a", "a-2", "a-3", "a-4"]
    assert [len(name) for name in names[4:]] == [128, 128]
    assert names[5].endswith("x-2")


def test_the_same_workflow_makes_the_same_jobs_again():
    wf = app.workflow(chain(job(), job()))
    assert wf.specs() == wf.specs()


def refused(build: object, match: str, kind: type[Exception] = InvalidOption) -> None:
    with pytest.raises(kind, match=match):
        build()  # type: ignore[operator]


def test_what_is_refused_says_what_to_do():
    one = job()
    wf = app.workflow()
    wf.add("a", one)
    refused(lambda: wf.add("a", job()), "give this one another name")
    refused(lambda: wf.add("b", one), r"is in it already as 'a'; make another one with task.job")
    refused(lambda: wf.add("not a name", job()), "cannot name a node", InvalidName)
    refused(lambda: wf.add("c", job(), after=[3]), "must be a node, its name, or the handle of a job")
    refused(lambda: wf.add("c", job(), after_failed="stop"), "must be one of cancel, continue")
    refused(lambda: wf.add("c", "work"), "'work' is no job; give task.job")
    refused(lambda: app.workflow().specs(), "it is empty; add jobs with")
    refused(lambda: app.workflow(name="a b"), "cannot name a workflow", InvalidName)
    refused(chain, "chain: it is empty")
    refused(group, "group: it is empty")
    refused(lambda: group([]), "group: it is empty")
    refused(lambda: chord([], job()), "group: it is empty")
    refused(lambda: app.batch([]), "group: it is empty")
    refused(lambda: chain(job(), "work"), r"'work' is no job; give task.job")
    refused(lambda: group(3), "'3' is no job")
    refused(lambda: chord(job(), None), "'None' is no job")


def test_an_unknown_node_is_named_with_those_there_are():
    wf = app.workflow()
    wf.add("a", job())
    wf.add("b", job(), after="extract")
    refused(wf.specs, re.escape("node 'b' comes after 'extract', which is not in it; there are a, b. A job outside"))


def test_a_cycle_is_shown():
    wf = app.workflow()
    wf.add("first", job())
    wf.add("a", job(), after=["first", "c"])
    wf.add("b", job(), after="a")
    wf.add("c", job(), after="b")
    wf.add("behind", job(), after="c")
    with pytest.raises(InvalidOption, match=r"wait for each other; leave out one `after`") as caught:
        wf.specs()
    assert re.search(r"(a → b → c → a|b → c → a → b|c → a → b → c)", str(caught.value))
    alone = app.workflow()
    alone.add("me", job(), after="me")
    refused(alone.specs, "me → me wait")


def test_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [f"p{number}" for number in range(AFTER_MAX)]
    fits = app.workflow()
    fits.add("end", job(), after=[app.job(name) for name in parents])
    assert len(fits.specs()[0].after) == AFTER_MAX
    beyond = app.workflow()
    beyond.add("end", job(), after=[app.job(name) for name in [*parents, "one-more"]])
    refused(beyond.specs, "comes after 10,001 jobs, and 10,000 are the most; put jobs between")
    assert NODES_MAX == 100_000
    monkeypatch.setattr("packhorse.workflow.NODES_MAX", 2)
    wf = app.workflow(group(job(), job()))
    refused(lambda: wf.add("third", job()), "more than 2 jobs; let some of them enqueue others")
    assert EDGES_MAX == 1_000_000
    monkeypatch.setattr("packhorse.workflow.EDGES_MAX", 3)
    monkeypatch.setattr("packhorse.workflow.NODES_MAX", 10)
    wide = app.workflow(chain(group(job(), job()), group(job(), job())))
    refused(wide.specs, "between two large groups put one job that joins the first")


def test_too_deep_is_refused():
    flow = chain(job())
    for _ in range(5_000):
        flow = chain(flow)
    refused(lambda: app.workflow(flow), "nested too deep; use fewer levels")
