"""The group `jobs`, and its commands `list`, `show`, `cancel`, `rerun` and `delete`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .failing import DONE
from .filtering import filter_options, page_options, state_option, steer, sweep_options
from .lazy import Entry, LazyGroup
from .output import Instant, emit_fields, emit_json, emit_table, note, shorten
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..backends.base import Page

JOBS = {
    "list": Entry("packhorse.cli.jobs:list_jobs", "List jobs, newest first."),
    "show": Entry("packhorse.cli.jobs:show", "Show all that is kept of a job."),
    "cancel": Entry("packhorse.cli.jobs:cancel", "Stop jobs, by id or by filter."),
    "rerun": Entry("packhorse.cli.jobs:rerun", "Start ended jobs over, by id or by filter."),
    "edit": Entry("packhorse.cli.editing:edit", "Start an ended job over with something about it changed."),
    "why": Entry("packhorse.cli.why:why", "Tell what holds a job now, and what would free it."),
    "delete": Entry("packhorse.cli.jobs:delete", "Delete jobs, by id or by filter."),
}

_ERROR_CHARS_SHOWN = 80


@click.command(cls=LazyGroup, entries=JOBS)
def jobs() -> None:
    """List, show, explain, cancel, rerun, edit and delete jobs."""


@click.command("list")
@state_option
@filter_options
@click.option("--created-from", metavar="INSTANT", help="Only jobs enqueued then or later: 2030-01-31T09:00:00Z.")
@click.option("--created-before", metavar="INSTANT", help="Only jobs enqueued before.")
@click.option("--oldest-first", is_flag=True, help="Oldest first instead of newest first.")
@page_options
@reads
def list_jobs(shell: Shell, as_json: bool, **filters: Any) -> int:
    """List jobs, newest first, a page at a time."""
    from ..admin import read_query

    query = read_query(**filters)
    return print_page(shell.run(lambda admin: admin.find(query)), as_json, "no jobs match")


def print_page(page: Page, as_json: bool, empty: str, *, ended: bool = False) -> int:
    """Print a page of jobs, with when each came or, if all have ended, when that was; say on stderr how to go on."""
    from ..admin import error_text, page_json
    from ..job import State

    if as_json:
        emit_json(page_json(page))
        return DONE
    if not page.jobs:
        note(empty)
        return DONE
    rows = []
    for job in page.jobs:
        error = error_text(job.errors[-1]) if job.errors and job.state is not State.SUCCEEDED else ""
        rows.append(
            [
                job.id,
                job.type,
                job.queue,
                job.state,
                f"{job.attempt}/{job.max_attempts}",
                Instant(job.finished_at_ms if ended else job.created_at_ms),
                shorten(error.partition("\n")[0], _ERROR_CHARS_SHOWN),
            ]
        )
    at = "ended" if ended else "created"
    emit_table(["id", "type", "queue", "state", "attempt", at, "error"], rows, right=["attempt"], below="error")
    if page.next is not None:
        note(f"there are more; add --cursor {page.next}")
    return DONE


@click.command()
@click.argument("job_id", metavar="ID")
@reads
def show(shell: Shell, as_json: bool, job_id: str) -> int:
    """Show all that is kept of a job, with the history of its errors."""
    from ..admin import job_json

    shown = job_json(shell.run(lambda admin: admin.show(job_id)))
    if as_json:
        emit_json(shown)
        return DONE
    errors = shown.pop("errors")
    shown["payload"], shown["result"] = (
        None if value is None else json.dumps(value) for value in (shown["payload"], shown["result"])
    )
    shown["tags"], shown["after"] = (", ".join(shown[name]) or None for name in ("tags", "after"))
    shown["meta"] = ", ".join(f"{name}={text}" for name, text in shown["meta"].items()) or None
    shown["cancel_requested"] = "yes" if shown["cancel_requested"] else None
    if shown["after"] is None:
        shown["after_failed"] = shown["waiting_for"] = None
    fields = list(shown.items())
    for error in errors:
        text = f"attempt {error['attempt']} at {error['at']}: {error['kind']}: {error['message']}"
        # Line by line, so that a traceback reads as one and each line is still escaped.
        fields += [("error", text), *(("", line) for line in error["traceback"].splitlines())]
    emit_fields(fields)
    return DONE


@click.command()
@sweep_options
@reads
def cancel(shell: Shell, as_json: bool, **options: Any) -> int:
    """Stop jobs, by id or by filter.

    A job that runs is stopped by its worker; any other will never start. A filter takes the jobs that have not ended.
    """
    return steer(
        shell,
        as_json,
        "cancel",
        lambda admin, ids: admin.cancel(ids),
        lambda admin, query, dry_run, progress: admin.cancel_matching(query, dry_run=dry_run, progress=progress),
        options,
    )


@click.command()
@sweep_options
@click.option("--in", "delay", metavar="DURATION", help="Start them after this time: 30s, 5m, 2h.")
@reads
def rerun(shell: Shell, as_json: bool, delay: str | None, **options: Any) -> int:
    """Start ended jobs over with all their attempts, by id or by filter.

    A filter takes failed jobs only, unless --state names others.
    """
    from ..settings import duration_ms

    delay_ms = 0 if delay is None else duration_ms(delay, "--in")
    return steer(
        shell,
        as_json,
        "rerun",
        lambda admin, ids: admin.rerun(ids, delay_ms=delay_ms),
        lambda admin, query, dry_run, progress: admin.rerun_matching(
            query, delay_ms=delay_ms, dry_run=dry_run, progress=progress
        ),
        options,
    )


@click.command()
@sweep_options
@reads
def delete(shell: Shell, as_json: bool, **options: Any) -> int:
    """Delete jobs and all that is kept of them, by id or by filter. Jobs that run stay."""
    return steer(
        shell,
        as_json,
        "delete",
        lambda admin, ids: admin.delete(ids),
        lambda admin, query, dry_run, progress: admin.delete_matching(query, dry_run=dry_run, progress=progress),
        options,
    )
