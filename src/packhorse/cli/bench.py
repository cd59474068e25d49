"""`packhorse bench`: measure a backend on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..wording import quantity

if TYPE_CHECKING:
    from ..benchmark.suite import Report


@click.command()
@click.option(
    "--jobs",
    type=click.IntRange(1_000, 10_000_000),
    default=50_000,
    show_default=True,
    help="Jobs of each measurement.",
)
@click.option(
    "--backlog",
    type=click.IntRange(0, 10_000_000),
    default=1_000_000,
    show_default=True,
    help="Size of the waiting backlog; 0 leaves it out.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="memory, sqlite, or the URL of a server (or of an empty store of another kind). Default: memory and sqlite.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON document to this file."
)
def bench(jobs: int, backlog: int, backends: tuple[str, ...], as_json: bool, out: Path | None) -> None:
    """Measure enqueue, drain, latency, memory and idle cost, with the floor (the bare backend) in the same run.

    The stores are made in a temporary directory and removed. Takes one to three minutes.
    """
    import msgspec

    from ..backends.opening import with_token
    from ..benchmark.suite import run, temporary_directory
    from ..settings import load

    def tell(text: str) -> None:
        click.echo(text, file=sys.stderr if as_json else sys.stdout)

    token = load().token
    reports = []
    with temporary_directory() as directory:
        for backend in backends or ("memory", "sqlite"):
            tell(f"== {backend if '://' not in backend else backend.split('@')[-1]} ==")
            reports.append(run(with_token(backend, token), jobs, backlog, Path(directory), tell))
    if not as_json:
        _print_table(reports)
    document = msgspec.json.format(msgspec.json.encode(reports)).decode()
    if out is not None:
        out.write_text(document + "\n", encoding="utf-8")
    if as_json:
        click.echo(document)


def _print_table(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..benchmark.suite import table

    console = Console(width=None if sys.stdout.isatty() else 160)
    drawn = Table(
        title=f"packhorse bench: {reports[0].machine}, {quantity(reports[0].jobs, 'job')}", title_justify="left"
    )
    for heading, justify in (("backend", "left"), ("what", "left"), ("measured", "right"), ("CPU/job", "right")):
        drawn.add_column(heading, justify="right" if justify == "right" else "left")
    drawn.add_column("target", justify="right")
    drawn.add_column("note")
    for row in table(reports):
        drawn.add_row(*row)
    console.print(drawn)
