"""The app's words for workflows. What they do is in `workflow`, imported when one is used."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .app import Packhorse
    from .job import JobSpec
    from .workflow import Flow, Workflow
    from .workflow_run import WorkflowRun


class Composing:
    """The part of an app that has to do with workflows."""

    def workflow(self, flow: Flow | JobSpec | None = None, *, name: str | None = None) -> Workflow:
        """Begin a workflow: jobs that start when those before them have succeeded. Nothing is stored before `enqueue`.

            wf = app.workflow(name="nightly")
            extract = wf.add("extract", extract_rows.job(day="2030-01-31"))
            wf.add("load", load_rows.job(), after=extract)
            run = wf.enqueue()

        With a `flow` made by `chain`, `group` or `chord`, its jobs are in it already.
        """
        from .workflow import Workflow

        workflow = Workflow(cast("Packhorse", self), name=name)
        if flow is not None:
            workflow.put(flow)
        return workflow

    def batch(self, jobs: Iterable[JobSpec | Flow], then: JobSpec | Flow | None = None) -> Workflow:
        """Put jobs together that need no order, with a callback that runs once when all have ended, however.

            app.batch([resize.job(n) for n in range(500)], then=report.job()).enqueue()

        The callback learns how each ended from a parameter annotated `Results`, or from `ctx.parents()`.
        """
        from .workflow import Workflow, group

        workflow = Workflow(cast("Packhorse", self))
        ends = workflow.put(group(jobs))
        if then is not None:
            workflow.put(then, after=ends, after_failed="continue")
        return workflow

    def workflow_run(self, workflow_id: str) -> WorkflowRun:
        """Answer the handle of a workflow by id; nothing is looked up yet."""
        from .workflow_run import WorkflowRun

        return WorkflowRun(cast("Packhorse", self), workflow_id)


def is_results(hint: object) -> bool:
    """Answer whether an annotation is `packhorse.Results`. Nobody can have named it before it was imported."""
    parents = sys.modules.get(f"{__package__}.parents")
    return parents is not None and hint is parents.Results
