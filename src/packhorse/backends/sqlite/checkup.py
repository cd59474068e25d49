"""What SQLite's part of the doctor looks at: the file, its disk, and the settings that its durability hangs on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

from ..checkup import DEAD_WORKER, DURABILITY, Checkup, Finding, Level, Line, good_if
from .connection import APPLICATION_ID, SCHEMA, connect, explain, patiently
from .filing import Location

PROMISE = {
    Line.ACKNOWLEDGED: "committed to a file, with a write-ahead log",
    Line.SERVER_KILL: "yes",
    Line.POWER_CUT: "yes",
    Line.DEAD_WORKER: DEAD_WORKER,
    Line.ORDER: "strict at claim",
}

#: Where a lock, or the memory that the processes of one store share, does not reach other machines (FAILURES A).
NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"}
)
IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})

#: From here on a checkpoint and a write that meet can lose nothing ("WAL-reset"). Ours never meet: engine.py.
SQLITE_SAFE = (3, 51, 3)

FREE_BYTES_MIN = 10 * 1024 * 1024  # a claim of a thousand large jobs would not fit any more
FREE_BYTES_WARN = 500 * 1024 * 1024
#: It is cut back to 64 MiB whenever it starts over; one that grows on is held by a reader that never ends.
WAL_BYTES_WARN = 512 * 1024 * 1024


def checkup(location: Location, mounts: str = "/proc/self/mountinfo") -> Checkup:
    """Look at a file without changing it. Raises what opening it would raise."""
    path = Path(location.path)
    if not path.exists():
        missing = good_if(False, "file", "missing", f"{path} is not there yet", "make it: packhorse migrate", warn=True)
        return Checkup(promise=PROMISE, findings=(missing,), ready=False)
    findings = [_version(), *_settings(location), _synchronous(location), _file_system(path, mounts)]
    findings += [_permissions(path), _space(path), _log(path)]
    return Checkup(
        promise=PROMISE, findings=tuple(findings), ready=not any(_changed_by_opening(each) for each in findings)
    )


def _changed_by_opening(finding: Finding) -> bool:
    """Whether opening the file would turn it back to WAL, or fill an empty one: a doctor changes nothing."""
    return finding.level is not Level.OK and finding.check in {"journal mode", "schema"}


def _version() -> Finding:
    return good_if(
        sqlite3.sqlite_version_info >= SQLITE_SAFE,
        "SQLite",
        sqlite3.sqlite_version,
        "packhorse works around the WAL-reset bug of this version; another program that writes to the file may meet it",
        "let no other program write to it, or use a Python with SQLite 3.51.3 or newer",
        warn=True,
    )


def _settings(location: Location) -> list[Finding]:
    try:
        db = connect(location, read_only=True)
        try:
            mode, owner, schema = patiently(
                lambda: [
                    db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("journal_mode", "application_id", "user_version")
                ],
                location.busy_ms,
            )
        finally:
            db.close()
    except sqlite3.Error as error:
        raise explain(error, location) from error
    if owner == 0 and schema == 0:
        return [good_if(False, "schema", "none", "the file is empty", "fill it: packhorse migrate", warn=True)]
    journal = good_if(
        mode == "wal",
        "journal mode",
        mode,
        "readers and writers block each other, and a crash is handled in another way than ours is tested for",
        f"another program changed it; turn it back: sqlite3 {location.path} 'PRAGMA journal_mode=WAL'",
        breaks=DURABILITY,
    )
    # What is wrong with any other schema or owner, opening the file says best.
    ours = [Finding(check="schema", value=str(schema))] if (owner, schema) == (APPLICATION_ID, SCHEMA) else []
    return [journal, *ours]


def _synchronous(location: Location) -> Finding:
    return good_if(
        location.synchronous in {"full", "extra"},
        "synchronous",
        location.synchronous,
        "a power cut may take back the jobs that were acknowledged last",
        "leave synchronous= out of the URL, in every program that uses this file",
        breaks=[Line.POWER_CUT],
    )


def _file_system(path: Path, mounts: str) -> Finding:
    kind = _file_system_type(path, mounts)
    if kind in NETWORK:
        return good_if(
            False,
            "file system",
            kind,
            "it is on the network: locks do not hold between machines, and the file will be damaged",
            "move the file to a local disk, or use PostgreSQL or Redis",
            breaks=[Line.ACKNOWLEDGED, *DURABILITY],
        )
    return good_if(
        kind not in IN_MEMORY,
        "file system",
        kind or "not known",
        "it is kept in memory: a power cut or restart of this machine takes all jobs",
        "move the file to a disk",
        breaks=[Line.POWER_CUT],
    )


def _file_system_type(path: Path, mounts: str) -> str:
    """Answer the type of the file system that holds `path`, as Linux names it; empty where that cannot be read."""
    best, kind = "", ""
    try:
        text = Path(mounts).read_text("utf-8", errors="replace")
    except OSError:
        return ""
    directory = str(path.parent)
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ")
        inside = directory == point or directory.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one point the later one is seen
            best, kind = point, after.split()[0]
    return kind


def _permissions(path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    return good_if(
        mode & 0o077 == 0,
        "permissions",
        f"{mode:04o}",
        "other users of this machine can read the payloads, or change jobs",
        f"unless that is meant: chmod 600 {path}",
        warn=True,
    )


def _space(path: Path) -> Finding:
    free = shutil.disk_usage(path.parent).free
    return good_if(
        free >= FREE_BYTES_WARN,
        "free disk space",
        _mib(free),
        "once the disk is full nothing is acknowledged, and workers cannot settle",
        "free some space, or keep ended jobs for a shorter time",
        warn=free >= FREE_BYTES_MIN,
    )


def _log(path: Path) -> Finding:
    try:
        size = os.stat(f"{path}-wal").st_size  # noqa: PTH116  # a side file, as SQLite names it
    except OSError:
        size = 0
    return good_if(
        size <= WAL_BYTES_WARN,
        "write-ahead log",
        _mib(size),
        "a program that reads without an end keeps it from starting over; every read gets slower",
        f"find it, and end it: fuser -v {path}",
        warn=True,
    )


def _mib(count: int) -> str:
    return f"{count / 1024 / 1024:,.0f} MiB"
