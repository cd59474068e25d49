"""The promise, checked against what is really there: the store, the index, the mail folder, the outbox."""

from __future__ import annotations

import mailbox
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec

from ..job import TERMINAL, State
from ..wording import quantity
from .ledger import Entry, Ledger
from .textindex import Hit, TextIndex

#: Tried in turn until one is found, at last the commonest word there is: a small demo holds few documents.
QUERIES = ("event loop", "binary search", "compress file", "import sys")


class Check(msgspec.Struct, frozen=True):
    """One part of the promise and whether it held. `detail` says what was found."""

    promise: str
    held: bool
    detail: str


class Findings(msgspec.Struct):
    """All that was checked, and the answer of the search."""

    checks: list[Check]
    query: str
    hits: list[Hit]

    @property
    def held(self) -> bool:
        """Whether all of it held."""
        return all(check.held for check in self.checks)


def check_all(ledger: Ledger, directory: Path, max_attempts: int) -> Findings:
    """Check everything the demo promised. Call when the workers have ended."""
    checks = [_all_terminal(ledger), _few_runs(ledger, max_attempts)]
    with closing(TextIndex(directory / "index.db")) as index:
        paths = index.paths()
        checks += [_right_documents(ledger, set(paths)), _no_twins(paths, index.check())]
        query, hits = _search(index)
    mails = [str(message["Message-ID"])[1:].partition("@")[0] for message in _mails(directory / "mail")]
    checks.append(_each_once(ledger, "email", mails, "mail delivered once"))
    notices = [str(line["id"]) for line in _lines(directory / "outbox.jsonl")]
    checks.append(_each_once(ledger, "notification", notices, "notification in the outbox once"))
    if ledger.of("index_document", State.SUCCEEDED):
        checks.append(Check("the index answers a search", bool(hits), f"{quantity(len(hits), 'hit')} for {query!r}"))
    return Findings(checks, query, hits)


def _all_terminal(ledger: Ledger) -> Check:
    ended = len(ledger.in_state(*TERMINAL))
    return Check(
        "every acknowledged job reached a terminal state",
        ended == len(ledger.entries),
        f"{ended:,} of {len(ledger.entries):,}",
    )


def _few_runs(ledger: Ledger, max_attempts: int) -> Check:
    most = max((entry.record.attempt for entry in ledger.entries.values() if entry.record is not None), default=0)
    return Check(
        "no job ran more often than allowed", most <= max_attempts, f"at most {most} of {quantity(max_attempts, 'run')}"
    )


def _right_documents(ledger: Ledger, found: set[str]) -> Check:
    deleted = {entry.planned.path for entry in ledger.of("delete_document", State.SUCCEEDED)}
    wanted = {entry.planned.path for entry in ledger.of("index_document", State.SUCCEEDED)} - deleted
    allowed = {entry.planned.path for entry in ledger.of("index_document", State.FAILED) if _may_have_worked(entry)}
    missing, extra = wanted - found, found - wanted - allowed
    detail = f"{quantity(len(found), 'document')}, {len(missing)} missing, {len(extra)} too many"
    return Check("the index holds exactly the documents whose jobs succeeded", not missing and not extra, detail)


def _may_have_worked(entry: Entry) -> bool:
    """Answer whether a failed job may have done its work all the same: it was lost or stopped between the two."""
    errors = entry.record.errors if entry.record is not None else ()
    return any(error.kind in {"LeaseLapsed", "TimedOut", "ProcessDied"} for error in errors)


def _no_twins(paths: list[str], damage: str | None) -> Check:
    twins = len(paths) - len(set(paths))
    return Check(
        "no document is there twice",
        not twins and damage is None,
        damage or f"{quantity(twins, 'twin')}; index is sound",
    )


def _each_once(ledger: Ledger, job_type: str, found: list[str], promise: str) -> Check:
    times = Counter(found)
    entries = ledger.of(job_type, State.SUCCEEDED)
    wrong = [entry.id for entry in entries if times.pop(entry.id, 0) != 1]
    failed = {entry.id for entry in ledger.of(job_type, State.FAILED) if _may_have_worked(entry)}
    strangers = set(times) - failed
    return Check(
        f"each {promise}",
        not wrong and not strangers,
        f"{len(entries):,} succeeded, {len(wrong)} not once, {quantity(len(strangers), 'stranger')}",
    )


def _mails(folder: Path) -> list[mailbox.MaildirMessage]:
    if not folder.is_dir():
        return []
    with closing(mailbox.Maildir(folder, create=False)) as box:
        return list(box)


def _lines(file: Path) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def _search(index: TextIndex) -> tuple[str, list[Hit]]:
    for query in (*QUERIES, index.commonest()):
        hits = index.search(query)
        if hits:
            return query, hits
    return QUERIES[-1], []
