"""Which addresses a post may go to: public ones, and those that the operator allows (FAILURES C12).

Written down here, not asked of `ipaddress.is_global`, whose answer is another one in each version of Python. What is
not known to be public is refused: for IPv6 that is all but 2000::/3.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..errors import PackhorseError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefused(PackhorseError):
    """A post would have gone to an address that is not public and not allowed."""


#: IANA's registry of special IPv4 addresses (RFC 6890 and the documents named), and what is known to be internal.
_REFUSED_V4: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network, RFC 791; 0.0.0.0 reaches this very machine"),
    ("10.0.0.0/8", "private, RFC 1918"),
    ("100.64.0.0/10", "carrier-grade NAT, RFC 6598"),
    ("127.0.0.0/8", "loopback, RFC 1122"),
    ("168.63.129.16/32", "the host beneath a virtual machine of Azure, by its documentation"),
    ("169.254.0.0/16", "link-local, RFC 3927; the metadata of clouds"),
    ("172.16.0.0/12", "private, RFC 1918"),
    ("192.0.0.0/24", "IETF protocols, RFC 6890"),
    ("192.0.2.0/24", "documentation, RFC 5737"),
    ("192.31.196.0/24", "AS112, RFC 7535"),
    ("192.52.193.0/24", "AMT, RFC 7450"),
    ("192.88.99.0/24", "6to4 relays, RFC 7526"),
    ("192.168.0.0/16", "private, RFC 1918"),
    ("192.175.48.0/24", "AS112, RFC 7534"),
    ("198.18.0.0/15", "benchmarks, RFC 2544"),
    ("198.51.100.0/24", "documentation, RFC 5737"),
    ("203.0.113.0/24", "documentation, RFC 5737"),
    ("224.0.0.0/4", "multicast, RFC 5771"),
    ("240.0.0.0/4", "reserved and broadcast, RFC 1112 and RFC 919"),
)

#: Of 2000::/3, global unicast (RFC 4291): what is not, or carries an IPv4 address in it.
_REFUSED_V6: tuple[tuple[str, str], ...] = (
    ("2001::/23", "IETF protocols, RFC 2928: Teredo (RFC 4380), ORCHID (RFC 7343), benchmarks (RFC 5180)"),
    ("2001:db8::/32", "documentation, RFC 3849"),
    ("2002::/16", "6to4, which carries an IPv4 address, RFC 3056"),
    ("2620:4f:8000::/48", "AS112, RFC 7534"),
    ("3fff::/20", "documentation, RFC 9637"),
)

#: Beyond 2000::/3, only to say why: it is refused all the same.
_BEYOND_V6: tuple[tuple[str, str], ...] = (
    ("::/128", "unspecified, RFC 4291"),
    ("::1/128", "loopback, RFC 4291"),
    ("::ffff:0:0/96", "an IPv4 address in IPv6, RFC 4291"),
    ("::/96", "an IPv4 address in IPv6, RFC 4291"),
    ("64:ff9b::/96", "NAT64, which carries an IPv4 address, RFC 6052"),
    ("64:ff9b:1::/48", "NAT64, RFC 8215"),
    ("100::/64", "discarded, RFC 6666"),
    ("fc00::/7", "unique local, RFC 4193"),
    ("fe80::/10", "link-local, RFC 4291"),
    ("fec0::/10", "site-local, RFC 3879"),
    ("ff00::/8", "multicast, RFC 4291"),
)

_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED: dict[int, list[tuple[Network, str]]] = {
    4: [(ipaddress.ip_network(network), why) for network, why in _REFUSED_V4],
    6: [(ipaddress.ip_network(network), why) for network, why in _REFUSED_V6 + _BEYOND_V6],
}


class Allowed:
    """The addresses that may be posted to: public ones, and those of `networks`, which the operator names.

    `where` says in errors where they are named.
    """

    def __init__(self, networks: Iterable[str] = (), where: str = "the setting webhooks_allow") -> None:
        self._where = where
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def check(self, text: str) -> str:
        """Answer the address `text` if it may be connected to. Raises AddressRefused, also for what is no address."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise AddressRefused("the host stands for something that is no address") from None
        if any(address in network for network in self._networks):
            return text
        why = _why_refused(address)
        if why is not None:
            raise AddressRefused(f"{address} is not public ({why}); if it is meant, allow it in {self._where}")
        return text


def _why_refused(address: Address) -> str | None:
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return "an address of one link only, RFC 4007"
    for network, why in _REFUSED[address.version]:
        if address in network:
            return why
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_V6:
        return "not global unicast, RFC 4291"
    return None
