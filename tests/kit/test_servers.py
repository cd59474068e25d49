"""The servers of the tests: each private one starts, can be killed and frozen, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis

from scripts.servers import postgres_answers, redis_answers
from tests import servers
from tests.servers import Private

ROOT = Path(__file__).parents[2]


def test_a_private_postgres_can_be_configured_killed_and_frozen(private: Private) -> None:
    server = private.postgres(fsync="off", max_connections=20)
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("off",)
        assert connection.execute("SHOW max_connections").fetchone() == ("20",)
    server.restart(hard=True)
    server.freeze()
    assert not postgres_answers(server.port)
    server.thaw()
    deadline = time.monotonic() + 60
    while not postgres_answers(server.port):
        assert time.monotonic() < deadline, "still frozen"
    standby = private.standby(server)
    with psycopg.connect(standby.url) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


def test_a_pooler_in_transaction_mode(private: Private) -> None:
    pooler = private.pgbouncer(private.postgres())
    with psycopg.connect(pooler.url, prepare_threshold=None) as one, psycopg.connect(pooler.url) as other:
        pids = [connection.execute("SELECT pg_backend_pid()").fetchone() for connection in (one, other)]
    assert pids[0] != pids[1]


@pytest.mark.parametrize("tls", [False, True])
def test_a_private_redis_can_be_configured_killed_and_frozen(private: Private, tls: bool) -> None:
    server = private.redis({"requirepass": "open sesame".replace(" ", "-"), "maxmemory": "64mb"}, tls=tls)
    client = redis.Redis.from_url(server.url)
    assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}
    server.restart(hard=True)
    assert client.ping()
    client.close()
    if not tls:
        server.freeze()
        assert not redis_answers(server.port)
        server.thaw()


def test_a_cluster_and_sentinels(private: Private) -> None:
    cluster = private.cluster()
    client = redis.RedisCluster.from_url(cluster.url.replace("redis+cluster", "redis"))
    assert len(client.get_primaries()) == 3
    client.close()
    sentinels = private.sentinels()
    first = sentinels.master
    sentinels.fail_over()
    second = sentinels.master
    assert second is not first
    second.stop_hard()
    sentinels.until_master_is_not(second)


def test_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 of the tests: the guard ends the servers and removes their directories."""
    script = (
        "import os; from scripts.servers import PrivateRedis\n"
        "server = PrivateRedis().start(); print(server.process.pid, server.directory, flush=True)\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    pid, directory = done.stdout.split()
    deadline = time.monotonic() + 60
    while Path(directory).exists() or Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.02)


def test_databases_and_prefixes_of_killed_runs_are_recognised() -> None:
    ours = servers.new_name()
    assert not servers.is_left_behind(ours)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert servers.is_left_behind(ours.replace(f"_{os.getpid()}_", f"_{gone.pid}_"))
    elsewhere = ours.replace(servers._HOST, "0badcafe")
    assert not servers.is_left_behind(elsewhere)
    parts = elsewhere.split("_")
    parts[4] = str(int(parts[4]) - servers.SWEPT_AFTER_S - 1)
    assert servers.is_left_behind("_".join(parts))
    assert not servers.is_left_behind("packhorse")


def test_each_test_has_a_store_of_its_own(postgres_url: str, redis_url: str, postgres_database: str) -> None:
    assert "schema=t" in postgres_url
    assert "prefix=packhorse_test_" in redis_url
    with psycopg.connect(postgres_database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'packhorse'").fetchone() == (0,)
