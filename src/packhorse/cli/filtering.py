"""What the commands on many jobs share: the filter options, the question before it is done, and what became of it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..wording import quantity
from .failing import DONE, Sorry
from .output import counting, emit_json, note, say
from .shell import Shell

if TYPE_CHECKING:
    from ..admin import Admin, Answer, Progress, Sweep
    from ..backends.base import Query

F = TypeVar("F", bound=Callable[..., Any])

#: What `Steered` means for one job, by verb where it differs.
_REFUSALS = {
    "cancel": {"ended": "had ended already"},
    "rerun": {"live": "has not ended; cancel it first", "conflict": "has a unique key that another live job holds"},
    "delete": {"live": "is running; cancel it first"},
}
_DONE_WORDS = {"cancel": "cancelled", "rerun": "rerun", "delete": "deleted"}
_REFUSALS_SHOWN_MAX = 3

Sweeper = Callable[["Admin", "Query", bool, "Progress | None"], Awaitable["Sweep"]]


def filter_options(command: F) -> F:
    """Give a command `--queue --type --tag --key`; see `read_query`."""
    for option in (
        click.option("--key", help="Only jobs of this tenant or resource."),
        click.option("--tag", help="Only jobs with this tag."),
        click.option("--type", "job_type", metavar="TYPE", help="Only jobs of this type."),
        click.option("--queue", help="Only jobs of this queue."),
    ):
        command = option(command)
    return command


def state_option(command: F) -> F:
    """Give a command `--state`."""
    return click.option(
        "--state",
        "states",
        multiple=True,
        callback=lambda _, __, states: states or None,
        metavar="STATE",
        help="Only jobs in this state: waiting, scheduled, pending, running, succeeded, failed or cancelled. "
        "May be repeated or joined by commas.",
    )(command)


def page_options(command: F) -> F:
    """Give a command `--limit` and `--cursor`."""
    for option in (
        click.option("--cursor", help="Go on from the `next` of the page before."),
        click.option("--limit", type=int, default=100, show_default=True, help="Jobs on a page, 1 to 1000."),
    ):
        command = option(command)
    return command


def sweep_options(command: F) -> F:
    """Give a command on ids or a filter: the ids, the filter, `--all --dry-run --yes`."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask before acting on many jobs."),
        click.option("--dry-run", is_flag=True, help="Only count the jobs that match."),
        click.option("--all", "everything", is_flag=True, help="Act on all jobs that the verb can act upon."),
    ):
        command = option(command)
    return click.argument("ids", metavar="[ID]...", nargs=-1)(filter_options(state_option(command)))


def steer(
    shell: Shell,
    as_json: bool,
    verb: str,
    by_id: Callable[[Admin, Sequence[str]], Awaitable[list[Answer]]],
    matching: Sweeper,
    options: dict[str, Any],
) -> int:
    """Do what a `jobs` command on ids or a filter was asked to; `options` are those of `sweep_options`."""
    ids: tuple[str, ...] = options.pop("ids")
    everything, dry_run, yes = (options.pop(name) for name in ("everything", "dry_run", "yes"))
    filtered = is_given(*options.values())
    if bool(ids) + filtered + everything > 1 and not (filtered and everything):
        raise click.UsageError("give ids, or a filter, not both")
    if ids:
        if dry_run:
            raise click.UsageError("--dry-run is for filters; look at one job with: packhorse jobs show ID")
        return report_ids(verb, shell.run(lambda admin: by_id(admin, ids)), as_json)
    if not filtered and not everything:
        raise click.UsageError("give ids, a filter, or --all")
    from ..admin import read_query

    return sweep(shell, as_json, verb, read_query(**options), matching, dry_run, yes)


def is_given(*options: object) -> bool:
    """Whether any option was given, if only as an empty text: a shell makes that of a variable that is not set."""
    return any(option is not None for option in options)


def sweep(shell: Shell, as_json: bool, verb: str, query: Query, matching: Sweeper, dry_run: bool, yes: bool) -> int:
    """Act on all jobs that match, after a question where somebody can answer it."""
    if not dry_run and not yes:
        count = shell.run(lambda admin: matching(admin, query, True, None)).matched
        if not count:
            yes = True  # nothing to ask about; go on and report nothing done
        else:
            confirm(f"{verb} {quantity(count, 'job')}?")
    with counting(verb) as progress:
        done = shell.run(lambda admin: matching(admin, query, dry_run, progress))
    return report_sweep(verb, done, as_json)


def confirm(question: str) -> None:
    """Ask before something that cannot be undone. Where nobody can answer, refuse: raises UsageError."""
    if not can_answer():
        raise click.UsageError(f"this would {question.rstrip('?')}; add --yes to do it")
    if not click.confirm(question, err=True):
        raise Sorry("nothing was changed")


def can_answer() -> bool:
    """Answer whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def report_ids(verb: str, answers: Sequence[Answer], as_json: bool) -> int:
    """Print what became of each id; raise Sorry, in one line, if any of it was not done."""
    from ..admin import answers_json

    refusals = [
        f"{answer.id[:128]} {why}" for answer in answers if (why := _refusal(verb, str(answer.answer))) is not None
    ]
    if as_json:
        emit_json(answers_json(answers))
    else:
        for answer in answers:
            if _refusal(verb, str(answer.answer)) is None:
                word = "will be stopped by its worker" if answer.answer == "requested" else _DONE_WORDS[verb]
                say(f"{answer.id} {word}")
    if refusals:
        more = len(refusals) - _REFUSALS_SHOWN_MAX
        shown = "; ".join(refusals[:_REFUSALS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")
        raise Sorry(f"{len(refusals)} of {len(answers)} not {_DONE_WORDS[verb]}: {shown}")
    return DONE


def _refusal(verb: str, answer: str) -> str | None:
    if answer == "missing":
        return "does not exist"
    return _REFUSALS[verb].get(answer)


def report_sweep(verb: str, done: Sweep, as_json: bool) -> int:
    """Print how many jobs matched and what became of them; raise Sorry if some could not be done."""
    from ..admin import sweep_json
    from ..backends.base import Steered

    if as_json:
        emit_json(sweep_json(done))
    elif done.dry_run:
        say(f"{quantity(done.matched, 'job matches', 'jobs match')}; nothing was changed")
    elif not done.matched:
        note("no jobs match")
    else:
        requested = done.answers[Steered.REQUESTED]
        say(
            f"{quantity(done.answers[Steered.DONE], 'job')} {_DONE_WORDS[verb]}"
            + (f", {quantity(requested, 'running job')} will be stopped by the worker" if requested else "")
        )
    left = done.answers[Steered.CONFLICT] + (done.answers[Steered.LIVE] if verb == "delete" else 0)
    if left:
        why = "conflict" if done.answers[Steered.CONFLICT] else "live"
        raise Sorry(f"{left} of {done.matched} not {_DONE_WORDS[verb]}: each {_REFUSALS[verb][why]}")
    return DONE
