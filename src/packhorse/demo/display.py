"""What people see of the demo: progress while it runs, and the account at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..job import JobRecord, State
from ..observe.logs import one_line
from ..wording import quantity
from .checking import Findings
from .files import DIRECTORY_DEFAULT
from .ledger import Entry, Ledger, Snapshot

_LINE_GAP_MS = 2_000
_WIDTH_PLAIN = 110
_ERROR_CHARS_MAX = 100
_FAILED_SHOWN_MAX = 25
_RECOVERED_SHOWN_MAX = 8
_SHOWN_STATES = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class _Bar(Progress):
    """A bar with a line of text below, so that both fit a terminal of 80 columns."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.note)


class Display:
    """Progress as a live bar on a terminal, as a line every two seconds elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._bar = _Bar(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("jobs", total=None)
        self._line_ms = -_LINE_GAP_MS

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. Idempotent."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line of plain text above the bar."""
        self.console.print(escape(one_line(text)), soft_wrap=True)

    def update(self, snapshot: Snapshot, total: int, elapsed_ms: int, *, last: bool = False) -> None:
        """Show how far the jobs are."""
        note = progress_note(snapshot, elapsed_ms)
        self._bar.note = note
        self._bar.update(self._task, completed=snapshot.done, total=total)
        if not self.console.is_terminal and elapsed_ms - self._line_ms >= (1 if last else _LINE_GAP_MS):
            self._line_ms = elapsed_ms
            self.say(f"{elapsed_ms / 1000:6.1f} s  {snapshot.done:,}/{total:,} done  {note}")

    # ---- the account at the end ------------------------------------------------------------------------

    def show_counts(self, ledger: Ledger) -> None:
        """Print a table of jobs by type and state."""
        table = Table(title="Jobs by type and state", title_justify="left")
        table.add_column("type")
        for heading in (*_SHOWN_STATES, "not ended", "extra runs", "runner died"):
            table.add_column(str(heading), justify="right")
        by_type: dict[str, list[Entry]] = {}
        for entry in ledger.entries.values():
            by_type.setdefault(entry.planned.type, []).append(entry)
        for job_type, entries in sorted(by_type.items()):
            table.add_row(job_type, *_count(entries))
        table.add_section()
        table.add_row("all", *_count(ledger.entries.values()), style="bold")
        self.console.print(table)

    def show_recovered(self, ledger: Ledger) -> None:
        """Print the jobs whose runner died while it held them, and how they ended."""
        entries = [entry for entry in ledger.entries.values() if entry.lapses]
        if not entries:
            return
        table = Table(title=f"Jobs whose runner died, made good: {len(entries)}", title_justify="left")
        for heading in ("id", "type", "ended", "runs"):
            table.add_column(heading, no_wrap=heading != "type")
        for entry in entries[:_RECOVERED_SHOWN_MAX]:
            assert entry.record is not None
            runs = f"{entry.record.attempt} of {entry.record.max_attempts}"
            table.add_row(entry.id, entry.planned.type, str(entry.state), runs)
        self.console.print(table)
        if len(entries) > _RECOVERED_SHOWN_MAX:
            self.say(f"... and {len(entries) - _RECOVERED_SHOWN_MAX} more")

    def show_dead_letters(self, ledger: Ledger) -> None:
        """Print the dead letter queue with each job's last error."""
        failed = ledger.in_state(State.FAILED)
        self.say("")
        self.say(f"Dead letter queue: {quantity(len(failed), 'job')}")
        for entry in failed[:_FAILED_SHOWN_MAX]:
            assert entry.record is not None
            runs = f"{entry.record.attempt} of {quantity(entry.record.max_attempts, 'run')}"
            self.say(f"  {entry.id}  {entry.planned.type}, {runs}")
            self.say(f"      {_last_error(entry.record)}")
        if len(failed) > _FAILED_SHOWN_MAX:
            self.say(f"  ... and {len(failed) - _FAILED_SHOWN_MAX} more; packhorse list-failed shows all")
        self.say("")

    def show_findings(self, findings: Findings) -> None:
        """Print what the search found and which promises held."""
        self.say(f"Search in the index for {findings.query!r}:")
        for hit in findings.hits:
            self.say(f"  {hit.path}: {hit.snippet[:160]}")
        self.console.print()
        for check in findings.checks:
            mark = "[green]ok    [/]" if check.held else "[bold red]BROKEN[/]"
            self.console.print(f"{mark} {escape(check.promise)}: {escape(check.detail)}", soft_wrap=True)

    def show_next(self, directory: Path, url: str) -> None:
        """Print where the files are and what to type next."""
        shown = _short(directory)
        self.say("")
        self.say(f"Files in {shown}: jobs.db (the queue), index.db (full text), reports/, mail/, images/resized/,")
        self.say("outbox.jsonl, worker.log. Look closer:")
        self.say(f"  export PACKHORSE_URL={url}")
        if directory != Path(DIRECTORY_DEFAULT).absolute():
            self.say(f"  export PACKHORSE_DEMO_DIR={shown}")
        for line in (
            "packhorse stats",
            "packhorse list-failed",
            """packhorse submit -t math -p '{"operation":"fibonacci","value":10}'""",
            "packhorse retry-all",
            "packhorse worker packhorse.demo.jobs:app        # works them off; Ctrl+C ends it",
        ):
            self.say(f"  {line}")


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_PLAIN)


def _short(directory: Path) -> str:
    here = Path.cwd()
    return str(directory.relative_to(here)) if directory.is_relative_to(here) else str(directory)


def progress_note(snapshot: Snapshot, elapsed_ms: int) -> str:
    """Answer the numbers beside the bar."""
    return (
        f"{snapshot.done * 1000 // max(1, elapsed_ms):,}/s  running {snapshot.states[State.RUNNING]}  "
        f"retries {snapshot.retries}  failed {snapshot.states[State.FAILED]}  recovered {snapshot.recovered}"
    )


def _count(entries: Iterable[Entry]) -> list[str]:
    listed = list(entries)
    counts = [sum(entry.state is state for entry in listed) for state in _SHOWN_STATES]
    runs_again = sum(max(0, entry.record.attempt - 1) for entry in listed if entry.record is not None)
    lost = sum(entry.lapses > 0 for entry in listed)
    numbers = [*counts, len(listed) - sum(counts), runs_again, lost]
    return [f"{number:,}" if number else "-" for number in numbers]


def _last_error(record: JobRecord) -> str:
    if not record.errors:
        return ""
    last = record.errors[-1]
    return one_line(f"{last.kind}: {last.message}")[:_ERROR_CHARS_MAX]
