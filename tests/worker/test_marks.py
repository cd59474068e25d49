"""What keeper and runner share about the jobs that have begun."""

from __future__ import annotations

import msgspec
import pytest

from packhorse.job import Claimed
from packhorse.worker.marks import BYTES, KEPT, Mark, Marks


@pytest.fixture
def marks() -> Marks:
    return Marks(memoryview(bytearray(BYTES)))


def jobs(*numbers: int) -> list[Claimed]:
    return [
        Claimed(
            f"{number:036d}", "1", "t", b"{}", 1, 4, timeout_ms=0, queue="q", priority=0, created_at_ms=0, ready_at_ms=0
        )
        for number in numbers
    ]


def ids(*numbers: int) -> list[str]:
    return [job.id for job in jobs(*numbers)]


def test_what_is_claimed_has_not_begun_until_it_begins(marks: Marks) -> None:
    first = marks.claimed(jobs(1, 2, 3))
    marks.begin(first + 1)
    assert marks.unbegun(ids(1, 2, 3)) == ids(1, 3)


def test_what_came_with_a_claim_that_the_runner_never_heard_of_has_not_begun(marks: Marks) -> None:
    marks.begin(marks.claimed(jobs(1)))
    assert marks.unbegun(ids(1, 2)) == ids(2)


def test_what_is_over_and_was_claimed_again_unheard_of_has_not_begun(marks: Marks) -> None:
    """The store says that it is held: so it must have come with another claim."""
    number = marks.claimed(jobs(1))
    marks.begin(number)
    marks.over([number])
    assert marks.unbegun(ids(1)) == ids(1)


def test_of_a_job_that_was_claimed_twice_the_last_time_counts(marks: Marks) -> None:
    marks.begin(marks.claimed(jobs(1)))
    second = marks.claimed(jobs(1))
    assert marks.unbegun(ids(1)) == ids(1)
    marks.begin(second)
    assert marks.unbegun(ids(1)) == []


def test_a_job_that_waits_for_a_thread_has_not_begun(marks: Marks) -> None:
    number = marks.claimed(jobs(1))
    mark = Mark(marks, number)
    marks.begin(number)
    mark.wait()
    assert marks.unbegun(ids(1)) == ids(1)
    mark.begin()
    assert marks.unbegun(ids(1)) == []


def fill(marks: Marks, begin: int, count: int) -> None:
    """Claim `count` jobs and end them."""
    for start in range(begin, begin + count, 512):
        batch = range(start, min(start + 512, begin + count))
        first = marks.claimed(jobs(*batch))
        marks.over(range(first, first + len(batch)))


def test_the_ring_goes_round_and_keeps_the_newest(marks: Marks) -> None:
    fill(marks, 0, KEPT + 100)
    first = marks.claimed(jobs(*range(KEPT + 100, 2 * KEPT - 100)))
    assert first == KEPT + 100
    marks.begin(first + 7)
    found = marks.unbegun(ids(*range(KEPT + 100, 2 * KEPT - 100)))
    assert len(found) == KEPT - 201
    assert ids(first + 7)[0] not in found


def test_a_job_that_lasts_while_the_ring_goes_round_is_not_taken_for_unbegun(marks: Marks) -> None:
    """Nor is any other that is not remembered, until it is over: they cannot be told apart."""
    lasting = marks.claimed(jobs(1))
    marks.begin(lasting)
    fill(marks, 10, KEPT - 1)
    assert marks.unbegun(ids(1, 2)) == ids(2)
    waiting = marks.claimed(jobs(3))
    assert marks.unbegun(ids(1, 2, 3)) == ids(3)
    marks.over([lasting])
    assert marks.unbegun(ids(2, 3)) == ids(2, 3)
    marks.over([waiting])
    assert marks.unbegun([]) == []


def test_one_whose_place_is_anothers_cannot_change_that(marks: Marks) -> None:
    late = marks.claimed(jobs(1))
    fill(marks, 10, KEPT - 1)
    other = marks.claimed(jobs(2))
    assert other % KEPT == late % KEPT
    marks.begin(other)
    Mark(marks, late).wait()
    marks.over([late])
    assert marks.unbegun(ids(2)) == []


def test_ids_of_any_length_are_told_apart(marks: Marks) -> None:
    first, second, third = jobs(1, 2, 3)
    odd = [msgspec.structs.replace(first, id="short"), msgspec.structs.replace(second, id="ümläut-" + "x" * 60), third]
    marks.begin(marks.claimed(odd))
    assert marks.unbegun([job.id for job in odd]) == [odd[1].id, odd[2].id]
