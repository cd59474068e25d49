"""Which jobs of a runner have begun, put down in memory that its keeper shares.

When a runner dies, whatever killed it may have been a handler that ran, and never one that had not begun. So its keeper
gives back what was only claimed, and no attempt is lost. What is put down errs on one side: a job that began is never
taken for one that did not, for then a job that kills its process would do so for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from ..job import Claimed

#: Jobs that are remembered, the last that were claimed; a runner holds at most 4,000 that do not run. A power of two.
KEPT = 8_192
_ID_CHARS = 36
#: Jobs claimed so far, and of those the live ones that are not remembered any more. 8 bytes each.
_COUNT, _STRAYS = range(2)
_NUMBERS_BYTES = 16
#: What it takes of the shared memory.
BYTES = _NUMBERS_BYTES + KEPT + KEPT * _ID_CHARS

_OVER, _WAITS, BEGAN = range(3)
_WHOLE = {_ID_CHARS}
_id_of = attrgetter("id")


class Marks:
    """A ring of the jobs that a runner claimed last: whether each began, and is over. The runner writes it."""

    def __init__(self, memory: memoryview) -> None:
        self._numbers = memory[:_NUMBERS_BYTES].cast("Q")
        self._ids = memory[_NUMBERS_BYTES + KEPT : BYTES]
        #: At a job's number modulo KEPT: how far it is. The runner writes BEGAN here by itself, for each job.
        self.states = memory[_NUMBERS_BYTES : _NUMBERS_BYTES + KEPT]

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self._numbers, self._ids, self.states):
            view.release()

    def claimed(self, jobs: Sequence[Claimed]) -> int:
        """Put down jobs that have not begun, at most KEPT; answers the number of the first, the others follow it."""
        first = self._numbers[_COUNT]
        place = first % KEPT
        room = KEPT - place
        parts = [(start, part) for start, part in ((place, jobs[:room]), (0, jobs[room:])) if part]
        for start, part in parts:
            end = start + len(part)
            self._numbers[_STRAYS] += len(part) - bytes(self.states[start:end]).count(_OVER)
            # Should the process die between two of these lines, they count as begun.
            self.states[start:end] = bytes((BEGAN,)) * len(part)
            self._ids[start * _ID_CHARS : end * _ID_CHARS] = _written(map(_id_of, part))
        self._numbers[_COUNT] = first + len(jobs)
        for start, part in parts:
            self.states[start : start + len(part)] = bytes((_WAITS,)) * len(part)
        return first

    def begin(self, number: int) -> None:
        """Put down that a job begins. From any thread."""
        self.states[number % KEPT] = BEGAN

    def wait(self, number: int) -> None:
        """Put down that a job has not begun after all, but waits for a thread or a process."""
        if self._remembers(number):
            self.states[number % KEPT] = _WAITS

    def over(self, numbers: Iterable[int]) -> None:
        """Put down that jobs are not held any more, as the store has said."""
        oldest, states = self._numbers[_COUNT] - KEPT, self.states
        for number in numbers:
            if number >= oldest:
                states[number % KEPT] = _OVER
            else:
                self._numbers[_STRAYS] -= 1

    def unbegun(self, ids: Iterable[str]) -> list[str]:
        """Answer those of `ids`, which the runner still holds, that did not begin. For the keeper, once it is dead.

        What is not remembered as live came with a claim that the runner did not hear of any more, unless it held jobs
        that are older than what is remembered.
        """
        count = self._numbers[_COUNT]
        written = bytes(self._ids)
        states: dict[bytes, int] = {}
        for number in range(max(0, count - KEPT), count):  # of a job that was claimed twice the last time counts
            place = number % KEPT
            states[written[place * _ID_CHARS : (place + 1) * _ID_CHARS]] = self.states[place]
        unbegun = (_WAITS,) if self._numbers[_STRAYS] else (_WAITS, _OVER)
        return [job_id for job_id in ids if states.get(_written((job_id,)), _OVER) in unbegun]

    def _remembers(self, number: int) -> bool:
        return number + KEPT >= self._numbers[_COUNT]


class Mark:
    """The mark of one job that may have to wait for a thread or a process."""

    __slots__ = ("_marks", "_number")

    def __init__(self, marks: Marks, number: int) -> None:
        self._marks = marks
        self._number = number

    def wait(self) -> None:
        """Put down that it has not begun."""
        self._marks.wait(self._number)

    def begin(self) -> None:
        """Put down that it begins. From any thread."""
        self._marks.begin(self._number)


def _written(ids: Iterable[str]) -> bytes:
    """Answer ids as they are put down, _ID_CHARS each: nearly all are that long, as ours are."""
    ids = list(ids)
    if not set(map(len, ids)) <= _WHOLE:
        ids = [f"{job_id:{_ID_CHARS}.{_ID_CHARS}}" for job_id in ids]
    return "".join(ids).encode("latin-1", "replace")
