"""PostgreSQL and Redis for tests, as fixtures: a database, schema or prefix of its own for each, gone afterwards.

    def test_something(postgres_url: str, redis_url: str) -> None: ...     URLs for `open_backend`

Where the servers come from: scripts/servers.py. Where one is missing, a test is skipped at a desk and fails with
`CI=true`. Names carry host, process and time, so that what a killed run left behind is swept by a later one.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from scripts.servers import Missing, Server, install, program, provide

from .private import (
    AT_ONCE,
    PgBouncer,
    PrivatePostgres,
    PrivatePrometheus,
    PrivateRedis,
    PrivateRedisCluster,
    RedisSentinels,
)

__all__ = [
    "BACKENDS",
    "DURABLE",
    "SERVERS",
    "PgBouncer",
    "PrivatePostgres",
    "PrivatePrometheus",
    "PrivateRedis",
    "PrivateRedisCluster",
    "RedisSentinels",
    "database_of_this_run",
    "is_left_behind",
    "needed",
    "new_database",
    "new_name",
    "new_prefix",
    "postgres_database",
    "postgres_server",
    "postgres_url",
    "prefix_of_this_run",
    "private",
    "redis_server",
    "redis_url",
    "with_parameter",
]


#: The backends that the suites run on.
SERVERS = ["postgres", "redis"]
DURABLE = ["sqlite", *SERVERS]
BACKENDS = ["memory", *DURABLE]

#: What a run that was killed may leave behind for at most so long, where its process cannot be asked for.
SWEPT_AFTER_S = 86_400

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_NAME = re.compile(r"packhorse_test_([0-9a-f]{8})_(\d+)_(\d+)_\d+")
_numbers = itertools.count()


def new_name() -> str:
    """Answer a name for a database, schema or prefix that nobody else uses and that shows whose it is."""
    return f"packhorse_test_{_HOST}_{os.getpid()}_{int(time.time())}_{next(_numbers):06d}"


def is_left_behind(name: str) -> bool:
    """Answer whether a name was made by `new_name` in a run that was killed."""
    match = _NAME.match(name)
    if match is None:
        return False
    host, pid, made_at = match[1], int(match[2]), int(match[3])
    if host == _HOST:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return time.time() - made_at > SWEPT_AFTER_S


def needed(name: str) -> str:
    """Answer the path of a program that a test cannot do without."""
    try:
        install([name])
        return program(name)
    except Missing as reason:
        missing(str(reason))
        raise


def missing(reason: str) -> None:
    """End the test for lack of a program or server: a failure in CI, a skip at a desk."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _provided(kind: str) -> tuple[str, Server | None]:
    try:
        return provide(kind)
    except Missing as reason:
        missing(str(reason))
        raise


def with_parameter(url: str, name: str, value: str) -> str:
    """Answer a URL with one more parameter."""
    return f"{url}{'&' if urlsplit(url).query else '?'}{name}={value}"


# ---- PostgreSQL --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL where databases may be made. Those of killed runs are removed."""
    url, server = _provided("postgres")
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall():
                if is_left_behind(name):
                    with suppress(psycopg.Error):  # another run sweeps too
                        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        yield url
    finally:
        if server is not None:
            server.close()


@pytest.fixture(scope="session")
def database_of_this_run(postgres_server: str) -> Iterator[str]:
    """The URL of a database that all tests of this run share; take a schema of your own in it."""
    yield from new_database(postgres_server)


def new_database(server_url: str) -> Iterator[str]:
    """Make a database, yield its URL, drop it. For fixtures: `yield from new_database(url)`."""
    name = new_name()
    with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        # No test on a server that others use can cut its power; and a commit that waits for the disk takes ms.
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database of this test's own. Slower than `postgres_url`, by about 0.1 s."""
    yield from new_database(postgres_server)


@pytest.fixture
def postgres_url(database_of_this_run: str) -> Iterator[str]:
    """The URL of an empty store in PostgreSQL: a schema of this test's own, which the backend makes."""
    schema = f"t{next(_numbers)}"
    try:
        yield with_parameter(database_of_this_run, "schema", schema)
    finally:
        with psycopg.connect(database_of_this_run, autocommit=True, connect_timeout=10) as connection:
            connection.execute("SET lock_timeout = '10s'")  # a worker that was left running would hold its tables
            connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


