"""The dead letter queue and the queue as a whole: `list-failed`, `retry`, `retry-all`, `purge`."""

from __future__ import annotations

from typing import Any

import click

from .failing import DONE
from .filtering import confirm, filter_options, page_options, report_ids, state_option, sweep
from .jobs import print_page
from .output import counting, emit_json, note, say
from .shell import Shell, reads


@click.command("list-failed")
@filter_options
@page_options
@reads
def list_failed(shell: Shell, as_json: bool, **filters: Any) -> int:
    """List the jobs that have failed for good, newest first, with their last error."""
    from ..admin import read_query

    query = read_query(**filters)
    return print_page(shell.run(lambda admin: admin.list_failed(query)), as_json, "no failed jobs")


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@reads
def retry(shell: Shell, as_json: bool, ids: tuple[str, ...]) -> int:
    """Start ended jobs over, with all their attempts."""
    return report_ids("rerun", shell.run(lambda admin: admin.rerun(ids)), as_json)


@click.command("retry-all")
@filter_options
@click.option("--dry-run", is_flag=True, help="Only count the jobs that match.")
@reads
def retry_all(shell: Shell, as_json: bool, dry_run: bool, **filters: Any) -> int:
    """Start all failed jobs over, or those that match."""
    from ..admin import read_query

    return sweep(
        shell,
        as_json,
        "rerun",
        read_query(**filters),
        lambda admin, query, dry, progress: admin.rerun_matching(query, dry_run=dry, progress=progress),
        dry_run,
        yes=True,
    )


@click.command()
@click.argument("queue")
@state_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads
def purge(shell: Shell, as_json: bool, queue: str, states: tuple[str, ...], yes: bool) -> int:
    """Delete the jobs of QUEUE, all but those that run; with --state failed, its dead letters only."""
    from ..admin import purged_json, read_states
    from ..job import check_name

    check_name(queue, "queue")
    chosen = read_states(states)
    if not yes:
        confirm(f"delete the {', '.join(chosen) + ' ' if chosen else ''}jobs of queue {queue}?")
    with counting("delete") as progress:
        purged = shell.run(lambda admin: admin.purge(queue, chosen, progress=progress))
    if as_json:
        emit_json(purged_json(queue, purged))
        return DONE
    say(f"deleted {purged.deleted} jobs of queue {queue}")
    if purged.running:
        note(f"{purged.running} are running; stop them with: packhorse jobs cancel --queue {queue} --state running")
    if purged.added:
        note(f"{purged.added} were added meanwhile; pause the queue first: packhorse queues pause {queue}")
    return DONE
