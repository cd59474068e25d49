"""`packhorse demo` (alias `run`)."""

from __future__ import annotations

from pathlib import Path

import click

_WORKERS_MAX = 32
_TASKS_MAX = 100_000
_ATTEMPTS_MAX = 20


@click.command("demo")
@click.option(
    "--workers",
    type=click.IntRange(1, _WORKERS_MAX),
    default=3,
    envvar="WORKERS",
    show_default=True,
    show_envvar=True,
    help="Runner processes.",
)
@click.option(
    "--tasks",
    type=click.IntRange(1, _TASKS_MAX),
    envvar="TASKS",
    show_envvar=True,
    help="Jobs in all. Otherwise one for each source file of the standard library, and the others beside them.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, _ATTEMPTS_MAX),
    default=3,
    envvar="MAX_ATTEMPTS",
    show_default=True,
    show_envvar=True,
    help="Runs a job may have, the first included.",
)
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), help="Repeat the demo that printed this seed.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path("demo-data"),
    show_default=True,
    help="Where its files go. A new or empty directory, or one of a demo before.",
)
@click.option("--no-kill", is_flag=True, help="Kill no runner process on the way.")
def demo(workers: int, tasks: int | None, max_attempts: int, seed: int | None, directory: Path, no_kill: bool) -> int:
    """Run real jobs on this machine, with failures and a killed process, and check that nothing is lost.

    Indexes the sources of Python's standard library, writes mail into a folder, scales pictures, computes, reports.
    Ends with the dead letter queue, a search in the index, and 0 if every promise held.
    """
    from ..demo.run import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            directory=directory, workers=workers, tasks=tasks, max_attempts=max_attempts, seed=seed, kill=not no_kill
        )
    )