# ---- Redis -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis. What killed runs left there is removed."""
    url, server = _provided("redis")
    try:
        for name in {match[0] for key in _keys(url, "packhorse_test_*") if (match := _NAME.search(key))}:
            if is_left_behind(name):
                _forget(url, name)
        yield url
    finally:
        if server is not None:
            server.close()


def new_prefix(server_url: str) -> Iterator[str]:
    """Yield the URL of an empty store in a Redis: a prefix of its own, whose keys go afterwards."""
    prefix = new_name()
    try:
        yield with_parameter(server_url, "prefix", prefix)
    finally:
        _forget(server_url, prefix)


@pytest.fixture(scope="session")
def prefix_of_this_run(redis_server: str) -> Iterator[str]:
    """The URL of a Redis with a prefix that all tests of this run share; add something of your own to it."""
    yield from new_prefix(redis_server)


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of an empty store in Redis."""
    yield from new_prefix(redis_server)


def _keys(url: str, pattern: str) -> list[str]:
    with closing(redis.Redis.from_url(url, socket_timeout=10)) as client:
        # With and without the braces that keep the keys of a store together in a cluster.
        return [key.decode() for each in (pattern, f"{{{pattern}") for key in client.scan_iter(each, count=1_000)]


def _forget(url: str, prefix: str) -> None:
    with closing(redis.Redis.from_url(url, socket_timeout=10)) as client:
        keys = [key for each in (f"{prefix}*", f"{{{prefix}*") for key in client.scan_iter(each, count=1_000)]
        for start in range(0, len(keys), 1_000):
            client.unlink(*keys[start : start + 1_000])


# ---- what a test starts for itself -------------------------------------------------------------------------


class Private:
    """Makes private servers for one test and closes them after it. Each is started when made."""

    def __init__(self) -> None:
        self._made: list[Server | PrivateRedisCluster | RedisSentinels] = []

    def postgres(self, **options: object) -> PrivatePostgres:
        """A PostgreSQL with settings of postgresql.conf. It syncs nothing: who is killed loses no power."""
        return self._start(PrivatePostgres, {"fsync": "off"} | options)

    def standby(self, primary: PrivatePostgres, **options: object) -> PrivatePostgres:
        """A read-only copy that follows `primary`."""
        return self._start(PrivatePostgres, options, standby_of=primary)

    def pgbouncer(self, postgres: PrivatePostgres, **settings: object) -> PgBouncer:
        """A pooler in transaction mode before `postgres`."""
        return self._start(PgBouncer, postgres.port, settings)

    def redis(self, config: dict[str, object] | None = None, *, tls: bool = False) -> PrivateRedis:
        """A Redis with settings of redis.conf."""
        return self._start(PrivateRedis, AT_ONCE | (config or {}), tls=tls)

    def prometheus(self, config: str, files: dict[str, str] | None = None) -> PrivatePrometheus:
        """A Prometheus with this prometheus.yml and the files that it names."""
        needed("prometheus")
        return self._start(PrivatePrometheus, config, files)

    def cluster(self) -> PrivateRedisCluster:
        """Three masters."""
        return self._keep(PrivateRedisCluster)

    def sentinels(self) -> RedisSentinels:
        """A master, a replica, three sentinels."""
        return self._keep(RedisSentinels)

    def _start(self, kind, *arguments, **options):
        server = self._keep(kind, *arguments, **options)
        server.start()
        return server

    def _keep(self, kind, *arguments, **options):
        try:
            made = kind(*arguments, **options)
        except Missing as reason:
            missing(str(reason))
            raise
        self._made.append(made)
        return made

    def close(self) -> None:
        """Close all of them, the last one first."""
        while self._made:
            self._made.pop().close()


@pytest.fixture
def private() -> Iterator[Private]:
    """Makes private servers that the test may stop, kill, freeze and configure."""
    makes = Private()
    try:
        yield makes
    finally:
        makes.close()
