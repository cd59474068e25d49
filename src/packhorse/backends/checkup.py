"""What a backend says of its server to `packhorse doctor`: the promise as it stands there, and what was found.

`Backend.checkup` answers a `Checkup`. It asks and changes nothing: it neither makes a store nor migrates one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from ..wording import age

#: A clock that differs by more shows wrong ages and shifts `at=`, which is turned into a delay by the sender's clock.
SKEW_MS_MAX = 1_000


class Line(StrEnum):
    """The lines of the promise."""

    ACKNOWLEDGED = "an acknowledged enqueue is"
    SERVER_KILL = "survives kill -9 of the server"
    POWER_CUT = "survives a power cut"
    DEAD_WORKER = "a dead worker's jobs start again within"
    ORDER = "order"


#: Of every backend whose workers keep leases: DESIGN's table, and tests/crash.
DEAD_WORKER = "2 s when the keeper sees the death, else lease + 5 s"

#: What no acknowledged job survives without.
DURABILITY = (Line.SERVER_KILL, Line.POWER_CUT)


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"  # the promise holds; somebody should look at it all the same
    BROKEN = "broken"  # a line of the promise does not hold here, or nothing works


#: The checks that say, where they are broken, that the store takes no writes, or soon will not.
WRITES = frozenset({"free disk space", "takes writes", "last snapshot", "last write of the file"})


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `breaks` are the lines of the promise that do not hold because of it."""

    check: str
    value: str
    level: Level = Level.OK
    meaning: str = ""
    remedy: str = ""
    breaks: tuple[Line, ...] = ()


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend found. `promise` says each line as this kind of store keeps it; a finding may break it.

    `ready`: a store of ours is there, so that opening it makes nothing.
    """

    promise: dict[Line, str] = {}
    findings: tuple[Finding, ...] = ()
    ready: bool = True


def good_if(
    good: bool,
    check: str,
    value: object,
    meaning: str,
    remedy: str,
    *,
    breaks: Sequence[Line] = (),
    warn: bool = False,
) -> Finding:
    """Judge one value: where it is not good it is broken, or with `warn` worth a warning."""
    if good:
        return Finding(check=check, value=str(value))
    level = Level.WARN if warn else Level.BROKEN
    return Finding(check=check, value=str(value), level=level, meaning=meaning, remedy=remedy, breaks=tuple(breaks))


def clock_finding(server_ms: int, before_ms: int, after_ms: int) -> Finding:
    """Judge the clock of a server that was asked between two looks at ours."""
    # Within the round trip nobody can tell: only what is surely off counts.
    off_ms = server_ms - after_ms if server_ms > after_ms else min(0, server_ms - before_ms)
    value = (
        "the same as here"
        if abs(off_ms) <= SKEW_MS_MAX
        else f"{age(abs(off_ms))} {'ahead' if off_ms > 0 else 'behind'}"
    )
    return good_if(
        abs(off_ms) <= SKEW_MS_MAX,
        "clock",
        value,
        "delays and leases are judged by the server alone; but at= and the ages shown here are off by so much",
        "synchronise the clocks of both machines (NTP)",
        warn=True,
    )
