"""`dev`: the server and its worker in one, for somebody who is writing the app."""

from __future__ import annotations

from typing import Any

import click

from ..wording import quantity
from .output import note
from .shell import Shell, pass_shell, url_option
from .worker import app_path

#: Jobs that run when a file is saved have so long to end; then they are given back, and run again after.
_GRACE = "2s"
_PATIENCE_MS = 2_000 + 30_000


@click.command()
@click.argument("app", callback=app_path)
@click.option("--host", metavar="ADDRESS", help="Where to listen: 127.0.0.1 unless set. Any other needs tokens.")
@click.option("--port", metavar="PORT", help="8080 unless set; 0 takes a free one and keeps it.")
@click.option("-q", "--queues", multiple=True, metavar="A,B", help="Queues of the worker, as for packhorse worker.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 100_000), metavar="N", help="Jobs at once.")
@url_option
@pass_shell
def dev(shell: Shell, /, app: str, **given: Any) -> int:
    """Serve APP and run its jobs, and start anew whenever a Python file of it is saved.

    APP is module:attribute (the attribute is `app` unless given). Where a saved file is no Python, or the app cannot
    be imported with it, the error is shown and what runs stays as it was. Jobs that run when it starts anew have 2 s to
    end, else they are given back and run again.
    """
    import asyncio

    from ..server.beside.reloading import Reloader, Sources, roots_of
    from ..server.net.listening import bind, close_all
    from .serve import open_addresses

    settings = shell.settings({"host": given["host"], "port": given["port"]})
    # Only to see that it is to be had: the children bind to it, one after another.
    listeners = bind(settings.host, settings.port, open_addresses(settings))
    port = listeners[0].getsockname()[1]
    close_all(listeners)
    arguments = ["serve", app, "--with-worker", "--host", settings.host, "--port", str(port), "--processes", "1"]
    arguments += ["--shutdown-timeout", _GRACE]
    if given["concurrency"] is not None:
        arguments += ["--concurrency", str(given["concurrency"])]
    for queues in given["queues"]:
        arguments += ["--queues", queues]
    sources = Sources(roots_of(app))
    more = ", and there are more than can be watched" if sources.cut else ""
    note(f"watching {quantity(len(sources), 'Python file')}{more}; Ctrl+C ends it")

    def say(line: str) -> None:
        note(shell.scrub(line))  # an error of the app may hold a URL with its password

    async def run() -> int:
        return await Reloader(app, arguments, sources, _PATIENCE_MS, say, shell.url).run()

    return asyncio.run(run())
