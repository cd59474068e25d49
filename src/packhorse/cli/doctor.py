"""`doctor`: which lines of the promise hold on this server, and what to do about the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .failing import DONE, REFUSED, Sorry
from .output import emit_json, emit_table, say
from .shell import Shell, open_store, reads

if TYPE_CHECKING:
    from ..backends.checkup import Finding
    from ..doctor import Diagnosis


@click.command()
@click.argument("store", metavar="[URL]", required=False)
@reads
def doctor(shell: Shell, as_json: bool, store: str | None) -> int:
    """Check a store's real settings against the promise. Exits with 1 where a line of it does not hold.

    Changes nothing: it makes, migrates and repairs no store. Warnings do not fail it. URL is the same as --url.
    """
    import asyncio

    from ..doctor import diagnosis_json, examine

    if store is not None:
        shell.take_url(store)
    diagnosis = _scrubbed(shell, asyncio.run(examine(open_store(shell.store_settings()))))
    if as_json:
        emit_json(diagnosis_json(diagnosis))
        return DONE if diagnosis.holds else REFUSED
    _print(diagnosis)
    if not diagnosis.holds:
        checks = ", ".join(finding.check for finding in diagnosis.broken)
        raise Sorry(f"the promise does not hold on this server: {checks}")
    return DONE


def _scrubbed(shell: Shell, diagnosis: Diagnosis) -> Diagnosis:
    """Answer it without passwords: what a server says of itself is not ours to trust."""
    from msgspec.structs import replace

    clean = shell.scrub
    findings = tuple(
        replace(each, value=clean(each.value), meaning=clean(each.meaning), remedy=clean(each.remedy))
        for each in diagnosis.findings
    )
    return replace(diagnosis, findings=findings)


def _print(diagnosis: Diagnosis) -> None:
    rows = [[found.level, found.check, found.value, _advice(found)] for found in diagnosis.findings]
    emit_table(["", "check", "value", "what to know and do"], rows, below="what to know and do")
    say("")
    promise = [
        [each.line, f"no: see {', '.join(each.because)}" if each.because else each.says] for each in diagnosis.promise
    ]
    emit_table(["the promise", "on this server"], promise)


def _advice(found: Finding) -> str:
    return "; ".join(text for text in (found.meaning, found.remedy) if text)
