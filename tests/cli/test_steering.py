"""The commands that change something: what they did, what they refuse, and that they ask first."""

from __future__ import annotations

import pytest

from packhorse.cli import filtering
from packhorse.job import State

from .kit import CHANCE, Cli

GONE = "01a20000-0000-7000-8000-000000000000"


# ---- by id -------------------------------------------------------------------------------------------------


def test_cancel_by_id(cli: Cli) -> None:
    (running,) = [job for job, _ in (cli.add(), cli.start())[1]]
    (pending,) = cli.add()
    out = cli("jobs", "cancel", pending, running).stdout
    assert out.splitlines() == [f"{pending} cancelled", f"{running} will be stopped by its worker"]
    assert cli.states([pending, running]) == ["cancelled", "running"]


def test_cancel_tells_the_truth_for_each_id(cli: Cli) -> None:
    (ended,) = cli.fail()
    (pending,) = cli.add()
    result = cli("jobs", "cancel", ended, pending, GONE, code=1)
    assert "2 of 3 not cancelled" in result.stderr
    assert f"{ended} had ended already" in result.stderr
    assert f"{GONE} does not exist" in result.stderr
    assert cli.states([pending]) == ["cancelled"]


def test_steering_answers_in_json(cli: Cli) -> None:
    (pending,) = cli.add()
    shown = cli.json("jobs", "cancel", pending)
    assert shown == {"items": [{"id": pending, "answer": "done"}], "next": None}


@pytest.mark.parametrize("command", [("jobs", "rerun"), ("retry",)])
def test_rerun_by_id(cli: Cli, command: tuple[str, ...]) -> None:
    (failed,) = cli.fail()
    (pending,) = cli.add()
    assert cli(*command, failed).stdout == f"{failed} rerun\n"
    assert cli.states([failed]) == ["pending"]
    assert "has not ended; cancel it first" in cli(*command, pending, code=1).stderr
    assert "does not exist" in cli(*command, GONE, code=1).stderr
    assert "[ID]" in cli("retry", code=2).stderr or "ID" in cli("retry", code=2).stderr


def test_rerun_in_a_while(cli: Cli) -> None:
    (failed,) = cli.fail()
    cli("jobs", "rerun", failed, "--in", "5m")
    assert cli.states([failed]) == ["scheduled"]
    assert "not a duration" in cli("jobs", "rerun", failed, "--in", "-5m", code=2).stderr


def test_rerun_of_a_job_whose_unique_key_is_taken(cli: Cli) -> None:
    from packhorse.job import Unique

    (failed,) = cli.fail(1, unique=Unique(key="k"))
    cli.add(1, unique=Unique(key="k"))
    assert "unique key that another live job holds" in cli("retry", failed, code=1).stderr
    assert "1 of 1 not rerun" in cli("retry-all", code=1).stderr


def test_delete_by_id(cli: Cli) -> None:
    cli.add()
    ((running, _),) = cli.start()
    (pending,) = cli.add()
    assert "is running; cancel it first" in cli("jobs", "delete", pending, running, code=1).stderr
    assert cli.states([pending, running]) == ["gone", "running"]


def test_many_refusals_are_still_one_short_line(cli: Cli) -> None:
    ids = CHANCE.ids(1_700_000_000_000, 1500)
    stderr = cli("jobs", "cancel", *ids, code=1).stderr
    assert "1500 of 1500 not cancelled" in stderr
    assert "and 1497 more" in stderr
    assert len(stderr) < 400


# ---- by filter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "left"), [("cancel", "cancelled"), ("delete", "gone")])
def test_cancel_and_delete_by_filter(cli: Cli, verb: str, left: str) -> None:
    mine, others = cli.add(3, tags=("x",)), cli.add(2)
    assert "3 jobs match; nothing was changed" in cli("jobs", verb, "--tag", "x", "--dry-run").stdout
    assert cli.states(mine) == ["pending"] * 3
    assert "3 jobs" in cli("jobs", verb, "--tag", "x", "--yes").stdout
    assert cli.states(mine) == [left] * 3
    assert cli.states(others) == ["pending"] * 2


def test_a_sweep_answers_in_json(cli: Cli) -> None:
    cli.add(2)
    cli.start()
    assert cli.json("jobs", "cancel", "--all", "--yes") == {
        "matched": 2,
        "dry_run": False,
        "done": 1,
        "requested": 1,
        "ended": 0,
        "live": 0,
        "conflict": 0,
        "missing": 0,
    }


def test_rerun_by_filter_takes_failed_jobs_unless_told_otherwise(cli: Cli) -> None:
    (failed,) = cli.fail()
    cli.add()
    (succeeded,) = cli.settle(State.SUCCEEDED)
    cli("jobs", "rerun", "--all", "--yes")
    assert cli.states([failed, succeeded]) == ["pending", "succeeded"]
    cli("jobs", "rerun", "--state", "succeeded", "--yes")
    assert cli.states([succeeded]) == ["pending"]


def test_a_filter_over_more_jobs_than_one_batch(cli: Cli) -> None:
    cli.add(2_345)
    assert cli.json("jobs", "cancel", "--all", "--yes")["done"] == 2_345


