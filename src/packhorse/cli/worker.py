"""`worker`: run the jobs of an app. This process becomes the keeper and never imports the app (DESIGN section 6)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .shell import Shell, pass_shell, url_option

if TYPE_CHECKING:
    from ..settings import Settings
    from ..worker.keeper import Endpoint
    from ..worker.launch import Launched

_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*)?")
_SIZE = re.compile(r"(\d{1,9})\s*(K|M|G|T)(i?)B?", re.ASCII | re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def app_path(ctx: click.Context, param: click.Parameter, text: str) -> str:
    """Check `module:attribute`; the attribute is `app` unless given. Only read here: the runners import it."""
    if text.endswith(".py") or "/" in text:
        raise click.BadParameter(f"{text[:80]!r} is a file; give the module, as jobs or jobs:app")
    if not _APP.fullmatch(text):
        raise click.BadParameter(f"{text[:80]!r} does not name an app; write module:attribute, as jobs:app")
    return text


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Read bytes with a unit: `512MB` is 512,000,000 and `512MiB` is 536,870,912."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"{text[:40]!r} is not a size; write 512MB or 1GiB")
    number, unit, binary = match.groups()
    return int(number) * int((1024 if binary else 1000) ** _POWERS[unit.upper()])


def read_duration(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Read a duration as everywhere: `250ms`, `30s`, `5m`. Answers ms."""
    if text is None:
        return None
    from ..settings import duration_ms

    return duration_ms(text, param.opts[-1])


@click.command()
@click.argument("app", callback=app_path)
@click.option(
    "-q",
    "--queues",
    multiple=True,
    metavar="A,B",
    help="Queues to take jobs from, strictly in order. With weights, as A=6,B=1, by chance, so that none starves.",
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 100_000), metavar="N", help="Jobs at once in each process.")
@click.option("-p", "--processes", type=click.IntRange(1, 1_000), metavar="N", help="Runner processes.")
@click.option("--burst", is_flag=True, help="End when nothing is left to do.")
@click.option(
    "--lease", callback=read_duration, metavar="DURATION", help="How long a claim holds without a sign of life."
)
@click.option(
    "--shutdown-timeout", callback=read_duration, metavar="DURATION", help="How long running jobs have to end."
)
@click.option(
    "--poll-interval", callback=read_duration, metavar="DURATION", help="Look for jobs this often, if not woken."
)
@click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="Renew a process after so many jobs.")
@click.option("--max-memory", callback=_size, metavar="SIZE", help="Renew a process that is larger: 512MB, 1GiB.")
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    help="Answer /metrics and /health there, as 127.0.0.1:9091; nowhere unless set. Any other address needs tokens.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log; info unless set."
)
@click.option("--log-format", type=click.Choice(["console", "json"]), help="For people or for programs.")
@url_option
@pass_shell
def worker(shell: Shell, /, app: str, **given: Any) -> int:
    """Run the jobs of APP, given as module:attribute (the attribute is `app` unless given).

    Ctrl+C or SIGTERM once: no new jobs, those that run may end within the shutdown time. Twice: end now. What has not
    started or not ended is given back, and nothing is lost.
    """
    # One runner loads its modules while this process loads its own: so a worker is ready in half the time.
    from ..worker.launch import launch

    launched = [launch()]
    try:
        settings = shell.store_settings(create=True, given={"metrics": given["metrics"]})
        queues = tuple(name.strip() for item in given["queues"] for name in item.split(",") if name.strip())
        if given["queues"] and not queues:
            raise click.UsageError("--queues names no queue; write -q a,b")
        processes = given["processes"] or settings.processes
        launched += [launch() for _ in range(processes - 1)]
        from ..worker.keeper import KeeperOptions, run_keeper
        from ..worker.options import WorkerOptions

        overrides = {
            "queues": queues or None,
            "concurrency": given["concurrency"],
            "burst": given["burst"] or None,
            "lease_ms": given["lease"],
            "shutdown_timeout_ms": given["shutdown_timeout"],
            "poll_interval_ms": given["poll_interval"],
            "jobs_max": given["max_jobs"],
            "memory_bytes_max": given["max_memory"],
        }
        overrides = {field: value for field, value in overrides.items() if value is not None}
        WorkerOptions.of(settings, **overrides)  # refuse what cannot work before any runner is told to
        tell_fd = _tell_fd()
        endpoint = _endpoint(settings) if tell_fd is None else None  # else who started it answers for it
    except BaseException:
        _call_off(launched)
        raise
    return run_keeper(
        KeeperOptions(
            app=app,
            url=shell.url,  # None: the app's own, which may be written in its code
            processes=processes,
            overrides=overrides,
            tell_fd=tell_fd,
            log_level=given["log_level"] or settings.log_level,
            log_format=given["log_format"] or settings.log_format,
        ),
        launched,
        endpoint,
    )


def _tell_fd() -> int | None:
    """Answer the socket of who started this worker, where he wants to know what it counts."""
    from ..leash import TELL_FD, is_held

    named = os.environ.pop(TELL_FD, None)  # for this process and for none that it starts
    return int(named) if named is not None and is_held() else None


def _endpoint(settings: Settings) -> Endpoint | None:
    """Make what answers for the worker over HTTP, if that is asked for. Raises ConfigurationError."""
    if settings.metrics is None:
        return None
    from ..server.worker_endpoint import WorkerEndpoint

    return WorkerEndpoint(settings)


def _call_off(launched: Sequence[Launched]) -> None:
    """End runner processes that were started too soon; they have loaded nothing of the user's."""
    for one in launched:
        one.process.kill()
        one.process.wait()
        one.end.close()
        one.inspection_end.close()
        one.page.close()
