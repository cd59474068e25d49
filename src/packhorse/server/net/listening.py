"""The addresses a server listens on: found, judged and bound before anything else is started.

A name is resolved once, and what was judged is what is bound: no name can mean one address to the check and another to
the socket (FAILURES C1).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ...errors import ConfigurationError, shown

#: Connections the system may keep for us while we are busy.
BACKLOG = 2_048


class Address(NamedTuple):
    """One address of this machine, as sockets take it."""

    family: int
    address: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The address as text, without its zone."""
        return str(self.address[0]).partition("%")[0]


class Words(NamedTuple):
    """What names the address and the port, in errors: where to change them."""

    host: str = "--host"
    port: str = "--port"


SERVE = Words()


def resolve(host: str, port: int, words: Words = SERVE) -> list[Address]:
    """Answer the addresses that `host` means; the empty name means all. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"{words.host} {shown(host)} is no address ({getattr(error, 'strerror', None) or error}); "
            "give one of this machine, e.g. 127.0.0.1"
        ) from None
    unique = dict.fromkeys(Address(int(family), address) for family, _, _, _, address in found)
    return list(unique)


def is_loopback(host: str) -> bool:
    """Answer whether an address can be reached from this machine only."""
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1 is IPv4 in another dress
    return bool((mapped or address).is_loopback)


def refuse_open_address(host: str, addresses: Iterable[Address], *, has_tokens: bool, words: Words = SERVE) -> None:
    """Refuse to let others in without tokens: whoever reaches the port could read all and run anything.

    Raises ConfigurationError where one of `addresses` is not of the loopback and there are no tokens.
    """
    if has_tokens:
        return
    for address in addresses:
        if not is_loopback(address.host):
            raise ConfigurationError(
                f"{words.host} {shown(host)} lets other machines in, and there are no tokens; make one with "
                "'packhorse tokens create', or listen on 127.0.0.1"
            )


def bind(host: str, port: int, addresses: Sequence[Address], words: Words = SERVE) -> list[socket.socket]:
    """Listen on `addresses`, all at the same port; port 0 takes a free one. Who connects waits until he is accepted.

    An address family that this machine lacks is left out, if another one is there. Raises ConfigurationError.
    """
    bound: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for address in addresses:
            try:
                bound.append(_bind(address, port))
                port = bound[0].getsockname()[1]
            except OSError as error:
                failed = failed or error
                if not _lacks_family(address):
                    raise
        if not bound:
            assert failed is not None
            raise failed
    except (OSError, OverflowError) as error:
        close_all(bound)
        raise ConfigurationError(_why_not(host, port, error, words)) from None
    return bound


def _bind(address: Address, port: int) -> socket.socket:
    # Without its number asyncio does not know that it is TCP, and lets answers wait 40 ms for each other (Nagle).
    listener = socket.socket(address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Where the last server was killed, its old connections must not keep the next one from starting.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address.address[0], port, *address.address[2:]))
        listener.listen(BACKLOG)  # here, as of two that are bound to one port only the first to listen has it
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _lacks_family(address: Address) -> bool:
    """Answer whether this machine speaks no IPv6, though a name has such an address: in many a container."""
    if address.family != socket.AF_INET6 or not is_loopback(address.host):
        return False
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return False
    return True


def _why_not(host: str, port: int, error: OSError | OverflowError, words: Words) -> str:
    import errno

    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        where = host or "this machine"
        return f"port {port} of {where} is taken; stop what listens there, or give another {words.port}"
    if code == errno.EADDRNOTAVAIL:
        return f"{words.host} {shown(host)} is no address of this machine; 127.0.0.1 is"
    if code == errno.EACCES:
        return f"port {port} may not be used by this user; give a {words.port} above 1023"
    why = getattr(error, "strerror", None) or error
    return f"cannot listen on {host}:{port}: {why}; give another {words.host} or {words.port}"


def url_of(listener: socket.socket) -> str:
    """Answer the URL of a server that listens there; an address that means all is named as this machine sees it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # named, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def close_all(listeners: Iterable[socket.socket]) -> None:
    """Close sockets."""
    for listener in listeners:
        listener.close()


def raise_file_limit() -> int:
    """Let this process have as many open files as it may; answers how many, 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # as it is, then: the limit on connections follows
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft
