"""Which names this server goes by, and which pages may ask it: against DNS rebinding and forged requests (FAILURES C2).

A browser sends what any page tells it to, also to 127.0.0.1. But it says in `Host` by which name it found the server,
and in `Origin` and `Sec-Fetch-Site` which page asks; no page can change these.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from ..net.listening import is_loopback

_HOST = re.compile(rb"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_-](?:[a-z0-9._-]{0,251}[a-z0-9])?)(?::([0-9]{1,5}))?")

#: Verdicts that are remembered; a client that sends ever other names only costs the time to judge them.
_REMEMBERED_MAX = 256

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Hosts:
    """The names under which a server may be asked: those of the loopback, its addresses, and those that are allowed.

    `listening` are its addresses or names; where one means all of the machine's, any address is right: a page can bring
    a browser here by a name of its own, but not make it call that name by an address. `allowed` are names, addresses
    and `*.example.com`, each perhaps with a port.
    """

    def __init__(self, listening: Iterable[str] = ("127.0.0.1",), allowed: Iterable[str] = ()) -> None:
        bound = [address.lower() for address in listening]
        self._exact = {name.encode() for name in LOOPBACK_NAMES} | {_in_url(address).encode() for address in bound}
        self._any_address = any(_means_all(address) for address in bound)
        named = [entry.lower() for entry in allowed]
        self._own = {entry.encode() for entry in named if not entry.startswith("*.")}
        self._exact |= self._own
        self._endings = tuple(entry[1:].encode() for entry in named if entry.startswith("*."))
        self._verdicts: dict[bytes, bool] = {}
        #: Whether it goes by a name that is not of the loopback, for instance behind a proxy.
        self.is_public = any(not is_local(entry.encode()) for entry in named)

    def takes(self, host: bytes) -> bool:
        """Answer whether a request with this `Host` is for us."""
        verdict = self._verdicts.get(host)
        if verdict is None:
            verdict = self._judge(host.lower())
            if len(self._verdicts) < _REMEMBERED_MAX and len(host) <= 256:
                self._verdicts[host] = verdict
        return verdict

    def _judge(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1]
        if name in self._exact or host in self._exact:
            return True
        if self._any_address and _is_address(name.strip(b"[]").decode()):
            return True
        return any(
            each.endswith(ending) and len(each) > len(ending) for each in (name, host) for ending in self._endings
        )

    def is_own(self, origin: bytes, host: bytes) -> bool:
        """Answer whether a page of this `Origin` is ours: the same name and port as the request is for, or allowed.

        The allowed names count because a proxy may send on another `Host` than the browser asked for.
        """
        scheme, found, authority = origin.lower().partition(b"://")
        return bool(found) and scheme in {b"http", b"https"} and (authority == host.lower() or authority in self._own)


def is_foreign(
    hosts: Hosts,
    method: str,
    host: bytes,
    origin: bytes | None,
    site: bytes | None,
    mode: bytes | None,
    destination: bytes | None,
) -> bool:
    """Answer whether a page that is not ours asks. Only a plain link to us, which shows that page nothing, is not.

    Programs send neither `Origin` nor `Sec-Fetch-*`; a browser sends one of them with all that could change something.
    """
    if origin is not None and not hosts.is_own(origin, host):
        return True
    if site is None or site in {b"same-origin", b"none"}:  # none: typed, or a bookmark
        return False
    return not (method in {"GET", "HEAD"} and mode == b"navigate" and destination == b"document")


@lru_cache(1_024)
def is_local(host: bytes) -> bool:
    """Answer whether a `Host` names this very machine, by any of the loopback's names."""
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return False
    name = match[1].decode()
    if name in LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    return _is_address(name.strip("[]")) and is_loopback(name.strip("[]"))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _means_all(address: str) -> bool:
    return address == "" or (_is_address(address) and ipaddress.ip_address(address).is_unspecified)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
