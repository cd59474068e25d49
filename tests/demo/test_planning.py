"""What a demo enqueues: as many jobs as asked, the same for the same seed, failures where they are meant."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from packhorse.chance import Chance
from packhorse.demo.files import standard_library
from packhorse.demo.planning import Plan, find_documents, make_plan

DOCUMENTS = [f"{i}.py" for i in range(500)]


def plan(tasks: int | None, *, max_attempts: int = 3, seed: int = 1, kill: bool = True) -> Plan:
    return make_plan(DOCUMENTS, tasks, max_attempts, Chance(seed), kill=kill)


@pytest.mark.parametrize("tasks", [*range(1, 60), 100, 499, 500, 501, 5_000])
def test_as_many_jobs_as_asked(tasks: int) -> None:
    made = plan(tasks)

    assert made.total == tasks
    assert made.victim in made.first
    left = [job for job in made.first if job.type == "index_document" and not job.doomed]
    assert len(left) > made.deletions


def test_without_a_number_every_document_has_its_job() -> None:
    made = plan(None)

    paths = [job.path for job in made.first if job.type == "index_document"]
    assert len(paths) == 500
    assert len(set(paths) & set(DOCUMENTS)) == 499  # one job is for a file that is not there


def test_every_type_is_there_from_eight_jobs_on() -> None:
    made = plan(8)

    assert Counter(job.type for job in made.first) == {
        "index_document": 2,
        "math": 1,
        "email": 1,
        "notification": 1,
        "image_resize": 1,
    }
    assert (made.deletions, made.final_report) == (1, True)


def test_the_same_seed_makes_the_same_plan() -> None:
    assert plan(200, seed=7) == plan(200, seed=7)
    assert plan(200, seed=7) != plan(200, seed=8)


def test_a_share_of_the_jobs_fails_for_a_while_and_a_few_for_good() -> None:
    made = plan(1_000)

    transient = [job for job in made.first if job.fault.startswith(("before", "after")) and not job.doomed]
    assert len(transient) == 100
    assert all(job.fault.partition(":")[2] in {"1", "2"} for job in transient)
    assert Counter(job.doomed for job in made.first if job.doomed) == {
        "injected: permanent": 5,
        "injected: in every run": 3,
        "a number out of bounds": 1,
        "not an address": 1,
        "a damaged picture": 1,
        "a file that is not there": 1,
    }


def test_with_one_attempt_a_job_that_fails_is_doomed() -> None:
    assert all(job.doomed for job in plan(100, max_attempts=1).first if job.fault.startswith(("before", "after")))


def test_without_kill_no_job_waits_for_it() -> None:
    made = plan(100, kill=False)

    assert made.victim is None
    assert not [job for job in made.first if job.fault == "hang"]


def test_first_sum_is_the_one_everybody_knows() -> None:
    (sums,) = [job for job in plan(8).first if job.type == "math"]
    assert sums.payload == {"operation": "fibonacci", "value": 10}


def test_the_standard_library_is_found_without_installed_packages() -> None:
    found = find_documents(standard_library())

    assert "json/encoder.py" in found
    assert not [path for path in found if "site-packages" in path or not path.endswith((".py", ".txt"))]
    assert all((Path(standard_library()) / path).is_file() for path in found[:20])


def test_links_are_left_out(tmp_path: Path) -> None:
    """Debian's sitecustomize.py is a link out of the standard library, where no job may read."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "real.py").write_text("x = 1\n")
    (tmp_path / "outside.py").write_text("y = 2\n")
    (tree / "link.py").symlink_to(tmp_path / "outside.py")
    assert find_documents(tree) == ["real.py"]
