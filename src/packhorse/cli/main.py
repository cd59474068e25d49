"""The table of commands, and the entry point `packhorse`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from .failing import guarded
from .lazy import Entry, LazyGroup
from .shell import Shell, url_option

COMMANDS = {
    "worker": Entry("packhorse.cli.worker:worker", "Run the jobs of an app."),
    "serve": Entry("packhorse.cli.serve:serve", "Serve jobs over HTTP."),
    "dev": Entry("packhorse.cli.dev:dev", "Serve and work, and start anew when the code changes."),
    "submit": Entry("packhorse.cli.submit:submit", "Store a job.", ("enqueue", "publish")),
    "stats": Entry("packhorse.cli.looking:stats", "Count jobs by state and queue."),
    "top": Entry("packhorse.cli.top.command:top", "Watch queues, workers, failures and rates live."),
    "health": Entry("packhorse.cli.looking:health", "Ask the store whether it answers."),
    "workers": Entry("packhorse.cli.looking:workers", "List the workers that are alive."),
    "stacks": Entry("packhorse.cli.stacks:stacks", "Show what a live worker is doing."),
    "profile": Entry("packhorse.cli.profile:profile", "Show what the handlers of a live worker spend their time on."),
    "jobs": Entry("packhorse.cli.jobs:jobs", "List, show, explain, cancel, rerun, edit and delete jobs."),
    "logs": Entry("packhorse.cli.logs:logs", "Tell what happened to a job, and what its runs logged."),
    "queues": Entry("packhorse.cli.queues:queues", "List, pause, resume and bound queues."),
    "schedules": Entry("packhorse.cli.schedules:schedules", "List, add, pause, run and remove recurring jobs."),
    "limits": Entry("packhorse.cli.limits:limits", "List, set and clear limits on the starts of jobs."),
    "workflows": Entry("packhorse.cli.workflows:workflows", "List, show, cancel and rerun workflows."),
    "list-failed": Entry("packhorse.cli.failed:list_failed", "List the dead letter queue."),
    "retry": Entry("packhorse.cli.failed:retry", "Start ended jobs over, by id."),
    "retry-all": Entry("packhorse.cli.failed:retry_all", "Start all failed jobs over, or those that match."),
    "purge": Entry("packhorse.cli.failed:purge", "Delete the jobs of a queue."),
    "migrate": Entry("packhorse.cli.store:migrate", "Bring the store to this version, or make it."),
    "tokens": Entry("packhorse.cli.tokens:tokens", "Make, list and revoke the tokens of the server."),
    "doctor": Entry("packhorse.cli.doctor:doctor", "Check a store's real settings against the promise."),
    "move": Entry("packhorse.cli.move:move", "Move all that a store holds to another one, while both are used."),
    "bench": Entry("packhorse.cli.bench:bench", "Measure a store."),
    "demo": Entry("packhorse.cli.demo:demo", "See workers, retries and the dead letter queue at work.", ("run",)),
    "version": Entry("packhorse.cli.store:version", "Print the version."),
}


class Root(LazyGroup):
    """The command `packhorse`: ends every call with an exit code, and every error with one line."""

    def main(  # type: ignore[override]  # click's overloads differ only in what they answer
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> int:
        name = prog_name or "packhorse"
        if "_PACKHORSE_COMPLETE" in os.environ:  # a shell asks how to complete a line; click answers
            super().main(args, name, complete_var, **extra)
        shell = extra.setdefault("obj", Shell())
        code = guarded(lambda: self._call(name, sys.argv[1:] if args is None else list(args), extra), shell)
        if standalone_mode:
            sys.exit(code)
        return code

    def _call(self, name: str, args: list[str], extra: dict[str, Any]) -> object:
        # Not click's own main: it ends with 1 where nobody reads any more, which is no refusal. test_processes.py.
        with self.make_context(name, args, **extra) as ctx:
            return self.invoke(ctx)


@click.command(
    cls=Root,
    entries=COMMANDS,
    name="packhorse",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@url_option
def root() -> None:
    """packhorse, a durable job queue.

    Exit codes: 0 done, 1 refused or not found, 2 usage or configuration.
    """


def main() -> None:
    """Run the command line with the arguments of this process, and end it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter must not end the call
    root.main()
