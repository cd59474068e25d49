"""Which worker on this machine is meant: by id, the beginning of one, pid or host:pid; or the only one there is."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..wording import quantity
from .failing import Sorry
from .shell import Shell

if TYPE_CHECKING:
    from ..backends.base import WorkerInfo
    from ..worker.control import Found

_NAMED_MAX = 5


def find_worker(shell: Shell, name: str | None, command: str) -> Found:
    """Answer the runner that `name` means. Raises Sorry, which says what to do: for one elsewhere, run it there."""
    from ..worker.control import runners_here

    here = runners_here()
    found = here if name is None else _matching(here, name)
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(f"{one.kept.worker} (pid {one.kept.pid})" for one in found[:_NAMED_MAX])
        more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
        raise Sorry(f"that may be any of {quantity(len(found), 'worker')}: {named}{more}; name one")
    if name is None:
        raise Sorry(
            "no worker of this user runs on this machine; start one with: packhorse worker APP, or run this as its user"
        )
    raise Sorry(_why_not_here(shell, name, command))


def _matching(runners: list[Found], name: str) -> list[Found]:
    host, _, pid = name.rpartition(":")
    if pid.isdecimal() and (not host or host == socket.gethostname()):
        by_pid = [one for one in runners if one.kept.pid == int(pid)]
        by_keeper = [one for one in runners if one.path.name == f"keeper-{int(pid)}.sock"]
        if by_pid or by_keeper or host:
            return by_pid or by_keeper
    exact = [one for one in runners if one.kept.worker == name]
    return exact or [one for one in runners if name and one.kept.worker.startswith(name)]


def _why_not_here(shell: Shell, name: str, command: str) -> str:
    """Say where the worker is, as far as the store knows."""
    known = _known_to_the_store(shell, name)
    if known is None:
        return f"there is no worker {name[:100]!r} of this user on this machine; packhorse workers lists those alive"
    if known.host != socket.gethostname()[:128]:
        return f"worker {known.id} runs on {known.host}: run it there: packhorse {command} {known.id}"
    return (
        f"worker {known.id} runs here as pid {known.pid}, but has no keeper that answers this user: run this as the "
        "worker's user; one inside a program (app.worker()) cannot be asked"
    )


def _known_to_the_store(shell: Shell, name: str) -> WorkerInfo | None:
    from ..errors import PackhorseError

    try:
        workers = shell.run(lambda admin: admin.workers())
    except PackhorseError:
        return None  # the store is no part of the question
    host, _, pid = name.rpartition(":")
    matching = [one for one in workers if name and one.id.startswith(name)] or [
        one for one in workers if pid == str(one.pid) and host in {"", one.host}
    ]
    return matching[0] if len(matching) == 1 else None
