"""The oracle's rules for parents and children: who waits, who is freed, who ends because of another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...job import LIVE, State
from .book import Book, Entry, Violation

_BAD = frozenset({State.FAILED, State.CANCELLED})


class Families:
    """Moves children in the book when their parents end, start over or go."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def join(self, entry: Entry) -> None:
        """Let a new job wait for its parents, or end because of one. An unknown one counts as failed."""
        book = self._book
        for parent in book.parents(entry):
            parent.children[entry.id] = entry
        bad = [job_id for job_id in entry.after if job_id not in book.jobs or book.jobs[job_id].state in _BAD]
        if bad and entry.after_failed == "cancel":
            self._cancel(entry, bad[0])
        elif not self._wait(entry):
            book.start_over(entry, entry.delay_ms)

    def _wait(self, entry: Entry) -> bool:
        """Make a job wait for those of its parents that live; answers whether there are any."""
        entry.waiting_on = {parent.id: parent for parent in self._book.parents(entry) if parent.state in LIVE}
        for parent in entry.waiting_on.values():
            parent.children[entry.id] = entry  # it may have been deleted and enqueued anew
        return bool(entry.waiting_on)

    def _cancel(self, entry: Entry, parent: str) -> None:
        entry.held_by = parent
        entry.waiting_on = {}
        self._book.count("cancelled by a parent")
        self._book.say("store", f"{entry.label} is cancelled because of a parent")
        self._book.move(entry, State.CANCELLED)

    def serve(self) -> None:
        """Tell the children of all that ended: the last parent frees them, a bad end may cancel them."""
        book = self._book
        while book.unserved:
            parent = book.unserved.pop(0)
            for child in list(parent.children.values()):
                if child.state is State.WAITING and child.waiting_on.pop(parent.id, None) is not None:
                    self._told(child, parent)

    def _told(self, child: Entry, parent: Entry) -> None:
        if parent.state in _BAD and child.after_failed == "cancel":
            self._cancel(child, parent.id)
        elif not child.waiting_on:
            self._book.count("freed by parents")
            self._book.count("freed by a parent that failed", parent.state in _BAD)
            self._book.say("store", f"{child.label} has no parents to wait for any more")
            self._book.start_over(child, child.delay_ms)

    def start_over(self, entry: Entry, delay_ms: int) -> None:
        """Rerun a job: it waits for parents that live."""
        entry.held_by = None
        entry.delay_ms = delay_ms
        if self._wait(entry):
            self._book.count("rerun waits for a parent")
            self._book.move(entry, State.WAITING)
        else:
            self._book.start_over(entry, delay_ms)

    def revive(self, parent: Entry, takes_key: Callable[[Entry], bool]) -> None:
        """Let children that were cancelled because of a job wait for it again, and theirs in turn."""
        revived = deque([parent])
        while revived:
            for child in revived.popleft().children.values():
                if child.state is not State.CANCELLED or child.held_by not in self._book.jobs:
                    continue
                if any(other.state in _BAD for other in self._book.parents(child)):
                    continue
                if not takes_key(child):
                    continue
                child.held_by = None
                child.life += 1
                self._wait(child)
                self._book.count("revived with a parent")
                self._book.say("store", f"{child.label} waits for its parents again")
                self._book.move(child, State.WAITING)
                revived.append(child)

    def leave(self, entry: Entry) -> None:
        """Take a job out that somebody deleted. For its children it counts as cancelled if it had not ended."""
        if self._book.is_live(entry):
            entry.waiting_on = {}
            self._book.move(entry, State.CANCELLED)
        self._book.remove(entry)

    def check_start(self, entry: Entry) -> None:
        """Check that no parent holds a job that is claimed. Raises Violation."""
        if entry.state is State.WAITING or entry.waiting_on:
            names = ", ".join(parent.label for parent in entry.waiting_on.values())
            raise Violation(f"{entry.label} was claimed while it waits for {names}")
        if entry.held_by is not None:
            raise Violation(f"{entry.label} was claimed though a parent ended badly and its policy is to be cancelled")
