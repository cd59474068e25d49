"""The dead letter queue and the queue as a whole: `list-failed`, `retry`, `retry-all`, `purge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..wording import quantity
from .failing import DONE
from .filtering import confirm, filter_options, is_given, page_options, report_ids, state_option, sweep
from .jobs import print_page
from .output import Instant, counting, emit_json, emit_table, note, say, shorten
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..admin_failed import FailedGroups
    from ..job import State


_TITLE_CHARS_SHOWN = 100

group_option = click.option(
    "--group", metavar="FINGERPRINT", help="Only failed jobs with this error; see list-failed --group."
)


@click.command("list-failed")
@filter_options
@page_options
@click.option("--group", "by_group", is_flag=True, help="Count them by what went wrong instead, the largest first.")
@reads
def list_failed(shell: Shell, as_json: bool, by_group: bool, **filters: Any) -> int:
    """List the jobs that have failed for good, newest first, with their last error; or the errors, by --group.

    Errors are the same where their kind, their text without numbers, ids and quoted parts, and the place in the code
    are.
    """
    from ..admin import read_query

    query = read_query(**filters)
    if not by_group:
        return print_page(shell.run(lambda admin: admin.list_failed(query)), as_json, "no failed jobs", ended=True)
    if query.cursor is not None:
        raise click.UsageError("--group counts all failed jobs that match; leave --cursor out")
    with counting("group") as progress:
        found = shell.run(lambda admin: admin.group_failed(query, progress=progress))
    return _print_groups(found, query.limit, as_json)


def _print_groups(found: FailedGroups, limit: int, as_json: bool) -> int:
    from ..admin_failed import groups_json

    if as_json:
        emit_json(groups_json(found))
        return DONE
    if not found.jobs:
        note("no failed jobs")
        return DONE
    shown = [*found.groups[:limit], *([found.others] if found.others is not None else [])]
    emit_table(
        ["fingerprint", "jobs", "first", "last", "types", "example", "error"],
        [
            [
                group.fingerprint,
                group.jobs,
                Instant(group.first_at_ms),
                Instant(group.last_at_ms),
                ",".join(name for name, _ in group.types.most_common(3)) + (",…" if len(group.types) > 3 else ""),
                group.example,
                shorten(group.title, _TITLE_CHARS_SHOWN),
            ]
            for group in shown
        ],
        right=["jobs"],
        below="error",
    )
    if len(found.groups) > limit:
        smaller = quantity(len(found.groups) - limit, "smaller group is", "smaller groups are")
        note(f"{smaller} not shown; add --limit {min(len(found.groups), 1_000)}")
    note("start one over with: packhorse retry-all --group FINGERPRINT")
    return DONE


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@reads
def retry(shell: Shell, as_json: bool, ids: tuple[str, ...]) -> int:
    """Start ended jobs over, with all their attempts."""
    return report_ids("rerun", shell.run(lambda admin: admin.rerun(ids)), as_json)


@click.command("retry-all")
@filter_options
@group_option
@click.option("--rate", metavar="RATE", help="Start no more of them in a time, the oldest first: 10/s, 100/m.")
@click.option("--dry-run", is_flag=True, help="Only count the jobs that match.")
@reads
def retry_all(shell: Shell, as_json: bool, group: str | None, rate: str | None, dry_run: bool, **filters: Any) -> int:
    """Start all failed jobs over, or those that match.

    With --rate the call ends at once: each job is due so much later than the one before, and the store waits.
    """
    from ..admin import read_query
    from ..rates import read_rate

    pace = None if rate is None else read_rate(rate, "--rate")
    return sweep(
        shell,
        as_json,
        "rerun",
        read_query(**filters),
        lambda admin, query, dry, progress: admin.rerun_matching(
            query, rate=pace, group=group, dry_run=dry, progress=progress
        ),
        dry_run,
        yes=True,
    )


@click.command()
@click.argument("queue", required=False)
@state_option
@click.option("--type", "job_type", metavar="TYPE", help="Only jobs of this type.")
@click.option("--tag", help="Only jobs with this tag.")
@click.option("--key", help="Only jobs of this tenant or resource.")
@group_option
@click.option("--dry-run", is_flag=True, help="Only count the jobs that match.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads
def purge(
    shell: Shell,
    as_json: bool,
    queue: str | None,
    states: tuple[str, ...] | None,
    group: str | None,
    dry_run: bool,
    yes: bool,
    **filters: Any,
) -> int:
    """Delete the jobs of QUEUE, all but those that run; with --state failed, its dead letters only.

    With a filter, only those that match; then QUEUE may be left out. A --group is of failed jobs.
    """
    from ..admin import read_query, read_states
    from ..job import check_name

    filtered = is_given(group, *filters.values())
    if queue is not None and not (filtered or dry_run):
        chosen = None if states is None else read_states(states)
        return _purge_queue(shell, as_json, check_name(queue, "queue"), chosen, yes)
    if queue is None and not filtered:
        raise click.UsageError("give QUEUE, or a filter: --type, --tag, --key or --group")
    return sweep(
        shell,
        as_json,
        "delete",
        read_query(states=states, queue=queue, **filters),
        lambda admin, query, dry, progress: admin.delete_matching(query, group=group, dry_run=dry, progress=progress),
        dry_run,
        yes,
    )


def _purge_queue(shell: Shell, as_json: bool, queue: str, chosen: tuple[State, ...] | None, yes: bool) -> int:
    from ..admin import purged_json

    if not yes:
        confirm(f"delete the {', '.join(chosen) + ' ' if chosen else ''}jobs of queue {queue}?")
    with counting("delete") as progress:
        purged = shell.run(lambda admin: admin.purge(queue, chosen, progress=progress))
    if as_json:
        emit_json(purged_json(queue, purged))
        return DONE
    say(f"{quantity(purged.deleted, 'job')} of queue {queue} deleted")
    if purged.running:
        running = quantity(purged.running, "job is", "jobs are")
        note(f"{running} running and not deleted; cancel first: packhorse jobs cancel --queue {queue} --state running")
    if purged.added:
        added = quantity(purged.added, "job was", "jobs were")
        note(f"{added} added meanwhile; pause the queue first: packhorse queues pause {queue}")
    return DONE
