"""kill -9 under workflows and steps: no job before those before it, no job for nothing, no kept step done again."""

import os
import random
import signal
import time
from collections import Counter, defaultdict
from contextlib import suppress

import pytest

from packhorse import Packhorse, Workflow, WorkflowRun, chain, chord
from packhorse.job import TERMINAL, JobRecord, State

from .harness import Lab, result

FULL = os.environ.get("PACKHORSE_FULL") == "1"
#: Longer than a machine stands still: a lease that ran out under a living process would be a reason for a second run.
WORKER = ("-c", "20", "-p", "2", "--lease", "8s")


class Storm:
    """Two workers, of which something is killed every second until the storm is told that all is done."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.chance = random.Random(seed)
        self.workers = [lab.worker(*WORKER), lab.worker(*WORKER)]
        self.killed: set[int] = set()

    def until_ended(self, runs: list[WorkflowRun] | list[str], seconds: float, limit_s: float) -> None:
        """Kill for `seconds` from when jobs run, then let the rest end in peace."""
        self.lab.until(lambda: bool(self.lab.lines()), 60, "jobs run")
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(1)  # the rhythm of the storm, not a wait for something
            # On a slow machine workers take longer to start: those would be hit that run nothing.
            self.lab.until(lambda: bool(self._busy()) or self._all_ended(runs), 60, "jobs run again")
            if not self._strike() and self._all_ended(runs):
                return
        self.lab.until(lambda: self._all_ended(runs), limit_s, "everything ended")

    def _all_ended(self, runs: list[WorkflowRun] | list[str]) -> bool:
        ids = [run for run in runs if isinstance(run, str)]
        return self.lab.all_ended(ids) and all(run.ended for run in runs if isinstance(run, WorkflowRun))

    def _busy(self) -> list[tuple[int, int]]:
        """The runners that run a job, each with the number of its worker."""
        busy = self.lab.busy()
        return [(index, pid) for index, worker in enumerate(self.workers) for pid in worker.runners() if pid in busy]

    def _strike(self) -> bool:
        """Kill one that runs a job, or its whole worker; answers whether there was any."""
        hit = self._busy()
        if not hit:
            return False
        index, pid = self.chance.choice(hit)
        if self.chance.random() < 0.3:
            self.killed.update(self.workers[index].kill_all())
            self.workers[index] = self.lab.worker(*WORKER)
        else:
            self.killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    def over(self) -> None:
        for worker in self.workers:
            assert worker.stop() == 0


class Line:
    """One line of the log; `at` is its number: lines are appended whole, so that is an order over all processes."""

    def __init__(self, at: int, text: str) -> None:
        self.at = at
        self.what, self.job, attempt, pid, _ = text.split()
        self.attempt, self.pid = int(attempt), int(pid)


def log(lab: Lab) -> dict[str, list[Line]]:
    found = defaultdict(list)
    for at, text in enumerate(lab.whole_lines()):
        line = Line(at, text)
        found[line.job].append(line)
    return found


def random_graph(app: Packhorse, chance: random.Random, size: int) -> Workflow:
    wf = app.workflow(name="random")
    for number in range(size):
        wf.add(
            f"n{number}",
            app.spec("node", {"ms": chance.randrange(100), "fails": chance.random() < 0.1}, {"max_attempts": 100}),
            after=[f"n{parent}" for parent in chance.sample(range(number), min(number, chance.randrange(4)))],
            after_failed=chance.choice(["cancel", "continue"]),
        )
    return wf


def check(lab: Lab, run: WorkflowRun, killed: set[int]) -> dict[str, JobRecord]:
    """Every node ended once and legally: none before its parents, none again without a reason, none for nothing."""
    lines = log(lab)
    records = {job.id: job for job in lab.records([job.id for job in run.jobs.values()])}
    for job in records.values():
        assert job.state in TERMINAL
        assert job.waiting_for == 0
        mine = lines.get(job.id, [])
        starts = [line for line in mine if line.what == "start"]
        bad = [parent for parent in job.after if records[parent].state is not State.SUCCEEDED]
        if job.after_failed == "cancel" and bad:
            assert (job.state, starts) == (State.CANCELLED, [])
            assert job.errors[-1].kind == "ParentFailed"
            continue
        assert job.state is not State.CANCELLED
        story = f"{job.node}: {[(line.what, line.attempt, line.pid, line.at) for line in mine]} {job.errors}"
        assert 1 <= len(starts) <= job.attempt, story
        assert all(start.pid in killed for start in starts[:-1]), f"ran again although nobody was killed: {story}"
        for parent in job.after:
            last = lines[parent][-1].at if parent in lines else -1
            assert last < mine[0].at, f"started before {records[parent].node} had ended (line {last}): {story}"
    return {str(job.node): job for job in records.values()}


@pytest.mark.timeout(600)
def test_workflows_in_a_kill_storm(lab: Lab) -> None:
    """Row 10: a random graph of 200 with failures, a chain of 500, a fan-in, diamonds; workers are killed meanwhile."""
    size, deep, wide = (200, 500, 10_000) if FULL else (150, 100, 500)
    chance = random.Random(20261122)
    lab.do(lambda backend: backend.migrate())
    with Packhorse(lab.url) as app:

        def job(name: str = "node", **payload: object) -> object:
            return app.spec(name, payload, {"max_attempts": 100})

        graph = random_graph(app, chance, size).enqueue()
        long = app.workflow(chain(*(job(ms=10) for _ in range(deep)))).enqueue()
        fan = app.workflow(chord([job(ms=200 if FULL else 1_000) for _ in range(wide)], job("join"))).enqueue()
        diamonds = []
        for fails in (False, True):
            wf = app.workflow()
            wf.add("top", job(ms=200))
            wf.add("left", job(ms=300, fails=fails), after="top")
            wf.add("right", job(ms=100), after="top")
            wf.add("strict", job("join"), after=["left", "right"])
            wf.add("join", job("join"), after=["left", "right"], after_failed="continue")
            diamonds.append(wf.enqueue())
        storm = Storm(lab, 7)
        storm.until_ended([graph, long, fan, *diamonds], 90 if FULL else 15, 300)
        storm.over()

        nodes = check(lab, graph, storm.killed)
        assert {job.state for job in nodes.values()} == {State.SUCCEEDED, State.FAILED, State.CANCELLED}
        assert {job.state for job in check(lab, long, storm.killed).values()} == {State.SUCCEEDED}
        assert result(check(lab, fan, storm.killed)["join"]) == {"sum": wide, "failed": 0}
        whole, broken = (check(lab, diamond, storm.killed) for diamond in diamonds)
        assert result(whole["join"]) == result(whole["strict"]) == {"sum": 2, "failed": 0}
        assert result(broken["join"]) == {"sum": 1, "failed": 1}
        assert broken["strict"].state is State.CANCELLED
        starts = Counter(line.job for lines in log(lab).values() for line in lines if line.what == "start")
    assert storm.killed, "the storm killed nobody"
    assert max(starts.values()) > 1, "the storm hit no running job"


@pytest.mark.timeout(300)
def test_steps_in_a_kill_storm(lab: Lab) -> None:
    """What an attempt did is not done again, but for the one step that was under way when it was killed."""
    step_ms, seconds = (1_000, 60) if FULL else (1_200, 6)
    ids = lab.enqueue("five_steps", 60, {"ms": step_ms}, max_attempts=100, timeout="60s")
    storm = Storm(lab, 11)
    storm.until_ended(ids, seconds, 120)
    storm.over()
    records = {job.id: job for job in lab.records(ids)}
    assert {job.state for job in records.values()} == {State.SUCCEEDED}
    again = 0
    for job_id, lines in log(lab).items():
        steps: dict[int, list[str]] = defaultdict(list)
        for line in lines:
            if line.what.startswith("step"):
                steps[line.attempt].append(line.what)
        again += len(steps) - 1
        done: set[str] = set()
        for attempt in sorted(steps):
            assert not done.intersection(steps[attempt]), f"done again: {job_id} {dict(steps)}"
            assert len(set(steps[attempt])) == len(steps[attempt])
            done.update(steps[attempt][:-1])  # the last may not have been kept
        made = result(records[job_id])
        for number, attempt in enumerate(made):
            assert f"step{number}" in steps[attempt], "a step that was kept was never done"
    assert again, "the storm hit no job between its steps"


def test_a_kill_between_two_steps_and_one_within_a_step(lab: Lab) -> None:
    ids = lab.enqueue("five_steps_and_kills", 1, max_attempts=10)
    worker = lab.worker("-c", "2", "--lease", "30s")  # its keeper gives back at once what a dead runner held
    lab.until(lambda: lab.all_ended(ids), 60, "the job ended")
    (record,) = lab.records(ids)
    assert record.state is State.SUCCEEDED
    assert Counter(line.what for line in log(lab)[ids[0]]) == {
        "start": 3,
        "step0": 1,
        "step1": 1,
        "step2": 1,
        "step3": 2,  # under way when it was killed
        "step4": 1,
    }
    assert result(record) == [1, 1, 2, 3, 3]
    assert set(record.steps or {}) == {f"step{number}" for number in range(5)}
    assert worker.stop() == 0
