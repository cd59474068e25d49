"""`serve`: jobs in and out over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import say
from .shell import Shell, pass_shell, url_option
from .worker import app_path, read_duration

if TYPE_CHECKING:
    import socket

    from ..app import Packhorse
    from ..server.beside.worker import Beside
    from ..server.net.limits import Limits
    from ..server.net.listening import Address
    from ..settings import Settings

#: Requests have the shutdown time to end, but no longer than this: jobs may be long, requests are not.
GRACE_MS_MAX = 10_000


def _maybe_app_path(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    return None if text is None else app_path(ctx, param, text)


@click.command()
@click.argument("app", required=False, callback=_maybe_app_path)
@click.option("--host", metavar="ADDRESS", help="Where to listen: 127.0.0.1 unless set. Any other needs tokens.")
@click.option("--port", metavar="PORT", help="8080 unless set; 0 takes a free one.")
@click.option("--with-worker", is_flag=True, help="Run the jobs of APP too.")
@click.option(
    "-q", "--queues", multiple=True, metavar="A,B", help="Queues of the worker beside it, as for packhorse worker."
)
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 100_000), metavar="N", help="Jobs at once in each of its processes."
)
@click.option("-p", "--processes", type=click.IntRange(1, 1_000), metavar="N", help="Its runner processes.")
@click.option(
    "--shutdown-timeout",
    callback=read_duration,
    metavar="DURATION",
    help="How long requests, 10s at most, and running jobs have to end.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log; info unless set."
)
@click.option("--log-format", type=click.Choice(["console", "json"]), help="For people or for programs.")
@url_option
@pass_shell
def serve(shell: Shell, /, app: str | None, **given: Any) -> int:
    """Serve the store over HTTP: /api/v1, /jobs, /health, /openapi.json.

    With APP (module:attribute) the payloads of its tasks are checked at the door; jobs of other types are taken as they
    are, as all are without APP. The URL is printed once the server answers.

    Ctrl+C or SIGTERM once: requests and running jobs may end in their time. Twice: end now. Nothing is lost.
    """
    if given["with_worker"] and app is None:
        raise click.UsageError("--with-worker needs an APP whose jobs it runs, as: packhorse serve jobs --with-worker")
    if not given["with_worker"] and (given["queues"] or given["concurrency"] or given["processes"]):
        raise click.UsageError("--queues, --concurrency and --processes are for the worker; add --with-worker")
    from msgspec.structs import replace

    from ..backends.opening import secrets_of
    from ..observe.logs import configure, hide, take_root
    from ..server.net.listening import bind, close_all

    asked = shell.settings({"host": given["host"], "port": given["port"]})
    level = given["log_level"] or asked.log_level
    configure(level, given["log_format"] or asked.log_format)
    loaded = load_app(shell, app)
    take_root(level)
    hide(secrets_of(loaded.settings.url))
    # What the app's code says goes for the server as it does for a worker, but for what was asked on this very line.
    host = loaded.settings.host if given["host"] is None else asked.host
    port = loaded.settings.port if given["port"] is None else asked.port
    loaded.settings = replace(loaded.settings, host=host, port=port)
    listeners = bind(host, port, open_addresses(loaded.settings))
    try:
        return _serve(shell, loaded, app, listeners, given)
    except BaseException:
        close_all(listeners)
        raise


def open_addresses(settings: Settings) -> list[Address]:
    """Answer the addresses to listen on. Raises ConfigurationError where they let others in without tokens (C1)."""
    from ..server.door.tokens import load_tokens
    from ..server.net.listening import refuse_open_address, resolve

    addresses = resolve(settings.host, settings.port)
    refuse_open_address(settings.host, addresses, has_tokens=bool(load_tokens(settings)))
    return addresses


def _serve(
    shell: Shell, app: Packhorse, path: str | None, listeners: list[socket.socket], given: dict[str, Any]
) -> int:
    from ..backends.opening import in_namespace, open_backend
    from ..observe.tracing import SERVER_SERVICE
    from ..server.app import guarded_application
    from ..server.net.process import ServeOptions, serve
    from ..server.service import Service

    settings = app.settings
    app.tracing(SERVER_SERVICE)  # that it cannot be had is said at once
    # Connects to nothing and makes nothing: a URL that names no store is known before anybody is told of a server.
    shared = open_backend(in_namespace(settings.url, settings.namespace)).capabilities.shared
    grace_ms = settings.shutdown_timeout_ms if given["shutdown_timeout"] is None else given["shutdown_timeout"]
    make_beside = _beside(shell, app, path, given, grace_ms, shared) if path and given["with_worker"] else None
    service = Service(app)
    heard_at = [settings.host, *(listener.getsockname()[0] for listener in listeners)]
    return serve(
        service,
        guarded_application(service, heard_at),
        listeners,
        ServeOptions(limits=limits_of(settings), grace_ms=min(grace_ms, GRACE_MS_MAX)),
        announce=_announce,
        beside=make_beside,
    )


def load_app(shell: Shell, path: str | None) -> Packhorse:
    """Import the app that `path` names; None makes one without tasks. Raises ConfigurationError."""
    from msgspec.structs import replace

    from ..app import Packhorse
    from ..errors import ConfigurationError, PackhorseError
    from ..worker.importing import import_app, own_traceback

    if path is None:
        return _with_store(Packhorse(shell.url, name="packhorse"))
    sys.path.insert(0, str(Path.cwd()))
    try:
        app = import_app(path)
    except PackhorseError:
        raise
    except Exception as error:  # user code: importing it may raise anything
        import traceback

        lines = traceback.format_exception(type(error), error, own_traceback(error))
        click.echo(shell.scrub("".join(lines)), err=True, nl=False)
        raise ConfigurationError(f"{path} cannot be imported: {type(error).__name__}: {error}") from None
    if shell.url is not None:
        app.settings = replace(app.settings, url=shell.url)
    return _with_store(app)


def _with_store(app: Packhorse) -> Packhorse:
    from ..errors import ConfigurationError

    if app.settings.url.lower().startswith(("http:", "https:")):
        raise ConfigurationError("a server needs a store and not another server; give --url, e.g. sqlite:///jobs.db")
    return app


def limits_of(settings: Settings) -> Limits:
    """Answer the server's limits with the time-outs of the settings."""
    from ..server.net.limits import Limits

    usual = Limits()
    return Limits(
        head_ms=min(usual.head_ms, settings.read_timeout_ms),
        body_ms=settings.read_timeout_ms,
        write_ms=settings.write_timeout_ms,
    )


