"""`profile`: what the handlers of a live worker spend their time on."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .failing import DONE, Sorry
from .finding import find_worker
from .output import emit_json, emit_table, note
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..observe.profiling import Profile
    from ..worker.control import Answer, Found, Question

Format = Literal["speedscope", "svg", "folded"]
_SUFFIXES: dict[str, Format] = {".json": "speedscope", ".svg": "svg", ".folded": "folded", ".txt": "folded"}
_FUNCTIONS_SHOWN = 15
#: Beyond the time of the profile: child processes answer last, and the answer has to be written.
_PATIENCE_S = 20.0


@click.command()
@click.argument("worker", required=False)
@click.option("--seconds", type=click.FloatRange(0.1, 300), default=10.0, show_default=True, help="How long.")
@click.option("--rate", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Samples a second.")
@click.option(
    "--mode",
    type=click.Choice(["cpu", "wall"]),
    default="cpu",
    show_default=True,
    help="Processor time, or all the time of jobs, waiting included.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it here.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["speedscope", "svg", "folded"]),
    help="Of the file; else by its name: .svg, .folded, or .json for speedscope.",
)
@reads
def profile(shell: Shell, as_json: bool, worker: str | None, **given: Any) -> int:
    """Profile the running handlers of WORKER, without restarting it.

    WORKER is an id or its beginning, a pid, or host:pid; the only one on this machine if left out. Prints which job
    types and functions take the time; -o writes a flame graph (.svg) or a file for speedscope.app (.json). With
    --format and no file, the profile itself is printed.
    """
    from ..observe.profiling import by_function
    from ..worker.control import AskProfile, Profiled, Refused

    output: Path | None = given["output"]
    _check_output(output)
    found = find_worker(shell, worker, "profile")
    seconds = given["seconds"]
    question = AskProfile(found.kept.worker, round(seconds * 1000), given["rate"], given["mode"])
    answer = _wait(found, question, seconds)
    if not isinstance(answer, Profiled):
        raise Sorry(answer.reason if isinstance(answer, Refused) else "the worker answered something else; try again")
    taken = answer.profile
    for line in taken.notes:
        note(line)
    if not by_function(taken):
        note(f"no handler used time in these {seconds:g} s" + ("; try --mode wall" if taken.mode == "cpu" else ""))
    title = f"packhorse worker {found.kept.worker}, pid {found.kept.pid}"
    if output is not None:
        form = given["form"] or _SUFFIXES.get(output.suffix, "speedscope")
        _write(output, _render(taken, form, title))
        if not as_json:
            note(f"wrote {output} ({form})")
    elif given["form"] is not None:
        click.echo(_render(taken, given["form"], title), nl=False)
        return DONE
    if as_json:
        emit_json(_json(taken))
    else:
        _print(taken)
    return DONE


def _check_output(output: Path | None) -> None:
    """Find out before the profile is taken that it could not be written."""
    if output is None:
        return
    parent = output.absolute().parent
    if not parent.is_dir():
        raise click.UsageError(f"there is no directory {parent}; make it, or name another file")
    if not os.access(output if output.exists() else parent, os.W_OK):
        raise click.UsageError(f"{output} cannot be written; name another file")


def _wait(found: Found, question: Question, seconds: float) -> Answer:
    """Ask, with a bar on a terminal while the worker samples. Ctrl+C ends the profile, here and there."""
    from ..worker.control import ask

    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        return ask(found.path, question, seconds + _PATIENCE_S)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    answers: list[Answer | Exception] = []

    def work() -> None:
        try:
            answers.append(ask(found.path, question, seconds + _PATIENCE_S))
        except Exception as error:  # raised below, in the thread that can say it
            answers.append(error)

    asking = threading.Thread(target=work, daemon=True)
    columns = (TextColumn("profiling pid {task.fields[pid]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=seconds, pid=found.kept.pid)
        asking.start()
        while asking.is_alive():
            asking.join(0.1)
            progress.advance(task, 0.1)
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def _render(taken: Profile, form: Format, title: str) -> bytes:
    from ..observe.profiling import folded, speedscope

    match form:
        case "speedscope":
            return speedscope(taken, title)
        case "svg":
            from ..observe.flamegraph import flame_graph

            return flame_graph(taken, title).encode()
        case "folded":
            return folded(taken).encode()


def _write(output: Path, data: bytes) -> None:
    try:
        output.write_bytes(data)
    except OSError as error:
        raise Sorry(f"{output} cannot be written: {error.strerror}; name another file") from None


def _json(taken: Profile) -> dict[str, Any]:
    from ..observe.profiling import by_function, by_job_type

    return {
        "mode": taken.mode,
        "rate": taken.rate,
        "duration_ms": taken.duration_ms,
        "samples": taken.samples,
        "processes": taken.processes,
        "total_us": taken.total_us,
        "types": [{"type": row.name, "total_us": row.total_us} for row in by_job_type(taken)],
        "functions": [
            {"function": row.name, "self_us": row.self_us, "total_us": row.total_us} for row in by_function(taken)[:100]
        ],
        "notes": taken.notes,
    }


def _print(taken: Profile) -> None:
    from ..observe.profiling import by_function, by_job_type, percent

    whole = taken.total_us
    if not whole:
        return
    emit_table(
        ["share", "seconds", "job type"],
        [[percent(row.total_us, whole), f"{row.total_us / 1e6:.2f}", row.name] for row in by_job_type(taken)],
        right=["share", "seconds"],
    )
    functions = by_function(taken)[:_FUNCTIONS_SHOWN]
    if not functions:
        return
    click.echo()
    emit_table(
        ["self", "total", "function"],
        [[percent(row.self_us, whole), percent(row.total_us, whole), row.name] for row in functions],
        right=["self", "total"],
    )
