"""Where the demo keeps its files, and how it writes them so that a crash leaves the old or the new, nothing between."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sysconfig
import tokenize
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from ..chance import secret_hex
from ..wording import quantity
from .textindex import DOCUMENT_BYTES_MAX

#: Names the data directory for worker processes.
DIRECTORY_VARIABLE = "PACKHORSE_DEMO_DIR"
DIRECTORY_DEFAULT = "demo-data"

DOCUMENT_SUFFIXES = frozenset({".py", ".txt", ".md", ".rst", ".csv", ".json"})
LINE_BYTES_MAX = 65_536


class Unfit(ValueError):
    """An argument that no retry will make fit."""


def data_dir() -> Path:
    """Answer the demo's data directory, absolute."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY_DEFAULT).absolute()


def store_url(directory: Path) -> str:
    """Answer the URL of the demo's own store of jobs."""
    return f"sqlite:///{quote(str(directory / 'jobs.db'))}"


def index_file() -> Path:
    """Answer the file of the full-text index."""
    return data_dir() / "index.db"


def standard_library() -> Path:
    """Answer the directory of the standard library's own sources."""
    return Path(sysconfig.get_paths()["stdlib"]).resolve()


def document_roots() -> tuple[Path, ...]:
    """Answer the only directories whose files may be indexed: a payload must not read any file of the machine."""
    return standard_library(), data_dir() / "documents"


def locate(name: str, roots: Sequence[Path]) -> Path:
    """Answer the file called `name` within one of `roots`. Raises Unfit for a way out, FileNotFoundError for none."""
    if "\0" in name:
        raise Unfit("a file name must not contain NUL")
    within = False
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()):
            within = True
            if path.is_file():
                return path
    if not within:
        raise Unfit(f"{name!r} lies outside the directories this job may read")
    raise FileNotFoundError(f"there is no file {name!r}")


def read_document(name: str) -> str:
    """Read a text file of the allowed directories, in the encoding a Python source declares, else UTF-8."""
    path = locate(name, document_roots())
    if path.suffix not in DOCUMENT_SUFFIXES:
        raise Unfit(f"{name!r} is no text file by its name; {', '.join(sorted(DOCUMENT_SUFFIXES))} are read")
    if path.stat().st_size > DOCUMENT_BYTES_MAX:
        raise Unfit(f"{name!r} has more than {DOCUMENT_BYTES_MAX:,} bytes")
    data = path.read_bytes()
    encoding = "utf-8-sig"
    if path.suffix == ".py":
        with contextlib.suppress(SyntaxError):  # sources that declare nonsense, as Python's own tests do
            encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
    return data.decode(encoding, errors="replace")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole: whoever reads it sees the old content or the new one, on disk when this returns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name[:100]}.{secret_hex(6)}.tmp")
    try:
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: bytes, *, unless: bytes | None = None) -> bool:
    """Append one line, whole, while others may do the same. `unless` is text that, where a line has it, means: done.

    A line that a dying process left unfinished is ended first. Answers whether the line was written.
    """
    if b"\n" in line or len(line) > LINE_BYTES_MAX:
        raise Unfit(f"a line of {quantity(len(line), 'byte')}; at most {LINE_BYTES_MAX:,} and no line break within")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go by close, and by the death of the process
        if unless is not None:
            file.seek(0)
            if any(unless in found for found in file if found.endswith(b"\n")):
                return False
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True
