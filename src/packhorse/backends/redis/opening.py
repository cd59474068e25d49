"""What is checked before a server is trusted with jobs: version, role, memory policy, and the store's schema."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigurationError, SchemaMismatch, Unavailable
from .link import Link
from .records import SCHEMA, pack

VERSION_MIN = (6, 2)


async def check(link: Link) -> None:
    """Check the server and the store, and note the schema of a new store. Raises what `Backend.open` may raise."""
    for info in await _info(link, "server"):
        _check_version(link, info)
    for info in await _info(link, "memory"):
        _check_memory(link, info)
    key = link.location.key("store")
    found = await link.command("HGET", key, "schema")
    if found is None:
        for info in await _info(link, "replication"):
            _check_role(link, info)
        await link.command("HSETNX", key, "schema", SCHEMA)
    elif int(found) != SCHEMA:
        remedy = "upgrade packhorse" if int(found) > SCHEMA else "run `packhorse migrate`"
        raise SchemaMismatch(int(found), SCHEMA, f"{remedy}, or choose another prefix=")
    await link.command("PUBLISH", link.location.key("wake"), pack([]))  # scripts go on without the right to it


async def _info(link: Link, section: str) -> list[dict[str, Any]]:
    """Ask for a section of INFO, of every node that the driver asks."""
    found = await link.command("INFO", section)
    if isinstance(found, dict) and found and all(isinstance(value, dict) for value in found.values()):
        return list(found.values())
    return [dict(found)]


def _check_version(link: Link, info: dict[str, Any]) -> None:
    text = str(info.get("redis_version", ""))
    parts = text.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return  # a server that hides it
    if (int(parts[0]), int(parts[1])) < VERSION_MIN:
        raise ConfigurationError(
            f"{link.location.shown!r} is Redis {text}; packhorse needs 6.2 or newer, or Valkey of any version"
        )


def _check_memory(link: Link, info: dict[str, Any]) -> None:
    """Refuse a server that throws keys away when memory runs out: jobs would vanish, or leases (FAILURES B18).

    INFO tells it, which managed servers allow; they often allow no CONFIG.
    """
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and int(info.get("maxmemory", 0)) > 0:
        raise ConfigurationError(
            f"{link.location.shown!r} throws keys away when its memory is full (maxmemory-policy {policy}): jobs would "
            "vanish; set it to noeviction, with CONFIG SET maxmemory-policy noeviction or in the service's settings"
        )


def _check_role(link: Link, info: dict[str, Any]) -> None:
    """Refuse a replica: nothing can be stored there. Behind sentinels and in a Cluster it is a failover: it passes."""
    if info.get("role") in {"slave", "replica"}:
        text = f"{link.location.shown!r} is a read-only replica; name its master, {info.get('master_host', '')}"
        raise ConfigurationError(text) if link.location.kind in {"single", "unix"} else Unavailable(text)
