"""`logs`: what happened to a job, with what its runs logged; or to the newest jobs."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ..wording import quantity
from .failing import DONE
from .output import emit_json, note, plain, say
from .shell import Shell, reads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..admin import Admin
    from ..story import Story, StoryLine

#: Pause between two looks of --follow. What runs log comes about once a second.
_LOOK_S = 1.0
#: Jobs in one look into the store.
_PAGE_JOBS = 200


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only what belongs to this attempt.")
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"]),
    help="Only lines of this level and above.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the job has ended.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=1_000,
    show_default=True,
    metavar="N",
    help="Without ID: how many lines at most, the latest.",
)
@reads
def logs(shell: Shell, as_json: bool, job_id: str | None, **asked: Any) -> int:
    """Tell what happened to job ID, and what its runs logged; without ID, what happened to the newest 1,000 jobs.

    Of each of a job's latest eight attempts the latest 200 lines are kept, from the level of the setting keep_log on.
    With --json and --follow each line is a JSON document of its own.
    """
    if job_id is None and (asked["attempt"] is not None or asked["level"] is not None):
        raise click.UsageError("--attempt and --level are about the log of one job; give its ID")
    limit = asked.pop("limit")
    if job_id is None:
        shell.run(lambda admin: _newest(admin, limit, as_json, asked["follow"]))
    else:
        shell.run(lambda admin: _of_job(admin, job_id, as_json, **asked))
    return DONE


# ---- one job ---------------------------------------------------------------------------------------------


async def _of_job(
    admin: Admin, job_id: str, as_json: bool, *, attempt: int | None, level: str | None, follow: bool
) -> None:
    from ..admin_json import story_json, story_line_json
    from ..story import matching

    def wanted(story: Story) -> list[StoryLine]:
        return matching(story.lines, attempt=attempt, level=level)

    story = await admin.log(job_id)
    if as_json and not follow:
        emit_json(story_json(story, wanted(story)))
        return

    def show(line: StoryLine) -> None:
        _emit(story_line_json(line)) if as_json else say(_text(line))

    shown: Counter[StoryLine] = Counter()
    if story.left_out and not as_json:
        note(f"{quantity(story.left_out, 'line that its runs logged is', 'lines that its runs logged are')} not kept")
    while True:
        found = wanted(story)
        for line, count in (Counter(found) - shown).items():
            for _ in range(count):
                show(line)
        shown = Counter(found)
        if not found and (story.ended or not follow):
            note(f"of its {quantity(len(story.lines), 'line')} none is of that attempt and level")
        if not follow or story.ended:
            return
        story = await _again(lambda: admin.log(job_id))


def _text(line: StoryLine) -> str:
    from ..shapes import instant_json

    attempt = f"#{line.attempt}" if line.attempt else "-"
    who = "" if line.logger == "packhorse" else f"{line.logger}: "
    return f"{instant_json(line.at_ms)} {attempt:<3} {line.level:<7} {who}{line.message}"


async def _again(look: Callable[[], Awaitable[Story]]) -> Story:
    """Look again after a while. A store that is away meanwhile is waited for: whoever follows will see it back."""
    import asyncio

    from ..errors import Unavailable

    told = False
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            return await look()
        except Unavailable as error:
            if not told:
                note(f"the store does not answer, trying again: {error}")
            told = True


# ---- the newest jobs -------------------------------------------------------------------------------------


async def _newest(admin: Admin, limit: int, as_json: bool, follow: bool) -> None:
    import asyncio

    from ..errors import Unavailable

    lines = await _lines(admin, limit)
    if as_json and not follow:
        emit_json(lines)
        return
    if not lines:
        note("there are no jobs")
    shown: Counter[str] = Counter()
    while True:
        for line, count in (Counter(lines) - shown).items():
            for _ in range(count):
                _emit(line) if as_json else say(line)
        if not follow:
            return
        shown |= Counter(lines)
        if len(shown) > 10 * len(lines) + 10_000:  # of jobs that are not among the newest any more
            shown = Counter(lines)
        await asyncio.sleep(_LOOK_S)
        try:
            lines = await _lines(admin, limit)
        except Unavailable as error:
            note(f"the store does not answer, trying again: {error}")


async def _lines(admin: Admin, limit: int) -> list[str]:
    from ..backends.base import Query
    from ..server.history import JOBS_MAX, Event, history_lines, history_of

    events: list[Event] = []
    jobs_left, cursor = JOBS_MAX, None
    while jobs_left > 0:
        page = await admin.find(Query(brief=True, limit=min(_PAGE_JOBS, jobs_left), cursor=cursor))
        events += [event for record in page.jobs for event in history_of(record)]
        jobs_left -= len(page.jobs)
        cursor = page.next
        if cursor is None:
            break
    return history_lines(events, limit)


def _emit(value: Any) -> None:
    """Print one JSON document in one line."""
    click.echo(plain(json.dumps(value, allow_nan=False)))
