"""The keeper's control socket: where it is, who may ask, what can be asked, and how to ask.

A unix socket in a directory of the user's own, so no port is open (FAILURES C26). Commands on the same machine, of the
same user, find every keeper there. Length-prefixed msgpack frames: one question and one answer a connection.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ..errors import ConfigurationError, PackhorseError
from ..observe.profiling import Mode, Profile
from ..observe.stacks import Stack

#: Of a question, and of an answer: a profile of 20,000 stacks takes about 3 MiB.
QUESTION_BYTES_MAX = 4 << 10
ANSWER_BYTES_MAX = 40 << 20
LENGTH_BYTES = 4
#: What a keeper may take to answer what it knows by itself.
_ANSWER_S = 5.0
#: Sockets that are looked at; more keepers than that on one machine are not found by their runners.
_SOCKETS_MAX = 1_000
#: Bytes of a path that a socket can have: 108 on Linux and 104 on macOS, with a NUL at the end.
_PATH_BYTES_MAX = 103
_NAME = re.compile(r"keeper-(\d{1,10})\.sock")


class NoControl(PackhorseError):
    """A keeper cannot be asked; the message says what to do."""


class Kept(msgspec.Struct, frozen=True):
    """A runner: its worker's id, and its pid."""

    worker: str
    pid: int
    trouble: str = ""


class Who(msgspec.Struct, tag=True):
    """Asked: whom do you keep?"""


class AskStacks(msgspec.Struct, tag=True):
    """Asked: the stacks of this worker."""

    worker: str


class AskProfile(msgspec.Struct, tag=True):
    """Asked: a profile of this worker. Whoever asks and goes away ends it."""

    worker: str
    duration_ms: int
    rate: int
    mode: Mode


class Keeps(msgspec.Struct, tag=True):
    """Answered: the runners of this keeper."""

    runners: list[Kept]


class Stacks(msgspec.Struct, tag=True):
    """Answered: stacks, and what must be known to read them."""

    stacks: list[Stack]
    notes: list[str]
    trouble: str = ""


class Profiled(msgspec.Struct, tag=True):
    """Answered: the profile."""

    profile: Profile


class Refused(msgspec.Struct, tag=True):
    """Answered: not done, and why."""

    reason: str


Question = Who | AskStacks | AskProfile
Answer = Keeps | Stacks | Profiled | Refused

_encode = msgspec.msgpack.Encoder().encode
read_question: Callable[[bytes], Question] = msgspec.msgpack.Decoder(Question).decode
_read_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode


def pack(message: Question | Answer) -> bytes:
    """Write a frame."""
    data = _encode(message)
    return len(data).to_bytes(LENGTH_BYTES) + data


# ---- where ---------------------------------------------------------------------------------------------------


def directories() -> list[Path]:
    """Answer where sockets of this user may be, the preferred first: a service and a shell may differ in these."""
    user = os.getuid()
    found = [Path(runtime) / "packhorse"] if os.path.isabs(runtime := os.environ.get("XDG_RUNTIME_DIR", "")) else []  # noqa: PTH117
    found.append(Path(os.environ.get("TMPDIR") or "/tmp") / f"packhorse-{user}")  # noqa: S108  # checked to be ours
    found += [Path(f"/run/user/{user}/packhorse"), Path(f"/tmp/packhorse-{user}")]  # noqa: S108  # checked to be ours
    return list(dict.fromkeys(found))


def is_ours(directory: Path) -> bool:
    """Answer whether a directory is there, is no link, belongs to this user and lets no other in (FAILURES C27)."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def make_directory() -> Path:
    """Answer the directory for this process's socket, making it. Raises ConfigurationError where there can be none."""
    tried = []
    for directory in directories()[:2]:
        if len(bytes(directory / "keeper-4194304.sock.new")) > _PATH_BYTES_MAX:
            tried.append(f"{directory} is too long for a socket")
            continue
        try:
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)  # a umask may have taken more
        except FileExistsError:
            pass
        except OSError as error:
            tried.append(f"{directory} cannot be made ({error.strerror})")
            continue
        if is_ours(directory):
            return directory
        tried.append(f"{directory} is not a directory that only this user can enter")
    raise ConfigurationError("; ".join(tried) + "; set XDG_RUNTIME_DIR to a directory of this user")


def path_of(directory: Path, pid: int) -> Path:
    """Answer the path of a keeper's socket."""
    return directory / f"keeper-{pid}.sock"


def sockets(directory: Path) -> Iterator[tuple[int, Path]]:
    """Answer the keepers' pids and sockets in a directory of ours, alive or not."""
    if is_ours(directory):
        with suppress(OSError):
            for name in sorted(os.listdir(directory))[:_SOCKETS_MAX]:  # noqa: PTH208  # names are all that is needed
                if match := _NAME.fullmatch(name):
                    yield int(match[1]), directory / name


def listen(directory: Path) -> tuple[socket.socket, Path]:
    """Open this process's socket. It is bound under another name first: one that is there by its name listens."""
    path = path_of(directory, os.getpid())
    new = path.with_suffix(".sock.new")
    new.unlink(missing_ok=True)
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.bind(str(new))
        new.chmod(0o600)
        end.listen(16)
        new.rename(path)
    except BaseException:
        end.close()
        new.unlink(missing_ok=True)
        raise
    return end, path


def sweep(directory: Path) -> None:
    """Remove the sockets of keepers that are gone: those at which nobody listens."""
    for _, path in sockets(directory):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


def peer_uid(end: socket.socket) -> int | None:
    """Answer the user at the other end of a unix socket; None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the modes of directory and socket keep others out
        return None
    _, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


# ---- asking --------------------------------------------------------------------------------------------------


class Found(msgspec.Struct, frozen=True):
    """A runner on this machine, and the socket of its keeper."""

    kept: Kept
    path: Path


def runners_here() -> list[Found]:
    """Answer all runners of this user on this machine. Keepers that do not answer are left out."""
    found = []
    for directory in directories():
        for _, path in sockets(directory):
            with suppress(NoControl):
                answer = ask(path, Who())
                if isinstance(answer, Keeps):
                    found += [Found(kept, path) for kept in answer.runners]
    return found


def ask(path: Path, question: Question, patience_s: float = _ANSWER_S) -> Answer:
    """Ask a keeper and wait for its answer. Raises NoControl where there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.settimeout(_ANSWER_S)
        end.connect(str(path))
        if peer_uid(end) not in {None, os.getuid()}:
            raise NoControl(f"{path} belongs to another user")
        end.sendall(pack(question))
        end.settimeout(patience_s)
        length = int.from_bytes(_read_exactly(end, LENGTH_BYTES))
        if length > ANSWER_BYTES_MAX:
            raise NoControl("the worker's answer is larger than any can be; it may be of another version")
        return _read_answer(_read_exactly(end, length))
    except TimeoutError:
        raise NoControl("the worker's keeper does not answer in time; is it stopped?") from None
    except (OSError, EOFError):
        raise NoControl("the worker's keeper ended before it could answer; see its log") from None
    except msgspec.DecodeError:
        raise NoControl("the worker's answer cannot be read; it may be of another version of packhorse") from None
    finally:
        end.close()


def _read_exactly(end: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = end.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