def _beside(
    shell: Shell, app: Packhorse, path: str, given: dict[str, Any], grace_ms: int, shared: bool
) -> Callable[[], Beside]:
    """Answer what makes the worker beside the server, once the event loop runs."""
    from ..worker.options import WorkerOptions

    queues = tuple(name.strip() for item in given["queues"] for name in item.split(",") if name.strip())
    options = {"queues": queues or None, "concurrency": given["concurrency"]}
    WorkerOptions.of(app.settings, **options)  # refuse what cannot work before anything is started
    named = {
        "--queues": ",".join(queues) or None,
        "--concurrency": given["concurrency"],
        "--processes": given["processes"],
        "--shutdown-timeout": f"{grace_ms}ms",
        "--log-level": given["log_level"],
        "--log-format": given["log_format"],
    }
    arguments = [part for name, value in named.items() if value is not None for part in (name, str(value))]

    def make() -> Beside:
        from ..server.beside.worker import WorkerInLoop, WorkerProcess

        if shared:
            return WorkerProcess(["worker", path, *arguments], grace_ms, shell.url, app.meters)
        return WorkerInLoop(app, shutdown_timeout=grace_ms / 1000, **options)

    return make


def _announce(url: str) -> None:
    """Print where the server is, at once: whoever started it with port 0 waits for this line."""
    with suppress(OSError):  # nobody reads; that is no reason not to serve
        say(f"packhorse serves {url}")
        sys.stdout.flush()
