"""`workflows list`, `show`, `cancel` and `rerun`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..wording import quantity
from .failing import DONE
from .filtering import report_ids
from .lazy import Entry, LazyGroup
from .output import Instant, age, emit_fields, emit_json, emit_table, note, say, shorten
from .shell import Shell, reads

if TYPE_CHECKING:
    from ..admin_values import Answer
    from ..admin_workflows import WorkflowView

WORKFLOWS = {
    "list": Entry("packhorse.cli.workflows:list_workflows", "List workflows, newest first."),
    "show": Entry("packhorse.cli.workflows:show", "Show the jobs of a workflow and what each waits for."),
    "cancel": Entry("packhorse.cli.workflows:cancel", "Stop all jobs of a workflow."),
    "rerun": Entry("packhorse.cli.workflows:rerun", "Start the failed jobs of a workflow over."),
}

#: Deeper levels are not indented further: a chain of 500 must fit on a screen.
_LEVELS_SHOWN_MAX = 12
_AFTER_SHOWN_MAX = 3
_ERROR_CHARS_SHOWN = 80


@click.command(cls=LazyGroup, entries=WORKFLOWS)
def workflows() -> None:
    """List, show, cancel and rerun workflows."""


@click.command("list")
@click.option("--limit", type=int, default=20, show_default=True, help="Workflows on a page, 1 to 100.")
@click.option("--cursor", help="Go on from the `next` of the page before.")
@reads
def list_workflows(shell: Shell, as_json: bool, limit: int, cursor: str | None) -> int:
    """List workflows with how many of their jobs are in each state, newest first."""
    from ..admin import list_json
    from ..admin_workflows import workflow_json
    from ..job import State

    found, more = shell.run(lambda admin: admin.workflows.list(limit, cursor))
    if as_json:
        emit_json(list_json(map(workflow_json, found), more))
        return DONE
    if not found:
        note("no workflows: none was enqueued yet, or all of them were dropped")
        return DONE
    headers = ["id", "name", "state", *map(str, State), "created"]
    rows = [
        [
            view.counts.id,
            view.name,
            view.state,
            *(view.counts.states.get(state, 0) for state in State),
            Instant(view.counts.created_at_ms),
        ]
        for view in found
    ]
    emit_table(headers, rows, right=map(str, State))
    if more is not None:
        note(f"there are more; add --cursor {more}")
    return DONE


@click.command()
@click.argument("workflow_id", metavar="ID")
@reads
def show(shell: Shell, as_json: bool, workflow_id: str) -> int:
    """Show the jobs of a workflow, parents before children: what each waits for, its state, how long it took."""
    from ..admin_workflows import workflow_json
    from ..clock import SYSTEM_CLOCK

    view = shell.run(lambda admin: admin.workflows.show(workflow_id))
    shown = workflow_json(view, SYSTEM_CLOCK.now_ms())
    if as_json:
        emit_json(shown)
    else:
        _print(view, shown)
    return DONE


def _print(view: WorkflowView, shown: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in shown["states"].items() if count)
    fields = [(name, shown[name]) for name in ("id", "name", "state", "created_at")]
    emit_fields([*fields, ("jobs", f"{len(view.jobs)}: {counts}")])
    rows = []
    for node in shown["nodes"]:
        after = node["after"]
        more = f" and {len(after) - _AFTER_SHOWN_MAX:,} more" if len(after) > _AFTER_SHOWN_MAX else ""
        rows.append(
            [
                "  " * min(node["level"], _LEVELS_SHOWN_MAX) + (node["node"] or node["id"]),
                node["type"],
                node["state"],
                f"{node['attempt']}/{node['max_attempts']}",
                age(node["duration_ms"]),
                ", ".join(after[:_AFTER_SHOWN_MAX]) + more,
                shorten((node["error"] or "").partition("\n")[0], _ERROR_CHARS_SHOWN),
            ]
        )
    emit_table(
        ["node", "type", "state", "attempt", "took", "after", "error"], rows, right=["attempt", "took"], below="error"
    )


@click.command()
@click.argument("workflow_id", metavar="ID")
@reads
def cancel(shell: Shell, as_json: bool, workflow_id: str) -> int:
    """Stop all jobs of a workflow: those that run are stopped by their workers, the others will never start."""
    answers = shell.run(lambda admin: admin.workflows.cancel(workflow_id))
    return _report("cancel", workflow_id, answers, as_json, "cancelled", "nothing of it is left to cancel")


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--cancelled", is_flag=True, help="Also what somebody cancelled, not only what failed.")
@reads
def rerun(shell: Shell, as_json: bool, workflow_id: str, cancelled: bool) -> int:
    """Start the failed jobs of a workflow over. What was cancelled because of them waits for them again."""
    answers = shell.run(lambda admin: admin.workflows.rerun(workflow_id, cancelled=cancelled))
    return _report("rerun", workflow_id, answers, as_json, "started over", "nothing of it has failed")


def _report(verb: str, workflow_id: str, answers: Sequence[Answer], as_json: bool, done_word: str, nothing: str) -> int:
    """Print how many jobs it was, or with --json each; raise Sorry if some could not be done."""
    from ..backends.base import Steered

    if as_json or any(answer.answer not in {Steered.DONE, Steered.REQUESTED, Steered.ENDED} for answer in answers):
        return report_ids(verb, answers, as_json)
    done = sum(answer.answer is Steered.DONE for answer in answers)
    requested = sum(answer.answer is Steered.REQUESTED for answer in answers)
    if not done + requested:
        note(nothing)
        return DONE
    say(
        f"{quantity(done, 'job')} of {workflow_id} {done_word}"
        + (f", {quantity(requested, 'running job')} will be stopped by the worker" if requested else "")
    )
    return DONE
