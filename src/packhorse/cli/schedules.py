"""`schedules list`, `show`, `add`, `pause`, `resume`, `remove`, `run` and `next`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .failing import DONE
from .lazy import Entry, LazyGroup
from .output import age, emit_fields, emit_json, emit_table, note, say, shorten
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..backends.base import Schedule

SCHEDULES = {
    "list": Entry("packhorse.cli.schedules:list_schedules", "List the schedules."),
    "show": Entry("packhorse.cli.schedules:show", "Show all that is kept of a schedule."),
    "add": Entry("packhorse.cli.schedules:add", "Make or change a schedule."),
    "pause": Entry("packhorse.cli.schedules:pause", "Make no more jobs of schedules."),
    "resume": Entry("packhorse.cli.schedules:resume", "Let schedules make jobs again."),
    "remove": Entry("packhorse.cli.schedules:remove", "Remove schedules."),
    "run": Entry("packhorse.cli.schedules:run", "Enqueue one job of a schedule now."),
    "next": Entry("packhorse.cli.schedules:next_slots", "Show when an expression or a schedule comes next."),
}

_PAYLOAD_CHARS_SHOWN = 200


@click.command(cls=LazyGroup, entries=SCHEDULES)
def schedules() -> None:
    """List, add, pause, run and remove recurring jobs."""


@click.command("list")
@reads
def list_schedules(shell: Shell, as_json: bool) -> int:
    """List the schedules of the store, whoever defined them."""
    from ..admin_schedules import schedule_json
    from ..shapes import list_json

    found = shell.run(lambda admin: admin.schedules.list())
    if as_json:
        emit_json(list_json(map(schedule_json, found)))
    elif not found:
        note("no schedules; add one with: packhorse schedules add NAME -t TYPE --cron '0 9 * * *'")
    else:
        headers = ["name", "type", "when", "next", "local", "source", ""]
        emit_table(
            headers, [[one.name, one.spec.type, _when(one), *_next(one), one.source, _state(one)] for one in found]
        )
    return DONE


def _when(schedule: Schedule) -> str:
    return f"every {age(schedule.every_ms)}" if schedule.every_ms is not None else str(schedule.cron)


def _state(schedule: Schedule) -> str:
    return "paused" if schedule.paused else ""


def _next(schedule: Schedule) -> tuple[str, str]:
    """Answer the next slot in UTC and in the zone of the schedule."""
    from ..admin_schedules import next_of
    from ..errors import InvalidOption
    from ..shapes import instant_json

    try:
        next_ms = next_of(schedule)
    except InvalidOption:
        return instant_json(schedule.next_ms) or "-", f"{schedule.tz} is not known here"
    return (instant_json(next_ms) or "-", _local(next_ms, schedule.tz) if next_ms is not None else "-")


def _local(instant_ms: int, tz: str) -> str:
    """Write an instant as the clocks of a zone show it."""
    from ..clock import to_datetime
    from ..cron import read_zone

    return f"{to_datetime(instant_ms).astimezone(read_zone(tz)).isoformat(' ', 'seconds')} {tz}"


@click.command()
@click.argument("name")
@reads
def show(shell: Shell, as_json: bool, name: str) -> int:
    """Show all that is kept of a schedule."""
    from ..admin_schedules import schedule_json

    found = shell.run(lambda admin: admin.schedules.show(name))
    shape = schedule_json(found)
    if as_json:
        emit_json(shape)
        return DONE
    next_at, local = _next(found)
    emit_fields(
        [
            ("name", found.name),
            ("type", found.spec.type),
            ("payload", shorten(found.spec.payload.decode(errors="backslashreplace"), _PAYLOAD_CHARS_SHOWN)),
            ("queue", found.spec.queue),
            ("priority", found.spec.priority),
            ("max_attempts", found.spec.max_attempts),
            ("when", _when(found)),
            ("tz", found.tz if found.cron is not None else None),
            ("missed", found.missed),
            ("overlap", found.overlap),
            ("jitter", age(found.jitter_ms) if found.jitter_ms else None),
            ("source", found.source or "an operator, or data"),
            ("state", "paused" if found.paused else "active"),
            ("next", next_at),
            ("local", local),
            ("done_until", shape["done_until"]),
        ]
    )
    return DONE


_ADD_OPTIONS = (
    click.option("-t", "--type", "job_type", metavar="TYPE", required=True, help="The type of its jobs."),
    click.option("-p", "--payload", metavar="JSON|@FILE|-", help="Their payload: JSON, a file, or - for stdin."),
    click.option("--cron", metavar="EXPR", help="When: five fields, six with the second first, or @daily."),
    click.option("--every", metavar="DURATION", help="Instead of --cron: 30s, 5m, 2h; 1s to 366d."),
    click.option("--tz", metavar="ZONE", help="The time zone of --cron, as Europe/Paris; UTC unless given."),
    click.option("--missed", metavar="POLICY", help="Slots while no worker ran: skip, latest (unless given) or all."),
    click.option(
        "--overlap", metavar="POLICY", help="allow (unless given), or skip while the one before has not ended."
    ),
    click.option("--jitter", metavar="DURATION", help="Delay each job by chance, up to this."),
    click.option("--paused", is_flag=True, help="Begin paused, if it is a new one."),
    click.option("-q", "--queue", help="The queue of its jobs; `default` unless given."),
    click.option("--priority", help="high, normal, low, or 0 (soonest) to 9."),
    click.option("--max-attempts", type=int, metavar="N", help="Runs of each job in all."),
    click.option("--timeout", metavar="DURATION", help="How long a run may take: 30s. 0 for no limit."),
    click.option("--key", help="The tenant or resource its jobs belong to."),
    click.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find them by. May be repeated."),
)


def _add_options(command: Any) -> Any:
    for option in reversed(_ADD_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@_add_options
@reads
def add(shell: Shell, as_json: bool, name: str, job_type: str, payload: str | None, **given: Any) -> int:
    """Make a schedule, or change the one of that name; jobs it has made stay as they are.

    \b
    packhorse schedules add report -t report --cron '0 9 * * mon-fri' --tz Europe/Paris
    packhorse schedules add ping -t ping -p '{"host": "a"}' --every 30s --overlap skip
    """
    from .. import codec
    from ..admin_schedules import schedule_json
    from ..job import check_name
    from ..options import read_options
    from ..schedule import make_schedule
    from .submit import make_spec, parse_argument

    times = {word: given.pop(word) for word in ("cron", "every", "tz", "missed", "overlap", "jitter", "paused")}
    if (times["cron"] is None) == (times["every"] is None):
        raise click.UsageError("give --cron EXPR or --every DURATION")
    value = {} if payload is None else parse_argument(payload, "payload", codec.PAYLOAD_BYTES_MAX)
    options = {word: list(value) if isinstance(value, tuple) else value for word, value in given.items()}
    fields = read_options({word: value for word, value in options.items() if value not in (None, [])})
    settings = shell.store_settings()
    spec = make_spec(settings, check_name(job_type, "job type"), codec.encode(value), fields)
    definition = make_schedule(name, spec, **times)

    async def define(admin: Any) -> tuple[str, Schedule]:
        answer = await admin.schedules.define(definition)
        return answer, await admin.schedules.show(name)

    answer, stored = shell.run(define)
    if as_json:
        emit_json({**schedule_json(stored), "answer": answer})
    else:
        say(f"schedule {name} {answer}; next at {_next(stored)[0]}" + (" (paused)" if stored.paused else ""))
    return DONE


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@reads
def pause(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Make no more jobs of schedules until they are resumed; jobs that are there go on."""
    shell.run(lambda admin: admin.schedules.pause(names))
    return _answer(names, "paused", {"paused": True}, as_json)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@reads