@pytest.mark.parametrize("verb", ["cancel", "rerun", "delete"])
def test_a_filter_that_finds_nothing_is_done_at_once(cli: Cli, verb: str) -> None:
    assert cli("jobs", verb, "--queue", "empty").stderr == "no jobs match\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("cancel",), "give ids, a filter, or --all"),
        (("delete", "--yes"), "give ids, a filter, or --all"),
        (("rerun", GONE, "--all"), "not both"),
        (("cancel", GONE, "--queue", "q"), "not both"),
        (("delete", GONE, "--dry-run"), "--dry-run is for filters"),
        (("cancel", "--state", "failed"), "ended job cannot be cancelled"),
        (("delete", "--state", "running"), "cancel it first"),
        (("rerun", "--state", "pending,failed"), "only ended jobs can be rerun"),
        (("delete", "--queue", "' OR 1=1 --", "--yes"), "cannot name a queue"),
    ],
)
def test_wrong_use_of_steering(cli: Cli, args: tuple[str, ...], says: str) -> None:
    ids = cli.add(2) + cli.fail()
    before = cli.states(ids)
    assert says in cli("jobs", *args, code=2).stderr
    assert cli.states(ids) == before


def test_acting_on_many_jobs_asks_first(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = cli.add(2)
    assert "this would delete 2 jobs; add --yes" in cli("jobs", "delete", "--all", code=2).stderr
    assert cli.states(ids) == ["pending"] * 2
    monkeypatch.setattr(filtering, "can_answer", lambda: True)
    answers = iter([False, True])
    asked: list[str] = []
    monkeypatch.setattr(filtering.click, "confirm", lambda question, err: asked.append(question) or next(answers))
    assert "nothing was changed" in cli("jobs", "delete", "--all", code=1).stderr
    assert cli.states(ids) == ["pending"] * 2
    cli("jobs", "delete", "--all")
    assert asked == ["delete 2 jobs?"] * 2
    assert cli.states(ids) == ["gone"] * 2


# ---- the dead letter queue ---------------------------------------------------------------------------------


def test_retry_all(cli: Cli) -> None:
    ids = cli.fail(3, type="a") + cli.fail(2, type="b", queue="q", tags=("x",), key="k")
    assert cli.json("retry-all", "--dry-run")["matched"] == 5
    assert cli.states(ids) == ["failed"] * 5
    for args in (("--type", "b"), ("--queue", "q"), ("--tag", "x"), ("--key", "k")):
        assert cli.json("retry-all", "--dry-run", *args)["matched"] == 2
    assert cli("retry-all", "--type", "a").stdout == "3 jobs rerun\n"
    assert cli.states(ids) == ["pending"] * 3 + ["failed"] * 2
    cli("retry-all")
    assert cli.states(ids) == ["pending"] * 5
    assert cli("retry-all").stderr == "no jobs match\n"


def test_purge(cli: Cli) -> None:
    others = cli.add(1, queue="other")
    ids = cli.fail(2) + cli.add(2, delay_ms=60_000) + cli.add(3)
    cli.start()
    assert cli.json("purge", "default", "--yes") == {"queue": "default", "deleted": 6, "running": 1, "added": 0}
    assert sorted(set(cli.states(ids))) == ["gone", "running"]
    assert cli.states(others) == ["pending"]
    assert "1 job is running" in cli("purge", "default", "--yes").stderr


def test_purge_of_one_state_is_the_dead_letters_only(cli: Cli) -> None:
    failed, pending = cli.fail(2), cli.add(1)
    assert "2 jobs" in cli("purge", "default", "--state", "failed", "--yes").stdout
    assert cli.states(failed + pending) == ["gone", "gone", "pending"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "QUEUE"),
        (("default",), "this would delete the jobs of queue default; add --yes"),
        (("default", "--state", "running", "--yes"), "cancel it first"),
        (("default", "--state", "dead", "--yes"), "must be one of"),
        (("default", "--state", "", "--yes"), "must be one of"),
        (("default", "--type", "", "--yes"), "cannot name a job type"),
        (("default", "--tag", "", "--yes"), "cannot name a tag"),
        (("default", "--key", "", "--yes"), "printable characters"),
        (("default", "--group", "", "--yes"), "is no fingerprint"),
        (("*", "--yes"), "cannot name a queue"),
        (("default", "q2", "--yes"), "unexpected extra argument"),
    ],
)
def test_wrong_use_of_purge(cli: Cli, args: tuple[str, ...], says: str) -> None:
    ids = cli.add(2)
    assert says in cli("purge", *args, code=2).stderr
    assert cli.states(ids) == ["pending"] * 2


# ---- queues ------------------------------------------------------------------------------------------------


def test_pause_and_resume(cli: Cli) -> None:
    cli.add(1, queue="a")
    assert cli("queues", "pause", "a", "b").stdout == "paused a, b\n"
    assert cli.start(1, "a") == []
    assert cli.json("queues", "pause", "a") == {"items": [{"queue": "a", "paused": True}], "next": None}
    assert cli("queues", "resume", "a").stdout == "resumed a\n"
    assert len(cli.start(1, "a")) == 1
    assert cli.json("queues", "resume", "b")["items"] == [{"queue": "b", "paused": False}]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_wrong_use_of_queues(cli: Cli, verb: str) -> None:
    assert "QUEUE" in cli("queues", verb, code=2).stderr
    assert "cannot name a queue" in cli("queues", verb, "fine", "a b", code=2).stderr
    assert cli.json("queues", "list")["items"] == []
