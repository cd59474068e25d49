"""The progress that waiting runs have to tell: a heartbeat takes it along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..backends.base import Note
from .run import Run


class Notes:
    """What the runs of one runner want remembered."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = runs

    def __bool__(self) -> bool:
        """Whether a run has progress to tell."""
        return any(run.ctx is not None and run.ctx.has_note for run in self._runs)

    def take(self, count_max: int) -> list[Note]:
        """Take the progress of at most `count_max` runs."""
        runs = [run for run in self._runs if run.ctx is not None and run.ctx.has_note]
        notes = [run.ctx.take_note() for run in runs[:count_max] if run.ctx is not None]
        return [note for note in notes if note is not None]

    def put_back(self, notes: Sequence[Note]) -> None:
        """Take back notes that could not be told, unless there is newer progress."""
        untold = {(note.id, note.token): note for note in notes}
        for run in self._runs:
            note = untold.get((run.job.id, run.job.token))
            if note is not None and run.ctx is not None and not run.ctx.has_note and not run.ctx.settled:
                run.ctx.keep_note(note)