def resume(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Let schedules make jobs again, from now on; slots of the pause are left out."""
    shell.run(lambda admin: admin.schedules.resume(names))
    return _answer(names, "resumed", {"paused": False}, as_json)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@reads
def remove(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Remove schedules; their jobs stay. One of an app's code comes back when a worker of the app starts."""
    shell.run(lambda admin: admin.schedules.remove(names))
    return _answer(names, "removed", {"removed": True}, as_json)


def _answer(names: tuple[str, ...], word: str, fields: dict[str, Any], as_json: bool) -> int:
    from ..shapes import list_json

    unique = dict.fromkeys(names)
    if as_json:
        emit_json(list_json({"name": name, **fields} for name in unique))
    else:
        say(f"{word} {', '.join(unique)}")
    return DONE


@click.command()
@click.argument("name")
@reads
def run(shell: Shell, as_json: bool, name: str) -> int:
    """Enqueue one job of a schedule now. Its slots come as they would have."""
    answer = shell.run(lambda admin: admin.schedules.run(name))
    if as_json:
        emit_json({"id": answer.id, "created": answer.created})
    elif answer.created:
        say(f"{answer.id} enqueued")
    else:
        say(f"{answer.id} of this schedule has not ended; nothing was added")
    return DONE


@click.command("next")
@click.argument("what", metavar="EXPR|NAME")
@click.option("--tz", metavar="ZONE", help="The time zone of the expression, as Europe/Paris; UTC unless given.")
@click.option("-n", "--count", type=int, default=5, show_default=True, help="How many slots, 1 to 1000.")
@click.option(
    "--from", "start", metavar="INSTANT", help="Later than this instant, as 2030-01-31T09:00:00Z, not than now."
)
@reads
def next_slots(shell: Shell, as_json: bool, what: str, tz: str | None, count: int, start: str | None) -> int:
    """Show when an expression comes next, without any store; or a schedule of the store, by its name.

    \b
    packhorse schedules next '30 2 * * *' --tz Europe/Berlin --from 2026-03-28T00:00:00Z
    packhorse schedules next report -n 10
    """
    from ..clock import SYSTEM_CLOCK
    from ..options import read_instant_ms
    from ..schedule import next_slots as find
    from ..shapes import instant_json, list_json

    if not 1 <= count <= 1000:
        raise click.BadParameter("must be from 1 to 1000", param_hint="'-n'")
    after_ms = SYSTEM_CLOCK.now_ms() if start is None else read_instant_ms(start, "--from")
    definition = _definition(shell, what, tz)
    found = find(definition, after_ms, count)
    if as_json:
        items = [{"at": instant_json(slot_ms), "local": _local_json(slot_ms, definition.tz)} for slot_ms in found]
        emit_json(list_json(items))
    elif not found:
        note("it does not come within eight years")
    else:
        emit_table(["at", "local"], [[instant_json(slot_ms), _local(slot_ms, definition.tz)] for slot_ms in found])
    return DONE


def _local_json(instant_ms: int, tz: str) -> str:
    from ..clock import to_datetime
    from ..cron import read_zone

    return to_datetime(instant_ms).astimezone(read_zone(tz)).isoformat()


def _definition(shell: Shell, what: str, tz: str | None) -> Schedule:
    """Answer the definition that is asked about. No expression is a name: it has spaces, or begins with @."""
    from ..errors import InvalidName
    from ..job import JobSpec, check_name
    from ..schedule import make_schedule

    try:
        name = check_name(what, "schedule")
    except InvalidName:
        return make_schedule("expression", JobSpec(id="", type="none"), cron=what, tz=tz)
    if tz is not None:
        raise click.UsageError("--tz is for an expression in quotes; a schedule of the store has its own zone")
    return shell.run(lambda admin: admin.schedules.show(name))
