"""Where a measurement keeps its jobs: an empty store for each, which is removed after the run."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ..chance import secret_hex
from .meter import Meter, postgres_meter, redis_meter, remove_prefixes, remove_schemas

_KINDS = {"memory": "memory", "sqlite": "sqlite", "postgres": "postgres", "postgresql": "postgres"}
_REDIS = ("redis", "rediss", "valkey", "valkeys", "unix+redis")


def kind_of(url: str) -> str:
    """Answer which backend a URL (or the name of an embedded one) means: memory, sqlite, postgres, redis or other."""
    scheme = urlsplit(url).scheme.lower() if "://" in url else url
    if scheme.partition("+")[0] in _REDIS or scheme in _REDIS:
        return "redis"
    return _KINDS.get(scheme, "other")


class Places:
    """The stores of one run. On a server each is a schema or a prefix of its own, so what is there stays untouched."""

    def __init__(self, target: str, directory: Path) -> None:
        self.kind = kind_of(target)
        self._target = target
        self._directory = directory
        self._run = f"bench_{secret_hex(4)}"
        self._made: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._made:
            remove = remove_prefixes if self.kind == "redis" else remove_schemas
            remove(self._target, self._made)

    def fresh(self, name: str) -> str:
        """Answer the URL of the store `name`, empty when it is first used."""
        if self.kind == "memory":
            return f"memory://bench-{name}"
        if self.kind == "sqlite":
            return f"sqlite:///{self._directory / name}.db"
        if self.kind == "postgres":
            return self._own(name, "schema")
        if self.kind == "redis":
            return self._own(name, "prefix")
        return self._target

    def _own(self, name: str, parameter: str) -> str:
        parts = urlsplit(self._target)
        asked = [pair for pair in parse_qsl(parts.query) if pair[0] != parameter]
        own = f"{self._run}_{name}"
        if own not in self._made:
            self._made.append(own)
        return urlunsplit(parts._replace(query=urlencode([*asked, (parameter, own)])))

    def meter(self) -> Meter | None:
        """Answer what reads the server's own figures; None where there is no server."""
        if self.kind == "postgres":
            return postgres_meter(self._target)
        if self.kind == "redis":
            return redis_meter(self._target)
        return None
