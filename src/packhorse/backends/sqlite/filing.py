"""The file of a store: from the URL to a path, made once and privately, and noticed when it is gone.

Nothing here may open and close an existing database file: closing any descriptor of a file drops the
locks this process holds on it through SQLite (FAILURES A). Only `stat` is used, and one `open` with
O_EXCL, of a file that nobody can have opened before.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from ...errors import ConfigurationError, InvalidOption
from ...settings import duration_ms
from ..still import stand_still_for_forks

#: As SQLite's own words. `off` is missing on purpose: a crash of the machine would corrupt the file.
SYNCHRONOUS = ("full", "normal", "extra")
BUSY_MS_DEFAULT = 30_000
BUSY_MS_MAX = 3_600_000

#: One opener at a time in a process, so that the descriptor made in `_create` is closed before SQLite locks the file.
OPENING = threading.Lock()
#: Paths of which this process, forked, has connections of its parent's: what it wrote there could be lost.
inherited: set[str] = set()


class _Openings:
    """No fork in the middle of an opening. The first to stand still, since the lock is taken while others are held."""

    def locks(self) -> list[threading.Lock]:
        return [OPENING]

    def before_fork(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        global OPENING
        OPENING = threading.Lock()


_OPENINGS = _Openings()
stand_still_for_forks(_OPENINGS)


class Location(msgspec.Struct, frozen=True):
    """What a URL says."""

    path: str
    synchronous: str = "full"
    busy_ms: int = BUSY_MS_DEFAULT


class Identity(msgspec.Struct, frozen=True):
    """Which file a path names now."""

    device: int
    inode: int


def parse_url(url: str) -> Location:
    """Read `sqlite:///relative.db` or `sqlite:////absolute.db`, with options; raise ConfigurationError."""
    parts = urlsplit(url)
    name = unquote(parts.path[1:])
    if name in {"", ":memory:"} and parts.netloc in {"", ":memory:"}:
        raise ConfigurationError(
            f"{url!r} names no file; use sqlite:///FILE (three slashes: relative, four: absolute), or memory:// "
            "for jobs that live in this process"
        )
    if not url.lower().startswith("sqlite://") or parts.netloc or parts.fragment or "\0" in name:
        raise ConfigurationError(
            f"{url!r} cannot be read; use sqlite:///FILE (three slashes: relative, four: absolute), and write # as %23"
        )
    options = _options(parts.query)
    # The real path: programs that reach one file through different links share its side files too.
    return Location(os.path.realpath(name), options[0], options[1])


def _options(query: str) -> tuple[str, int]:
    synchronous, busy_ms = "full", BUSY_MS_DEFAULT
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "synchronous":
            synchronous = value.lower()
            if synchronous not in SYNCHRONOUS:
                raise ConfigurationError(f"synchronous={value!r} in the URL: use one of {', '.join(SYNCHRONOUS)}")
        elif name == "busy_timeout":
            try:
                busy_ms = duration_ms(value, "busy_timeout in the URL", BUSY_MS_MAX)
            except InvalidOption as error:
                raise ConfigurationError(str(error)) from error
        else:
            raise ConfigurationError(f"there is no option {name!r} for SQLite; there are busy_timeout and synchronous")
    return synchronous, busy_ms


def sqlite_uri(path: str) -> str:
    """Write a path so that SQLite opens it and never makes it."""
    return f"file:{quote(path)}?mode=rw"


def identify(path: str) -> Identity | None:
    """Answer which file `path` names now; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # pathlib answers the same, 3 times slower
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)


def gone(path: str) -> ConfigurationError:
    """Explain that a file went away while it was in use."""
    return ConfigurationError(
        f"{path} was deleted or replaced while in use: stop all programs that use it, put the file back together "
        "with its -wal file (or remove both to start empty), then start them again"
    )


def prepare(path: str) -> bool:
    """See that `path` is a file that can be written, making an empty one if there is none; answers whether it did.

    Raises ConfigurationError with the remedy.
    """
    directory = str(Path(path).parent)
    if not os.path.isdir(directory):  # noqa: PTH112  # pathlib answers the same, 10 times slower
        raise ConfigurationError(f"the directory {directory} does not exist; create it with: mkdir -p {directory}")
    if os.path.isdir(path):  # noqa: PTH112
        raise ConfigurationError(f"{path} is a directory; name a file in it, for example {path}/jobs.db")
    created = not os.path.exists(path) and _create(path, directory)  # noqa: PTH110
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the directory {directory} cannot be written, and SQLite keeps its journal beside the database; "
            "give this user write access to it"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigurationError(f"{path} cannot be read and written by this user; change its owner or permissions")
    if not os.path.isfile(path):  # noqa: PTH113
        raise ConfigurationError(f"{path} is not a regular file; name another")
    return created


def _create(path: str, directory: str) -> bool:
    """Make the file empty and private (C27). Whoever opens it first fills in the schema, under SQLite's own lock."""
    if os.path.exists(path + "-wal") and not os.path.exists(path):  # noqa: PTH110
        raise ConfigurationError(
            f"{path} is missing but {path}-wal is there: the database was deleted or moved while in use; "
            f"put it back, or remove {path}-wal and {path}-shm too to start empty"
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False  # another process was quicker
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be created ({error.strerror}); give this user write access to {directory}"
        ) from error
    try:
        os.fchmod(fd, 0o600)  # whatever the umask; SQLite gives its -wal and -shm the same mode
    finally:
        os.close(fd)
    # SQLite never syncs the directory for this file, and without that a power cut may take the name away.
    directory_fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
    return True
