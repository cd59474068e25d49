"""One number decides everything: the same seed is the same world, in any process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from packhorse.testing.simulator import run_seed
from packhorse.testing.simulator.cli import main
from packhorse.testing.simulator.running import run_many

DIGESTS = "from packhorse.testing.simulator import run_seed; print(*(run_seed(seed).digest for seed in range(40)))"


def test_a_seed_repeats_itself_in_one_process():
    for seed in range(12):
        first = run_seed(seed)
        again = run_seed(seed)
        assert first.trace == again.trace
        assert first.digest == again.digest
        assert len(first.trace) > 10


def test_a_seed_repeats_itself_whatever_ran_before():
    alone = run_seed(5).digest
    for seed in (90, 91):
        run_seed(seed)
    assert run_seed(5).digest == alone


def test_different_seeds_are_different_worlds():
    assert len({run_seed(seed).digest for seed in range(12)}) == 12


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_a_seed_repeats_itself_in_a_process_with_other_hashes(hash_seed):
    ended = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    assert ended.stdout.split() == [run_seed(seed).digest for seed in range(40)]


def test_many_seeds_run_in_several_processes():
    sums = [summary.seeds for summary in run_many(range(60), processes=2)]
    assert sums == [20, 40, 60]


def test_the_command_runs_seeds_and_says_what_they_covered(capsys):
    assert main(["--seeds", "10", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert "10 seeds in" in told
    assert "× start" in told


def test_the_command_replays_one_seed_with_its_trace(capsys):
    assert main(["--seed", "3", "--trace"]) == 0
    told = capsys.readouterr().out
    assert "claim →" in told
    assert "seed 3 kept the promise" in told
    assert run_seed(3).digest in told


def test_the_command_tells_a_failure_with_the_story_of_its_job(capsys, monkeypatch):
    from packhorse.worker.lease import Lease

    monkeypatch.setattr(Lease, "renewed", lambda self, sent_ms: setattr(self, "_from_ms", self._clock.boot_ms()))
    monkeypatch.setattr(Lease, "fresh", lambda self: True)
    assert main(["--seeds", "60", "--processes", "1"]) == 1
    told = capsys.readouterr().out
    assert "after its lease had lapsed" in told
    assert "VIOLATION" in told
    assert "replay one with --seed N --trace" in told
