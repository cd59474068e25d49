"""The doctor: reads a store's real settings and says which lines of the promise hold there. It changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from .backends.base import Backend
from .backends.checkup import Checkup, Finding, Level, Line, good_if
from .clock import precise_boot_ms
from .errors import ConfigurationError, SchemaMismatch, Unavailable

#: A store that takes longer to be looked at is not usable.
TIMEOUT_MS = 30_000

LATENCY_CALLS = 5
#: A worker makes a few calls for each batch: at 100 ms each a job waits longer than most people expect.
LATENCY_MS_MAX = 100


class PromiseLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the promise on this server; `because` names the checks that break it."""

    line: Line
    says: str
    holds: bool
    because: tuple[str, ...] = ()


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, in the order it was looked at."""

    findings: tuple[Finding, ...]
    promise: tuple[PromiseLine, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is broken; there may be warnings."""
        return not self.broken

    @property
    def broken(self) -> list[Finding]:
        """The findings because of which the promise does not hold."""
        return [finding for finding in self.findings if finding.level is Level.BROKEN]


async def examine(backend: Backend) -> Diagnosis:
    """Look at a store that is not open, and close it. Never makes, migrates or repairs one.

    Raises ConfigurationError where it cannot even be asked: a URL that cannot work, a wrong password.
    """
    try:
        async with asyncio.timeout(TIMEOUT_MS / 1000):
            return await _examine(backend)
    except TimeoutError:
        return _diagnose(None, [_unreachable(f"no answer within {TIMEOUT_MS / 1000:g} s")])
    finally:
        await backend.close()


async def _examine(backend: Backend) -> Diagnosis:
    try:
        checkup = await backend.checkup()
    except Unavailable as error:
        return _diagnose(None, [_unreachable(str(error))])
    findings: list[Finding] = []
    if checkup.ready:
        try:
            await backend.open()
            findings = [Finding(check="opens", value="yes"), await _latency(backend), await _workers(backend)]
        except SchemaMismatch as error:
            findings = [_broken("schema", f"{error.found}, wanted {error.wanted}", str(error))]
        except ConfigurationError as error:
            findings = [_broken("opens", "no", str(error))]
        except Unavailable as error:
            findings = [_unreachable(str(error))]
    return _diagnose(checkup, findings)


def _broken(check: str, value: str, meaning: str) -> Finding:
    # The messages of our errors end with the remedy.
    return Finding(check=check, value=value, level=Level.BROKEN, meaning=meaning)


def _unreachable(reason: str) -> Finding:
    return _broken("answers", "no", reason)


async def _latency(backend: Backend) -> Finding:
    took = []
    for _ in range(LATENCY_CALLS):
        began_ms = precise_boot_ms()
        await backend.queues()
        took.append(precise_boot_ms() - began_ms)
    median_ms = sorted(took)[LATENCY_CALLS // 2]
    return good_if(
        median_ms <= LATENCY_MS_MAX,
        "latency",
        f"{median_ms:.1f} ms",
        "every call takes so long: jobs start late and drain slowly",
        "run workers close to the server, and look at its load",
        warn=True,
    )


async def _workers(backend: Backend) -> Finding:
    count = len(await backend.workers())
    return good_if(count > 0, "workers", count, "nobody runs jobs now", "start one: packhorse worker APP", warn=True)


def _diagnose(checkup: Checkup | None, findings: list[Finding]) -> Diagnosis:
    """Put together what was found; `checkup` None: the store could not be asked."""
    unknown = "not known: the store does not answer" if checkup is None else "not known: this backend does not say"
    checkup = checkup or Checkup()
    found = (*checkup.findings, *findings)
    promise = []
    for line in Line:
        because = tuple(finding.check for finding in found if line in finding.breaks)
        says = checkup.promise.get(line, unknown)
        promise.append(
            PromiseLine(line=line, says=says, holds=not because and line in checkup.promise, because=because)
        )
    return Diagnosis(findings=found, promise=tuple(promise))


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Answer the one JSON of a diagnosis."""
    return {
        "holds": diagnosis.holds,
        "findings": [
            {
                "check": finding.check,
                "level": str(finding.level),
                "value": finding.value,
                "meaning": finding.meaning,
                "remedy": finding.remedy,
                "breaks": [line.name.lower() for line in finding.breaks],
            }
            for finding in diagnosis.findings
        ],
        "promise": {
            each.line.name.lower(): {"says": each.says, "holds": each.holds, "because": list(each.because)}
            for each in diagnosis.promise
        },
    }
