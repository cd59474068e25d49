"""Loops of runners that do not turn: said once with the stack, shown while it lasts, and told to who lost a job."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from looking_in import ask_runner, lab, ready, runtime, trouble  # noqa: F401  # fixtures

from packhorse.job import State
from packhorse.observe.blocked import QUIET_MS
from packhorse.worker.control import AskStacks, Stacks
from tests.crash.harness import Lab
from tests.witness import boot_s

SECRET = "canary-5e1f"


def log_of(workers: Lab) -> str:
    return workers.workers[0].output.read_text()


def warnings(workers: Lab) -> list[str]:
    return [line for line in log_of(workers).splitlines() if "has been blocked" in line]


def test_sleeping_on_the_loop_is_said_once_and_shown_while_it_lasts(lab: Lab) -> None:  # noqa: F811
    worker = ready(lab, "-c", "2")
    go = lab.directory / "go"
    (job,) = lab.enqueue("sleep_badly", 1, {"ms": 200_000, "secret": SECRET, "go": str(go)})
    shown: list[str] = []
    lab.until(lambda: shown.append(trouble(lab)) or "sleep_badly" in shown[-1], 60, "the list of workers shows it")
    assert re.fullmatch(
        rf"event loop blocked for \d+ s in crashapp\.py:\d+ sleep_badly \(job {job}, sleep_badly\)", shown[-1]
    ), shown
    go.touch()
    lab.until(lambda: "turns again" in log_of(lab), 60, "its end is said")
    lab.until(lambda: not trouble(lab), 60, "it is shown no more")
    (line,) = warnings(lab)
    assert f"job_id={job}" in line
    assert re.search(r"blocked for \d+\.\d s in crashapp\.py:\d+ sleep_badly", line)
    assert re.search(r"turns again; it was blocked for \d+\.\d s", log_of(lab))
    assert SECRET not in log_of(lab)  # C20
    assert worker.stop() == 0


def test_blocking_again_and_again_is_counted_and_said_once(lab: Lab) -> None:  # noqa: F811
    worker = ready(lab, "-c", "1")
    began = boot_s()
    ids = lab.enqueue("sleep_badly", 3, {"ms": 1_200})
    lab.until(lambda: lab.all_ended(ids), 60, "the jobs ended")
    # One in ten seconds: on a machine that has time for them three jobs take four.
    assert 1 <= len(warnings(lab)) <= 1 + (boot_s() - began) // (QUIET_MS / 1000)
    assert worker.stop() == 0


def test_c_code_that_holds_the_lock_is_said_and_killed_with_its_stack(lab: Lab) -> None:  # noqa: F811
    """A bad regular expression on a long text: no thread of the runner can speak, so a signal asks for the stack."""
    worker = ready(lab, "-c", "2")
    # Its time-out is long enough for us to look before it is killed.
    (job,) = lab.enqueue("match_badly", 1, {"secret": SECRET}, timeout="12s", max_attempts=1)
    lab.until(lambda: bool(warnings(lab)), 60, "it is said")
    assert re.search(r"re/__init__\.py:\d+ fullmatch called from crashapp\.py:\d+ match_badly", warnings(lab)[0])
    assert f"job_id={job}" in warnings(lab)[0]
    assert "job_type=match_badly" in warnings(lab)[0]
    answer = ask_runner(AskStacks)
    assert isinstance(answer, Stacks)
    assert answer.stacks[0].is_loop
    assert [frame.function for frame in answer.stacks[0].frames] == ["fullmatch", "match_badly"]
    assert "interpreter lock" in answer.notes[0]
    lab.until(lambda: lab.all_ended([job]), 60, "the job ended")
    (record,) = lab.records([job])
    assert record.state is State.FAILED
    assert re.search(
        r"was killed: its event loop was blocked for \d+ s in re/__init__\.py:\d+ fullmatch "
        r"called from crashapp\.py:\d+ match_badly",
        record.errors[0].message,
    ), record.errors
    assert SECRET not in log_of(lab)  # C20
    assert worker.stop() == 0


def test_a_stopped_runner_is_shown_as_stopped_until_it_goes_on(lab: Lab) -> None:  # noqa: F811
    worker = ready(lab, "-c", "2", "--lease", "10s")
    (runner,) = worker.runners()
    os.kill(runner, signal.SIGSTOP)
    lab.until(lambda: trouble(lab) == "stopped (SIGSTOP)", 60, "the list of workers shows it")
    answer = ask_runner(AskStacks)
    assert isinstance(answer, Stacks)
    assert not answer.stacks
    assert f"kill -CONT {runner}" in answer.notes[0]
    os.kill(runner, signal.SIGCONT)
    lab.until(lambda: not trouble(lab), 60, "it is shown no more")
    lab.until(lambda: "runs again" in log_of(lab), 60, "that is said")
    assert not warnings(lab)  # it was not blocked by a handler
    assert worker.stop() == 0


def test_nothing_is_said_when_it_is_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("PACKHORSE_BLOCKED_MS", "0")
    monkeypatch.setenv("PACKHORSE_BLOCKED", "0")
    worker = ready(lab, "-c", "2")
    ids = lab.enqueue("sleep_badly", 1, {"ms": 1_500})
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    assert not warnings(lab)
    assert worker.stop() == 0
    assert not list(Path(os.environ["XDG_RUNTIME_DIR"]).glob("packhorse/*"))
