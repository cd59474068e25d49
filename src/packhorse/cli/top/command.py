"""The command `packhorse top`: live on a terminal, one frame elsewhere, or one JSON document."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from ..failing import DONE
from ..output import emit_json
from ..shell import Shell, open_store, reads

if TYPE_CHECKING:
    from .history import History
    from .sampling import Sampler

#: A frame elsewhere than on a terminal, where the environment does not say how large.
_WIDTH, _HEIGHT = 120, 50


@click.command()
@click.option(
    "--interval", default="1s", show_default=True, help="How often the store is asked, once a second at most."
)
@click.option("--once", is_flag=True, help="Print one frame, after two looks one interval apart.")
@click.option("-q", "--queue", metavar="QUEUE", help="Only this queue.")
@reads
def top(shell: Shell, as_json: bool, interval: str, once: bool, queue: str | None) -> int:
    """Watch queues, workers, failures and rates live on a terminal.

    Keys: q quit, p pause, + - speed, j k scroll, f failures, w workers, ? help. Where the output is no terminal, one
    frame is printed. The store is asked for at most 5 % of the time.
    """
    import asyncio

    from ...backends.opening import in_namespace, redact
    from ...clock import SYSTEM_CLOCK
    from ...job import check_name
    from .sampling import Sampler

    interval_ms = _read_interval(interval)
    if queue is not None:
        check_name(queue, "queue")
    settings = shell.store_settings()
    store = shell.scrub(redact(in_namespace(settings.url, settings.namespace)))
    sampler = Sampler(lambda: open_store(settings), SYSTEM_CLOCK, queue)
    if as_json:
        from .document import document

        history = asyncio.run(_look_twice(sampler, interval_ms))
        assert history.sample is not None
        emit_json(document(history, history.sample, store))
        return DONE
    if once or not _is_live_terminal():
        _print_frame(asyncio.run(_look_twice(sampler, interval_ms)), store, queue, interval_ms)
        return DONE
    return asyncio.run(_watch(shell, sampler, store, queue, interval_ms))


def _read_interval(interval: str) -> int:
    from ...errors import InvalidOption
    from ...settings import duration_ms
    from .choices import INTERVAL_MS_MAX, INTERVAL_MS_MIN

    interval_ms = duration_ms(interval, "interval", INTERVAL_MS_MAX)
    if interval_ms < INTERVAL_MS_MIN:
        raise InvalidOption(f"interval: {interval} is too short; the store is asked once a second at most: write 1s")
    return interval_ms


def _is_live_terminal() -> bool:
    from rich.console import Console

    return sys.stdout.isatty() and not Console().is_dumb_terminal


async def _look_twice(sampler: Sampler, interval_ms: int) -> History:
    import asyncio

    from .history import History

    history = History()
    try:
        history.add(await sampler.look())
        await asyncio.sleep(sampler.pause_ms(interval_ms) / 1000)
        history.add(await sampler.look())
    finally:
        await sampler.close()
    return history


def _print_frame(history: History, store: str, queue: str | None, interval_ms: int) -> None:
    import os

    from rich.console import Console

    from .choices import Choices
    from .drawing import Scene, frame
    from .lines import paint_for
    from .terminal import Drawn

    assert history.sample is not None
    console = Console(highlight=False)
    width, height = console.width, console.height - 1
    if not sys.stdout.isatty():
        width, height = _number(os.environ.get("COLUMNS"), _WIDTH), _number(os.environ.get("LINES"), _HEIGHT)
    scene = Scene(store=store, at_ms=history.sample.at_ms, queue=queue, is_live=False)
    paint = paint_for(getattr(sys.stdout, "encoding", None))
    drawn = frame(history, Choices(interval_ms=interval_ms), scene, width, height, paint)
    if sys.stdout.isatty():
        console.print(Drawn(drawn), end="")
    else:
        click.echo(drawn.text(), nl=False)


def _number(text: str | None, default: int) -> int:
    """Read a size of the environment, 1 to 9999; what is none of these is no size."""
    return int(text) if text is not None and re.fullmatch(r"[1-9][0-9]{0,3}", text) else default


async def _watch(shell: Shell, sampler: Sampler, store: str, queue: str | None, interval_ms: int) -> int:
    from rich.console import Console

    from ...clock import SYSTEM_CLOCK
    from .lines import paint_for
    from .live import LiveTop

    live = LiveTop(
        sampler,
        Console(highlight=False),
        paint_for(getattr(sys.stdout, "encoding", None)),
        SYSTEM_CLOCK,
        interval_ms=interval_ms,
        store=store,
        queue=queue,
        scrub=shell.scrub,
    )
    return await live.run()
