"""Private servers of several parts, which tests may stop, kill, freeze and fail over: cluster, sentinels, pooler; and a
Prometheus.

Single servers are `PrivatePostgres` and `PrivateRedis` of scripts/servers.py; all of them go when the tests end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Self
from urllib.request import urlopen

from scripts.servers import START_S, PrivatePostgres, PrivateRedis, Server, postgres_answers, program

__all__ = [
    "PgBouncer",
    "PrivatePostgres",
    "PrivatePrometheus",
    "PrivateRedis",
    "PrivateRedisCluster",
    "RedisSentinels",
]


class PgBouncer(Server):
    """A pooler in transaction mode before a PostgreSQL; `settings` are lines of its [pgbouncer] section."""

    def __init__(self, postgres_port: int, settings: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        users = self.write("users", ['"postgres" ""'])
        found = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "pool_mode": "transaction",
            "max_client_conn": 200,
            "default_pool_size": 20,
            "server_round_robin": 1,  # the next transaction meets another connection: what leans on a session fails
        } | dict(settings or {})
        lines = ["[databases]", f"* = host=127.0.0.1 port={postgres_port}", "[pgbouncer]"]
        self.write("pgbouncer.ini", [*lines, *(f"{name} = {value}" for name, value in found.items())])

    def command(self) -> list[str]:
        return [program("pgbouncer"), str(self.directory / "pgbouncer.ini")]

    def ready(self) -> bool:
        return postgres_answers(self.port)


class PrivatePrometheus(Server):
    """A Prometheus that keeps exemplars. `config` is its prometheus.yml; `files` are what that names, by name."""

    def __init__(self, config: str, files: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = self.write("prometheus.yml", [config])
        for name, text in (files or {}).items():
            self.write(name, [text.rstrip("\n")])

    def command(self) -> list[str]:
        data = self.directory / "data"
        return [
            program("prometheus"),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ]

    def ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


#: A replica gets its copy at once, not after the 5 s in which others may come for theirs.
AT_ONCE = {"repl-diskless-sync-delay": 0}


class Several:
    """Servers that are started and closed together."""

    url: str

    def __init__(self) -> None:
        self._parts = ExitStack()

    def _add(self, server: PrivateRedis) -> PrivateRedis:
        self._parts.callback(server.close)
        return server.start()

    def close(self) -> None:
        """Stop all parts and remove their directories."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class PrivateRedisCluster(Several):
    """Three masters that share the slots. Started when made."""

    def __init__(self, config: Mapping[str, object] | None = None) -> None:
        super().__init__()
        how = {"cluster-enabled": "yes", "cluster-node-timeout": 2_000, "cluster-config-file": "nodes.conf"}
        self.nodes = [self._add(PrivateRedis(how | dict(config or {}))) for _ in range(3)]
        first = self.nodes[0]
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        first.run("redis-cli", "--cluster", "create", *addresses, "--cluster-yes")
        for node in self.nodes:
            _until(lambda node=node: "cluster_state:ok" in _ask(node, "CLUSTER", "INFO"), "the cluster is complete")
        self.url = f"redis+cluster://{addresses[0]}"


class RedisSentinels(Several):
    """A master with a replica, and three sentinels that fail over within about 2 s. Started when made."""

    name = "packhorse-test"

    def __init__(self, config: Mapping[str, object] | None = None) -> None:
        super().__init__()
        first = self._add(PrivateRedis(AT_ONCE | dict(config or {})))
        second = self._add(PrivateRedis(AT_ONCE | {"replicaof": f"127.0.0.1 {first.port}", **(config or {})}))
        self.servers = [first, second]
        self.sentinels = [self._add(_Sentinel(self.name, first.port)) for _ in range(3)]
        for sentinel in self.sentinels:
            _until(lambda sentinel=sentinel: self._knows_all(sentinel), "the sentinels know each other")
        _until(lambda: "master_link_status:up" in _ask(second, "INFO", "replication"), "the replica follows")
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{addresses}/{self.name}/0"

    def _knows_all(self, sentinel: PrivateRedis) -> bool:
        return "slaves=1,sentinels=3" in _ask(sentinel, "INFO", "sentinel")

    @property
    def master(self) -> PrivateRedis:
        """The server that the sentinels name as master now."""
        port = int(_ask(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name).split()[1])
        return next(server for server in self.servers if server.port == port)

    def fail_over(self) -> None:
        """Have the sentinels make the other server master, as after a planned change, and wait until it is.

        Only once that has all that was written: they do not look how far behind it is.
        """
        old = self.master
        written = _offset(old, "master")
        other = next(server for server in self.servers if server is not old)
        _until(lambda: _offset(other, "slave") >= written, "the replica has all of it")
        _ask(self.sentinels[0], "SENTINEL", "FAILOVER", self.name)
        self.until_master_is_not(old)

    def until_master_is_not(self, old: PrivateRedis) -> None:
        """Wait until the sentinels name another master than `old`."""
        _until(lambda: self.master is not old and "role:master" in _ask(self.master, "INFO", "replication"), "failover")


class _Sentinel(PrivateRedis):
    def __init__(self, name: str, port: int) -> None:
        super().__init__()
        self.config = {"port": self.port, "bind": "127.0.0.1", "dir": self.directory}
        self._watched = [
            f"sentinel monitor {name} 127.0.0.1 {port} 2",
            f"sentinel down-after-milliseconds {name} 1000",
            f"sentinel failover-timeout {name} 3000",
        ]

    def command(self) -> list[str]:
        path = self.directory / "redis.conf"
        if not path.exists():
            self.write("redis.conf", [*(f"{key} {value}" for key, value in self.config.items()), *self._watched])
        return [program("redis-server"), str(path), "--sentinel"]


def _ask(server: PrivateRedis, *command: str) -> str:
    return server.run("redis-cli", "-p", str(server.port), *command)


def _offset(server: PrivateRedis, role: str) -> int:
    """Answer how far its stream of writes has come, as a master or as a replica."""
    return int(_ask(server, "INFO", "replication").partition(f"{role}_repl_offset:")[2].split()[0])


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {START_S:g} s: {what}")
        time.sleep(0.05)
