"""`packhorse move`: all that a store holds goes to another one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..wording import quantity
from .failing import DONE, INTERRUPTED, Sorry
from .output import emit_json, emit_table, note, say
from .shell import Shell, json_option, open_store, pass_shell

if TYPE_CHECKING:
    from ..admin_move import Moved
    from ..backends.base import Backend

    Tell = Callable[[Moved], None]

#: How often a line says how far it is, where there is no terminal for a bar, ms.
LINE_MS = 5_000

_AGAIN = "run the same command again to go on"


def _url(ctx: click.Context, param: click.Parameter, url: str) -> str:
    assert param.name is not None
    shell = ctx.ensure_object(Shell)
    if ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
        shell.warn_of_password(url, param.opts[0], str(param.envvar))
    return url


@click.command()
@click.option(
    "--from",
    "source",
    metavar="URL",
    required=True,
    callback=_url,
    envvar="PACKHORSE_MOVE_FROM",
    help="The store that is moved.",
)
@click.option(
    "--to",
    "target",
    metavar="URL",
    required=True,
    callback=_url,
    envvar="PACKHORSE_MOVE_TO",
    help="The store that takes it over; it may hold jobs.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1_000), default=1_000, show_default=True, help="Jobs on their way at once."
)
@click.option("--no-wait", is_flag=True, help="Leave jobs that run where they are, instead of waiting for their end.")
@json_option
@pass_shell
def move(shell: Shell, as_json: bool, source: str, target: str, batch: int, no_wait: bool) -> int:
    """Move jobs of every state, schedules, limits and settings of queues from one store to another.

    Both may be in use. A job is live in one of them at most, and in none only while its batch is on the way. What runs
    ends where it runs, and follows then. A crash, Ctrl+C or a lost connection leave nothing that a second call does
    not finish. Start workers on the new store once it has begun.

    Ends with 0 when nothing is left, with 1 when something is.
    """
    if source == target:
        raise click.UsageError("--from and --to name the same store")
    backends = []
    for url, create in ((source, False), (target, True)):
        shell.url = url
        backends.append(open_store(shell.store_settings(create=create)))
    from ..errors import Unavailable

    try:
        with _progress() as tell:
            moved, interrupted = asyncio.run(_run(backends[0], backends[1], batch, not no_wait, tell))
    except Unavailable as error:
        raise Sorry(f"{error}; nothing is lost, {_AGAIN}") from error
    if as_json:
        from ..admin_move import moved_json

        emit_json(moved_json(moved))
    else:
        _print(moved)
    return _end(moved, interrupted)


async def _run(source: Backend, target: Backend, batch: int, wait: bool, tell: Tell) -> tuple[Moved, bool]:
    import signal

    from ..admin_move import Move

    move = Move(source, target, batch=batch, wait=wait, tell=tell)
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:  # the second Ctrl+C ends it at once, which loses nothing either
        nonlocal interrupted
        interrupted = True
        note("stopping: what is on its way arrives first")
        move.stop()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        await source.open()
        await target.open()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or no such signals
            loop.add_signal_handler(signal.SIGINT, interrupt)
        return await move.run(), interrupted
    finally:
        await target.close()
        await source.close()


def _end(moved: Moved, interrupted: bool) -> int:
    from ..job import State

    if moved.known:
        note(f"{quantity(moved.known, 'job was', 'jobs were')} left out: the target had that id, and what it had stays")
    if moved.done:
        return DONE
    if interrupted:
        note(f"stopped; {_AGAIN}")
        return INTERRUPTED
    running = moved.left.get(State.RUNNING, 0)
    if running:
        still = quantity(running, "job still runs", "jobs still run")
        raise Sorry(f"{still} at the source; after that {_AGAIN}")
    raise Sorry(f"the source is not empty: it waits for jobs of another store, or others go on adding; {_AGAIN}")


def _print(moved: Moved) -> None:
    from ..job import State

    rows = [
        [state, moved.jobs[state], moved.left.get(state, 0)]
        for state in State
        if moved.jobs[state] or moved.left.get(state)
    ]
    emit_table(["state", "moved", "left"], [*rows, ["(all)", moved.total, moved.remaining]], right=["moved", "left"])
    say(f"schedules {moved.schedules}, limits {moved.limits}, settings of queues {moved.queues}")


@contextmanager
def _progress() -> Iterator[Tell]:
    """Show how far a move is: a bar on a terminal, a line now and then elsewhere. On stderr."""
    if sys.stderr.isatty():
        with _bar() as tell:
            yield tell
        return
    from ..clock import SYSTEM_CLOCK
    from ..job import State

    told_at_ms = SYSTEM_CLOCK.boot_ms()

    def tell_line(moved: Moved) -> None:
        nonlocal told_at_ms
        if SYSTEM_CLOCK.boot_ms() - told_at_ms >= LINE_MS:
            told_at_ms = SYSTEM_CLOCK.boot_ms()
            running = moved.left.get(State.RUNNING, 0)
            note(
                f"{quantity(moved.total, 'job')} moved, {moved.remaining:,} left"
                + (f", {running:,} run" if running else "")
            )

    yield tell_line


@contextmanager
def _bar() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..clock import SYSTEM_CLOCK
    from ..job import State

    started_ms = SYSTEM_CLOCK.boot_ms()
    columns = (TextColumn("moving"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("moving", total=None, more="")

        def tell(moved: Moved) -> None:
            running = moved.left.get(State.RUNNING, 0)
            rate = 1_000 * moved.total // max(1, SYSTEM_CLOCK.boot_ms() - started_ms)
            more = f"{rate:,}/s, {moved.remaining:,} left" + (f", {running:,} run" if running else "")
            bar.update(task, completed=moved.total, total=moved.total + moved.remaining, more=more)

        yield tell
