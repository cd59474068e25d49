"""`jobs why`: what holds a job now, and what would free it."""

from __future__ import annotations

import click

from .failing import DONE
from .output import emit_fields, emit_json
from .shell import Shell, reads


@click.command()
@click.argument("job_id", metavar="ID")
@reads
def why(shell: Shell, as_json: bool, job_id: str) -> int:
    """Tell what holds a job now, the most decisive first, and what would free it; or how it ended."""
    from ..admin import why_json

    park_ms = shell.store_settings().park_ms
    found = shell.run(lambda admin: admin.why(job_id, park_ms=park_ms))
    if as_json:
        emit_json(why_json(found))
        return DONE
    job = found.job
    fields: list[tuple[str, object]] = [("id", job.id), ("type", job.type), ("queue", job.queue), ("state", job.state)]
    for cause in found.causes:
        fields += [("why", cause.text), ("code", cause.code), ("remedy", cause.remedy or None)]
    emit_fields(fields)
    return DONE
