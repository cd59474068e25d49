"""`jobs edit`: start an ended job over with something about it changed."""

from __future__ import annotations

from typing import Any

import click

from .failing import DONE, Sorry
from .filtering import can_answer, report_ids
from .output import note
from .shell import Shell, reads
from .submit import parse_argument


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("-p", "--payload", metavar="JSON|@FILE|-", help="The new payload: JSON, a file, or - for stdin.")
@click.option("--queue", help="The new queue.")
@click.option("--priority", help="The new priority: high, normal, low, or 0 (soonest) to 9.")
@click.option("--max-attempts", type=int, metavar="N", help="Runs in all, from now.")
@click.option("--in", "delay", metavar="DURATION", help="Start it after this time: 30s, 5m, 2h.")
@reads
def edit(shell: Shell, as_json: bool, job_id: str, payload: str | None, **given: Any) -> int:
    """Start an ended job over, under the same id, with another payload, queue, priority or number of attempts.

    Without an option, on a terminal, $EDITOR opens with the payload; leaving it as it is changes nothing.
    """
    from .. import codec
    from ..backends.base import Rerun

    fields = _read(given)
    if payload is not None:
        fields["payload"] = codec.encode(parse_argument(payload, "payload", codec.PAYLOAD_BYTES_MAX))
    elif not fields:
        if not can_answer():
            raise click.UsageError("say what to change, as -p JSON; on a terminal, an editor opens without it")
        edited = _ask(shell, job_id)
        if edited is None:
            note("nothing was changed; start it over as it is with: packhorse jobs rerun " + job_id)
            return DONE
        fields["payload"] = edited
    answer = shell.run(lambda admin: admin.edit(Rerun(id=job_id, **fields)))
    return report_ids("rerun", [answer], as_json)


def _read(given: dict[str, Any]) -> dict[str, Any]:
    """Answer the options that were given as fields of `Rerun`. Raises InvalidOption, InvalidName."""
    from ..options import read_options

    return read_options({name: value for name, value in given.items() if value is not None})


def _ask(shell: Shell, job_id: str) -> bytes | None:
    """Open $EDITOR with the payload; None if it was left as it is. Raises Sorry for a job that has not ended."""
    import json

    from .. import codec
    from ..errors import InvalidPayload
    from ..job import TERMINAL

    job = shell.run(lambda admin: admin.show(job_id))
    if job.state not in TERMINAL:
        raise Sorry(f"job {job_id} is {job.state}; only an ended one can be edited, cancel it first")
    try:
        old = codec.decode(job.payload)
    except (InvalidPayload, RecursionError):
        raise Sorry("its payload is not JSON and cannot be edited; give another one with -p") from None
    text = click.edit(json.dumps(old, indent=2, ensure_ascii=False) + "\n", extension=".json")
    if text is None or codec.parse(text) == old:
        return None
    return codec.encode(codec.parse(text))
