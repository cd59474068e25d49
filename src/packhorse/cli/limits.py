"""`limits list`, `show`, `set` and `clear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .failing import DONE, Sorry
from .lazy import Entry, LazyGroup
from .output import age, emit_json, emit_table, note, say, warn
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..backends.base import Limit

F = TypeVar("F", bound=Callable[..., Any])

LIMITS = {
    "list": Entry("packhorse.cli.limits:list_limits", "List all limits."),
    "show": Entry("packhorse.cli.limits:show", "Show the limits of a type, with their state now."),
    "set": Entry("packhorse.cli.limits:set_limit", "Limit how fast and how many jobs of a type start."),
    "clear": Entry("packhorse.cli.limits:clear", "Remove a limit."),
}


@click.command(cls=LazyGroup, entries=LIMITS)
def limits() -> None:
    """List, set and clear limits on the starts of jobs, over all workers."""


def _key_options(command: F) -> F:
    for option in (
        click.option("--each-key", is_flag=True, help="The limit of every key of the type, each for itself."),
        click.option("--key", help="The limit of this key of the type."),
    ):
        command = option(command)
    return command


def _read_key(key: str | None, each_key: bool) -> str | None:
    from ..backends.messages import EACH_KEY

    if key is not None and each_key:
        raise click.UsageError("give --key or --each-key, not both")
    return EACH_KEY if each_key else key


@click.command("list")
@reads
def list_limits(shell: Shell, as_json: bool) -> int:
    """List all limits, those of operators and those of the apps' code."""
    from ..admin_limits import limit_json
    from ..shapes import list_json

    found = shell.run(lambda admin: admin.limits.list())
    if as_json:
        emit_json(list_json(map(limit_json, found)))
    elif not found:
        note("no limits; set one with: packhorse limits set TYPE --rate 50/s --concurrency 3")
    else:
        _print(found, live=False)
    return DONE


@click.command()
@click.argument("job_type", metavar="TYPE")
@click.option("--key", help="Of a job with this key, too.")
@reads
def show(shell: Shell, as_json: bool, job_type: str, key: str | None) -> int:
    """Show the limits that a job of TYPE must pass, with what runs now and when they open."""
    from ..admin_limits import limit_json
    from ..shapes import list_json

    found = shell.run(lambda admin: admin.limits.show(job_type, key))
    if as_json:
        emit_json(list_json(limit_json(limit, live=True) for limit in found))
    elif not found:
        note(f"no limit holds jobs of {job_type}" + (f" with the key {key}" if key is not None else ""))
    else:
        _print(found, live=True)
    return DONE


def _print(found: list[Limit], *, live: bool) -> None:
    from ..admin_limits import limit_json
    from ..backends.messages import EACH_KEY

    headers = ["type", "key", "rate", "burst", "concurrency", "source", *(["running", "opens"] if live else [])]
    rows = []
    for limit in found:
        shown = limit_json(limit)
        key = "(each)" if limit.key == EACH_KEY else limit.key
        row = [limit.type, key, shown["rate"], shown["burst"], limit.concurrency, shown["source"]]
        rows.append([*row, *([limit.running, _opens(limit)] if live else [])])
    emit_table(headers, rows, right=["burst", "concurrency", "running"])


def _opens(limit: Limit) -> str:
    if limit.opens_in_ms is None:
        return "when one ends"
    return "open" if limit.opens_in_ms <= 0 else f"in {age(limit.opens_in_ms)}"


@click.command("set")
@click.argument("job_type", metavar="TYPE")
@_key_options
@click.option("--rate", metavar="RATE", help="Starts in a time: 50/s, 100/m, 5/10s, 1000/h.")
@click.option("--burst", type=int, metavar="N", help="Starts at once after a pause, of a rate.")
@click.option("--concurrency", type=int, metavar="N", help="Jobs that run at the same time.")
@reads
def set_limit(shell: Shell, as_json: bool, job_type: str, key: str | None, each_key: bool, **parts: Any) -> int:
    """Limit how fast and how many jobs of TYPE start, over all workers and queues, from the next claim on.

    What is not given stays as it is. A limit set here is an operator's: no app's code changes it.
    """
    from ..admin_limits import limit_json
    from ..rates import make_limit

    change = make_limit(job_type, _read_key(key, each_key), **parts)
    done = shell.run(lambda admin: admin.limits.set(change))
    if as_json:
        emit_json({**limit_json(done.limit), "known": done.known})
    else:
        say(f"{_name(job_type, change.key)} limited to {_parts(done.limit)}")
    if not done.known:
        warn(f"no live worker knows the type {job_type} and no job has it now; check the name")
    return DONE


def _parts(limit: Limit) -> str:
    from ..admin_limits import limit_json

    shown = limit_json(limit)
    parts = [f"{shown['rate']} (burst {shown['burst']})"] if limit.rate is not None else []
    return ", ".join(parts + ([f"{limit.concurrency} at once"] if limit.concurrency is not None else []))


@click.command()
@click.argument("job_type", metavar="TYPE")
@_key_options
@reads
def clear(shell: Shell, as_json: bool, job_type: str, key: str | None, each_key: bool) -> int:
    """Remove the limit of TYPE, or of a key of it. One of an app's code comes back when a worker starts."""
    named = _read_key(key, each_key)
    there = shell.run(lambda admin: admin.limits.clear(job_type, named))
    if as_json:
        emit_json({"type": job_type, "key": named, "cleared": there})
    elif there:
        say(f"the limit of {_name(job_type, named)} is cleared")
    if not there:
        raise Sorry(f"there is no limit of {_name(job_type, named)}; see: packhorse limits list")
    return DONE


def _name(job_type: str, key: str | None) -> str:
    from ..backends.messages import EACH_KEY

    return job_type if key is None else f"each key of {job_type}" if key == EACH_KEY else f"key {key} of {job_type}"
