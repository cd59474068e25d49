"""`submit`, also called `enqueue` and `publish`: store one job."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from .failing import DONE
from .output import emit_json, say
from .shell import Shell, open_store, reads

if TYPE_CHECKING:
    from ..job import JobSpec
    from ..settings import Settings

#: Room for the options around a payload of the largest size.
_ENVELOPE_BYTES_MAX = 256 * 1024

_OPTIONS = (
    click.option("-t", "--type", "job_type", metavar="TYPE", help="The job's type: the name of a task."),
    click.option("-p", "--payload", metavar="JSON|@FILE|-", help="The payload: JSON, a file, or - for stdin."),
    click.option("--queue", help="The queue; `default` unless given."),
    click.option("--priority", help="high, normal, low, or 0 (soonest) to 9."),
    click.option("-r", "--retries", "max_retries", type=int, metavar="N", help="Runs after the first that failed."),
    click.option("--max-attempts", type=int, metavar="N", help="Runs in all: retries and one."),
    click.option("--at", metavar="INSTANT", help="When it is due: 2030-01-31T09:00:00Z."),
    click.option("--in", "delay", metavar="DURATION", help="Due after this time: 30s, 5m, 2h."),
    click.option("--unique", metavar="KEY", help="Store it unless a live job of the queue has this key."),
    click.option("--unique-for", metavar="DURATION", help="Hold the key at least this long, ended or not."),
    click.option(
        "--on-conflict",
        type=click.Choice(["existing", "replace", "refuse"]),
        help="Where the key is held: answer with its holder (unless told otherwise), take its place, or refuse.",
    ),
    click.option("--idempotency-key", metavar="KEY", help="Store one job for this key, however often it is repeated."),
    click.option(
        "--full-timeout", metavar="DURATION", help="Wait for room in a full queue this long; 0 refuses at once."
    ),
    click.option("--after", metavar="ID", multiple=True, help="Start after this job succeeded. May be repeated."),
    click.option(
        "--after-failed",
        type=click.Choice(["cancel", "continue"]),
        help="If one of --after ends badly: cancel this job (the default), or start it all the same.",
    ),
    click.option("--key", help="The tenant or resource it belongs to."),
    click.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find it by. May be repeated."),
    click.option("--meta", metavar="NAME=TEXT", multiple=True, help="A note that travels along. May be repeated."),
    click.option("--timeout", metavar="DURATION", help="How long a run may take: 30s. 0 for no limit."),
    click.option("--id-only", is_flag=True, help="Print the id and nothing else."),
)


def _options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("document", metavar="[JSON|@FILE|-]", required=False)
@_options
@reads
def submit(
    shell: Shell,
    as_json: bool,
    document: str | None,
    job_type: str | None,
    payload: str | None,
    id_only: bool,
    **given: Any,
) -> int:
    """Store a job: by -t and -p, or by one JSON argument with `type`, `payload` and the options by name.

    \b
    packhorse submit -t email -p '{"to": "a@example.com"}' --in 5m
    packhorse enqueue '{"type": "email", "payload": {"to": "a@example.com"}, "delay": "5m"}'

    The JSON argument may define a schedule instead, with `"recurring": {"cron_expression": "0 9 * * *"}`: as
    `packhorse schedules add` does, named as its type unless it has a `name` in there.
    """
    if as_json and id_only:
        raise click.UsageError("give --json or --id-only, not both")
    if "-" in {document} & {payload}:
        raise click.UsageError("stdin can be read once: give - as the payload or as the document")
    options = _read_options(given)
    type_name, data = _read_job(document, job_type, payload, options)
    if options.get("recurring") is not None:
        return _define(shell, as_json, id_only, type_name, data, options)
    job_id, created, queue = _store(shell, type_name, data, options)
    if as_json:
        emit_json({"id": job_id, "created": created})
    elif id_only:
        say(job_id)
    elif created:
        say(f"{job_id} enqueued in queue {queue}")
    elif "idempotency_key" in options:
        say(f"{job_id} was enqueued with this idempotency key before; nothing was added")
    else:
        say(f"{job_id} holds the unique key already; nothing was added")
    return DONE


def _read_options(given: dict[str, Any]) -> dict[str, Any]:
    """Answer the options that were given, by the names of `packhorse.options`. Raises UsageError for contradictions."""
    for one, other in (("max_retries", "max_attempts"), ("delay", "at")):
        if given[one] is not None and given[other] is not None:
            names = {"max_retries": "--retries", "delay": "--in"}
            raise click.UsageError(f"give {names[one]} or --{other.replace('_', '-')}, not both")
    meta = {}
    for item in given.pop("meta"):
        name, equals, text = item.partition("=")
        if not equals:
            raise click.UsageError(f"--meta {item[:40]!r}: write NAME=TEXT")
        meta[name] = text
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: value for name, value in {**options, "meta": meta}.items() if value not in (None, [], {})}


def _read_job(
    document: str | None, job_type: str | None, payload: str | None, options: dict[str, Any]
) -> tuple[str, bytes]:
    """Answer the type and the payload, from the one JSON argument or from -t and -p; adds the document's options."""
    from .. import codec

    if document is None:
        if job_type is None:
            raise click.UsageError("give -t TYPE and -p PAYLOAD, or one JSON argument with type and payload")
        value = {} if payload is None else parse_argument(payload, "payload", codec.PAYLOAD_BYTES_MAX)
        return job_type, codec.encode(value)
    if job_type is not None or payload is not None:
        raise click.UsageError("give -t and -p, or one JSON argument, not both")
    job = parse_argument(document, "job", codec.PAYLOAD_BYTES_MAX + _ENVELOPE_BYTES_MAX)
    if not isinstance(job, dict) or not isinstance(job.get("type"), str):
        raise click.UsageError('the JSON argument must be an object with a type: \'{"type": "email", "payload": {}}\'')
    type_name, value = job.pop("type"), job.pop("payload", {})
    twice = job.keys() & options.keys()
    if twice:
        raise click.UsageError(f"{min(twice)} is given in the JSON argument and as an option; give it once")
    options.update(job)
    return type_name, codec.encode(value)


