"""What a server itself did meanwhile: commands, and CPU time where the server runs on this machine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from ..clock import pause, precise_boot_ms
from .measures import Figure, latency_figure

#: What `packhorse` takes out of a URL before a driver sees it.
_OURS = frozenset({"schema", "prefix", "pool", "timeout"})


class Reading(msgspec.Struct, frozen=True):
    """A server's counters at one moment. None: it cannot be told from here."""

    commands: int
    cpu_ms: float | None

    def since(self, before: Reading) -> Reading:
        """Answer what was added since `before`."""
        cpu_ms = None if self.cpu_ms is None or before.cpu_ms is None else self.cpu_ms - before.cpu_ms
        return Reading(self.commands - before.commands, cpu_ms)


class Meter(ABC):
    """Reads a server's counters. `unit` names what is counted."""

    unit: str

    @abstractmethod
    def read(self) -> Reading:
        """Read now. Blocks for a few ms."""

    @abstractmethod
    def ping(self) -> None:
        """Ask the server for next to nothing, and wait for its answer."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""


class RedisMeter(Meter):
    """Commands that clients sent, as INFO commandstats counts them: what scripts call themselves is left out."""

    unit = "command"

    def __init__(self, client: Any) -> None:
        self._client = client

    def read(self) -> Reading:
        stats = self._client.info("commandstats")
        # Inside of scripts only data commands are called; clients of ours send none of those.
        sent = sum(
            int(stat["calls"])
            for name, stat in stats.items()
            if name.removeprefix("cmdstat_").partition("|")[0] in _SENT_BY_CLIENTS
        )
        cpu = self._client.info("cpu")
        return Reading(sent, (float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])) * 1000)

    def ping(self) -> None:
        self._client.ping()

    def close(self) -> None:
        self._client.close()


_SENT_BY_CLIENTS = frozenset({"evalsha", "eval", "script", "ping", "subscribe", "psubscribe", "unsubscribe", "hello"})


class PostgresMeter(Meter):
    """Transactions, as pg_stat_database counts them, and the CPU time of all the server's processes."""

    unit = "transaction"

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        self._postmaster = _parent_of_postgres(pid)

    def read(self) -> Reading:
        self._connection.execute("SELECT pg_stat_clear_snapshot()")
        (commands,) = self._connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        return Reading(int(commands), _family_cpu_ms(self._postmaster) if self._postmaster else None)

    def ping(self) -> None:
        self._connection.execute("SELECT 1")

    def close(self) -> None:
        self._connection.close()


def idle_round_trip(meter: Meter, count: int = 100) -> Figure:
    """Measure the least that a question to an idle server takes from a blocking driver, each after 20 ms of silence."""
    delays_ms = []
    for _ in range(count):
        pause(0.02)
        started_ms = precise_boot_ms()
        meter.ping()
        delays_ms.append(precise_boot_ms() - started_ms)
    figure = latency_figure(delays_ms, "an idle job waits for two, and for what wakes its worker")
    figure.name = "floor: a question to the idle server"
    return figure


def read(meter: Meter | None) -> Reading | None:
    """Read a meter if there is one."""
    return meter.read() if meter is not None else None


def served(figure: Figure, meter: Meter | None, before: Reading | None) -> Figure:
    """Add to a figure what the server did for it since `before`."""
    if meter is None or before is None:
        return figure
    done = meter.read().since(before)
    figure.note += f"{', ' if figure.note else ''}{figure.jobs / max(1, done.commands):,.0f} jobs a {meter.unit}"
    if done.cpu_ms is not None:
        figure.server_cpu_us_per_job = done.cpu_ms * 1000 / figure.jobs
    return figure


def redis_meter(url: str) -> Meter:
    """Open a meter on a single Redis server."""
    return RedisMeter(_redis(url))


def postgres_meter(url: str) -> Meter:
    """Open a meter on a PostgreSQL server."""
    return PostgresMeter(_postgres(url))


def _redis(url: str) -> Any:
    import redis

    scheme = urlsplit(url).scheme
    plain = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    return redis.Redis.from_url(_without_ours(url)._replace(scheme=plain).geturl(), decode_responses=True)


def _postgres(url: str) -> Any:
    import psycopg

    return psycopg.connect(urlunsplit(_without_ours(url)), autocommit=True)


def remove_prefixes(url: str, prefixes: Sequence[str]) -> None:
    """Remove all keys of these stores from a Redis server."""
    with closing(_redis(url)) as client:
        for prefix in prefixes:
            keys = list(client.scan_iter(f"{{{prefix}}}:*", count=10_000))
            for start in range(0, len(keys), 1_000):
                client.unlink(*keys[start : start + 1_000])


def remove_schemas(url: str, schemas: Sequence[str]) -> None:
    """Remove these stores from a PostgreSQL database."""
    with closing(_postgres(url)) as connection:
        for schema in schemas:
            connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def _without_ours(url: str) -> Any:
    parts = urlsplit(url)
    kept = [pair for pair in parse_qsl(parts.query) if pair[0] not in _OURS]
    return parts._replace(query=urlencode(kept))


def _parent_of_postgres(pid: int) -> int | None:
    """Answer the main process of the server; None where its processes are not to be seen here."""
    try:
        name, rest = _stat(pid)
        return int(rest[1]) if name.startswith("postgres") else None
    except OSError:
        return None


def _stat(pid: int) -> tuple[str, list[str]]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    head, _, rest = text.rpartition(")")
    return head.partition("(")[2], rest.split()


def _family_cpu_ms(postmaster: int) -> float:
    """Answer the CPU time of a process, of its children, and of those that have ended."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            _, fields = _stat(int(entry.name))
        except OSError:
            continue
        if int(entry.name) == postmaster:
            ticks += sum(int(field) for field in fields[11:15])  # its own and that of children it has seen end
        elif int(fields[1]) == postmaster:
            ticks += int(fields[11]) + int(fields[12])
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")
