"""What `packhorse doctor` says of a server: the way to it, and then what the server finds of its own store."""

from __future__ import annotations

from msgspec.structs import replace

from ..checkup import Checkup, Finding, good_if
from . import wire
from .link import Link
from .location import Location


async def checkup(location: Location) -> Checkup:
    """Ask a server about itself, over a connection of its own. Raises ConfigurationError, Unavailable."""
    link = Link(location)
    link.connect()
    try:
        contract = await link.greet()
        found = await link.ask(wire.CHECKUP, wire.Nothing())
    finally:
        await link.disconnect()
    findings = (
        Finding(check="server", value=f"packhorse {contract.version} at {location.base}"),
        good_if(
            not location.is_secret_in_clear,
            "token",
            "unencrypted" if location.is_secret_in_clear else "none" if location.token is None else "sent as it should",
            "everybody on the way can read the token and use it",
            "put TLS before the server, and use https://",
            warn=True,
        ),
    )
    return replace(found, findings=(*findings, *found.findings))