def parse_argument(text: str, what: str, bytes_max: int) -> Any:
    """Read JSON from the argument itself, from `@file`, or from stdin (`-`). Raises InvalidPayload, UsageError."""
    from .. import codec

    if text == "-":
        with click.open_file("-", "rb") as stream:
            return codec.parse(_bounded(stream, what, bytes_max), bytes_max)
    if text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                return codec.parse(_bounded(file, what, bytes_max), bytes_max)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise click.UsageError(f"the {what} cannot be read from {text[1:81]!r}: {reason}") from None
    return codec.parse(text, bytes_max)


def _bounded(stream: IO[bytes], what: str, bytes_max: int) -> bytes:
    """Read no more than one byte too many, however much there is (FAILURES C16)."""
    from ..errors import PayloadTooLarge

    data = stream.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise PayloadTooLarge(f"the {what} is more than {bytes_max:,} bytes; store it elsewhere, send its name")
    return data


def _store(shell: Shell, type_name: str, data: bytes, options: dict[str, Any]) -> tuple[str, bool, str]:
    import asyncio

    from ..chance import CHANCE
    from ..enqueueing import Store
    from ..job import check_name
    from ..observe.tracing import start_tracing
    from ..options import FULL_TIMEOUT_MS, read_options

    check_name(type_name, "job type")
    fields = read_options(options)
    settings = shell.store_settings(create=True)
    spec = make_spec(settings, type_name, data, fields)
    tracing = start_tracing(settings, "packhorse")
    full_timeout_ms = fields.get(FULL_TIMEOUT_MS, settings.enqueue_timeout_ms)

    async def enqueue() -> tuple[str, bool, str]:
        backend = open_store(settings)
        try:
            await backend.open()
            answer = (await Store(backend, CHANCE, full_timeout_ms, tracing=tracing)([spec]))[0]
        finally:
            await backend.close()
        return answer.id, answer.created, spec.queue

    return asyncio.run(enqueue())


def _define(shell: Shell, as_json: bool, id_only: bool, type_name: str, data: bytes, options: dict[str, Any]) -> int:
    """Define a schedule of such jobs, see `packhorse.schedule.from_recurring`."""
    from ..job import check_name
    from ..options import read_options
    from ..schedule import check_job_options, from_recurring, make_schedule

    check_name(type_name, "job type")
    check_job_options(options)
    times = {"name": type_name, **from_recurring(options.pop("recurring"))}
    spec = make_spec(shell.store_settings(create=True), type_name, data, read_options(options))
    definition = make_schedule(times.pop("name"), spec, **times)
    answer = shell.run(lambda admin: admin.schedules.define(definition), create=True)
    if as_json:
        emit_json({"schedule": definition.name, "answer": answer})
    else:
        say(definition.name if id_only else f"schedule {definition.name} {answer}")
    return DONE


def make_spec(settings: Settings, type_name: str, data: bytes, fields: dict[str, Any]) -> JobSpec:
    """Make a job as an app with these settings does."""
    import warnings

    from .. import Packhorse
    from ..errors import InvalidOption
    from ..job import DELAY_MS_MAX

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the shell has read the same settings and said it
        spec = Packhorse(settings.url).make_spec(type_name, data, fields)
    if spec.delay_ms > DELAY_MS_MAX:
        raise InvalidOption("at: is more than ten years ahead; use an earlier instant")
    return spec
