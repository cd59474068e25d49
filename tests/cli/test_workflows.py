"""`workflows list|show|cancel|rerun`, `submit --after`, and what a job shows of its workflow."""

from __future__ import annotations

import pytest

from packhorse import Packhorse, Workflow, chain, group
from packhorse.backends import opening
from packhorse.job import State

from .kit import Cli


@pytest.fixture
def app(cli: Cli) -> Packhorse:
    """An app on the store of the command line."""
    opening.register_backend("clitest", lambda url, clock: cli.backend())
    with Packhorse("clitest://store") as app:
        yield app


def diamond(app: Packhorse, name: str | None = "nightly") -> Workflow:
    wf = app.workflow(name=name)
    wf.add("extract", app.spec("read"))
    wf.add("left", app.spec("work"), after="extract")
    wf.add("right", app.spec("work"), after="extract")
    wf.add("load", app.spec("write"), after=["left", "right"], after_failed="continue")
    return wf


def test_list(cli: Cli, app: Packhorse) -> None:
    assert cli.json("workflows", "list") == {"items": [], "next": None}
    assert "no workflows: none was enqueued" in cli("workflows", "list").stderr
    first = diamond(app).enqueue()
    second = diamond(app, None).enqueue()
    cli.add(3)  # jobs of no workflow
    listed = cli.json("workflows", "list")
    assert [(item["id"], item["name"], item["state"]) for item in listed["items"]] == [
        (second.id, None, "live"),
        (first.id, "nightly", "live"),
    ]
    assert listed["items"][0]["states"]["waiting"] == 3
    assert listed["items"][0]["created_at"].endswith("Z")
    assert "nodes" not in listed["items"][0]
    lines = cli("workflows", "list").stdout.splitlines()
    assert lines[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert lines[2].split()[:3] == [first.id, "nightly", "live"]


def test_list_goes_on_by_cursor(cli: Cli, app: Packhorse) -> None:
    runs = [app.workflow(group(app.spec("work"))).enqueue() for _ in range(5)]
    seen, cursor = [], []
    while True:
        page = cli.json("workflows", "list", "--limit", "2", *cursor)
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = ["--cursor", page["next"]]
    assert seen == [run.id for run in reversed(runs)]
    assert "there are more; add --cursor" in cli("workflows", "list", "--limit", "2").stderr
    for limit in ("0", "101"):
        assert "must be from 1 to 100" in cli("workflows", "list", "--limit", limit, code=2).stderr


def test_show(cli: Cli, app: Packhorse) -> None:
    run = diamond(app).enqueue()
    cli.start(1)
    shown = cli.json("workflows", "show", run.id)
    assert (shown["id"], shown["name"], shown["state"]) == (run.id, "nightly", "live")
    nodes = {node["node"]: node for node in shown["nodes"]}
    assert [(name, node["level"], node["after"], node["waiting_for"]) for name, node in nodes.items()] == [
        ("extract", 0, [], 0),
        ("left", 1, ["extract"], 1),
        ("right", 1, ["extract"], 1),
        ("load", 2, ["left", "right"], 2),
    ]
    assert nodes["load"]["after_failed"] == "continue"
    assert nodes["extract"]["state"] == "running"
    assert nodes["extract"]["duration_ms"] >= 0
    assert nodes["left"]["duration_ms"] is None
    text = cli("workflows", "show", run.id).stdout
    assert "name        nightly" in text
    assert "4: 3 waiting, 1 running" in text
    lines = text.splitlines()
    assert any(line.startswith("  left ") and "extract" in line for line in lines)
    assert any(line.startswith("    load ") and "left, right" in line for line in lines)


def test_show_of_a_long_chain_and_a_wide_fan_in_fits(cli: Cli, app: Packhorse) -> None:
    long = app.workflow(chain(*(app.spec("work") for _ in range(60)))).enqueue()
    assert max(len(line) for line in cli("workflows", "show", long.id).stdout.splitlines()) < 150
    wf = app.workflow()
    wf.add("end", app.spec("work"), after=wf.put(group(app.spec("work") for _ in range(40))))
    assert "work, work-2, work-3 and 37 more" in cli("workflows", "show", wf.enqueue().id).stdout


def test_what_is_not_there(cli: Cli) -> None:
    for verb in ("show", "cancel", "rerun"):
        assert "no workflow 'nobody'" in cli("workflows", verb, "nobody", code=1).stderr


def test_cancel_and_rerun(cli: Cli, app: Packhorse) -> None:
    run = diamond(app).enqueue()
    cli.start(1)
    assert "3 jobs of" in (out := cli("workflows", "cancel", run.id).stdout)
    assert "1 running job will be stopped by the worker" in out
    other = diamond(app).enqueue()
    assert {item["answer"] for item in cli.json("workflows", "cancel", other.id)["items"]} == {"done"}
    assert cli.json("workflows", "list")["items"][0]["state"] == "cancelled"
    assert "nothing of it is left to cancel" in cli("workflows", "cancel", other.id).stderr
    assert "nothing of it has failed" in cli("workflows", "rerun", other.id).stderr
    assert f"4 jobs of {other.id} started over" in cli("workflows", "rerun", other.id, "--cancelled").stdout
    assert other.state == {State.PENDING: 1, State.WAITING: 3}


def test_rerun_takes_the_failed_ones(cli: Cli, app: Packhorse) -> None:
    run = diamond(app).enqueue()
    cli.settle(State.FAILED, 1)
    assert run.state == {State.FAILED: 1, State.CANCELLED: 2, State.PENDING: 1}
    assert cli.json("workflows", "show", run.id)["nodes"][1]["error"].startswith("ParentFailed: its parent")
    cli.settle(State.SUCCEEDED, 1)
    assert cli.json("workflows", "list")["items"][0]["state"] == "failed"
    answers = cli.json("workflows", "rerun", run.id)["items"]
    assert answers == [{"id": run["extract"].id, "answer": "done"}]
    assert run.state == {State.PENDING: 1, State.WAITING: 2, State.SUCCEEDED: 1}


def test_a_job_shows_its_place(cli: Cli, app: Packhorse) -> None:
    run = diamond(app).enqueue()
    shown = cli.json("jobs", "show", run["load"].id)
    assert (shown["workflow"], shown["node"], shown["after_failed"], shown["waiting_for"]) == (
        run.id,
        "load",
        "continue",
        2,
    )
    assert shown["after"] == [run["left"].id, run["right"].id]


def test_submit_after(cli: Cli) -> None:
    (parent,) = cli.add()
    child = cli.json("submit", "-t", "work", "--after", parent, "--after-failed", "continue")["id"]
    by_json = cli.json("submit", f'{{"type": "work", "after": ["{parent}"], "after_failed": "continue"}}')["id"]
    for job_id in (child, by_json):
        shown = cli.json("jobs", "show", job_id)
        assert (shown["after"], shown["after_failed"], shown["state"]) == ([parent], "continue", "waiting")
    assert "no job 'gone'" in cli("submit", "-t", "work", "--after", "gone", code=1).stderr
    cli("submit", "-t", "work", "--after", parent, "--after-failed", "never", code=2)


def test_the_same_on_sqlite(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_URL", "sqlite:///workflows.db")
    with Packhorse("sqlite:///workflows.db") as app:
        run = diamond(app).enqueue()
        listed = cli.json("workflows", "list")["items"]
        assert [(item["id"], item["name"]) for item in listed] == [(run.id, "nightly")]
        shown = cli.json("workflows", "show", run.id)
        assert [(node["node"], node["level"]) for node in shown["nodes"]] == [
            ("extract", 0),
            ("left", 1),
            ("right", 1),
            ("load", 2),
        ]
        assert "4 jobs of" in cli("workflows", "cancel", run.id).stdout
        assert "4 jobs of" in cli("workflows", "rerun", run.id, "--cancelled").stdout
        assert run.state == {State.PENDING: 1, State.WAITING: 3}
        assert "no workflow 'nobody'" in cli("workflows", "show", "nobody", code=1).stderr
