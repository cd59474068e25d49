"""`packhorse doctor` on private servers with one bad setting each: it names it and the remedy, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner

from packhorse.backends.opening import open_backend
from packhorse.cli.main import root
from packhorse.clock import SystemClock
from packhorse.doctor import examine
from scripts.servers import Missing
from tests.servers import Private, PrivatePostgres, missing

from .serving import until

AOF = {"appendonly": "yes", "appendfsync": "always"}


def run(url: str, code: int) -> dict[str, Any]:
    """Answer the findings by name, and the promise."""
    result = CliRunner().invoke(root, ["doctor", url, "--json"])
    assert result.exit_code == code, (result.stdout, result.stderr)
    found = json.loads(result.stdout)
    return {each["check"]: each for each in found["findings"]} | {"promise": found["promise"]}


def broken(found: dict[str, Any]) -> set[str]:
    return {name for name, each in found.items() if each.get("level") == "broken"}


def lost(found: dict[str, Any]) -> set[str]:
    return {name for name, line in found["promise"].items() if not line["holds"]}


def make(url: str) -> None:
    """Make a store there."""

    async def use() -> None:
        backend = open_backend(url)
        await backend.migrate()
        await backend.open()
        await backend.queues()
        await backend.close()

    asyncio.run(use())


class Ahead(SystemClock):
    """A machine whose wall clock is an hour fast."""

    def now_ms(self) -> int:
        return super().now_ms() + 3_600_000


def clock_of(url: str) -> str:
    found = asyncio.run(examine(open_backend(url, Ahead())))
    (finding,) = [each for each in found.findings if each.check == "clock"]
    assert finding.level == "warn"
    return finding.value


# ---- Redis -------------------------------------------------------------------------------------------------


def test_a_redis_that_syncs_every_write_keeps_the_promise(private: Private) -> None:
    server = private.redis(AOF)
    found = run(server.url, 0)
    assert found["schema"]["value"] == "none"
    assert "opens" not in found
    assert redis.Redis.from_url(server.url).dbsize() == 0, "the doctor made something"
    make(server.url)
    found = run(server.url, 0)
    assert found["opens"]["level"] == "ok"
    assert lost(found) == set()
    assert found["promise"]["power_cut"]["says"] == "yes"
    assert re.fullmatch("1h behind|5[0-9]m[0-9]+s behind", clock_of(server.url))


def test_a_redis_that_syncs_every_second_says_what_a_power_cut_takes(private: Private) -> None:
    found = run(private.redis({"appendonly": "yes"}).url, 0)
    assert found["appendfsync"]["level"] == "warn"
    assert found["promise"]["power_cut"]["says"] == "all but the last 1 to 2 s"


@pytest.mark.parametrize(
    ("config", "check", "lines"),
    [
        ({}, "appendonly", {"server_kill", "power_cut"}),
        ({"appendonly": "yes", "appendfsync": "no"}, "appendfsync", {"power_cut"}),
        (
            AOF | {"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"},
            "maxmemory-policy",
            {"acknowledged", "server_kill", "power_cut"},
        ),
    ],
)
def test_a_redis_with_a_bad_setting(private: Private, config: dict[str, str], check: str, lines: set[str]) -> None:
    found = run(private.redis(config).url, 1)
    assert broken(found) == {check}
    assert found[check]["remedy"]
    assert lost(found) == lines


def test_a_policy_that_would_evict_and_full_memory_are_warnings(private: Private) -> None:
    found = run(private.redis(AOF | {"maxmemory-policy": "allkeys-lru"}).url, 0)
    assert found["maxmemory-policy"]["level"] == "warn"
    server = private.redis(AOF)
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory", client.info("memory")["used_memory"])
    client.close()
    assert run(server.url, 0)["memory"]["level"] == "warn"


def test_a_replica_and_its_master(private: Private) -> None:
    master = private.redis(AOF)
    replica = private.redis(AOF | {"replicaof": f"127.0.0.1 {master.port}"})
    with closing(redis.Redis.from_url(replica.url)) as client:  # until then it may be loading what it copies
        until(lambda: client.info("replication")["master_link_status"] == "up")
    assert broken(run(replica.url, 1)) == {"takes writes"}
    sentinels = private.sentinels()
    found = run(sentinels.url, 1)
    assert broken(found) == {"appendonly"}
    assert found["replicas"]["level"] == "warn"


def test_a_cluster_is_asked_where_the_store_is(private: Private) -> None:
    found = run(private.cluster().url, 1)
    assert found["cluster"]["value"] == "ok, shards: 3"
    assert broken(found) == {"appendonly"}


def test_a_redis_that_cannot_save_refuses_writes(private: Private) -> None:
    server = private.redis({"dbfilename": "dump.rdb"})
    (server.directory / "dump.rdb").mkdir()  # no file can be put in its place
    client = redis.Redis.from_url(server.url)
    client.set("x", 1)
    client.bgsave()
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    assert broken(run(server.url, 1)) == {"appendonly", "last snapshot"}
    client.config_set("stop-writes-on-bgsave-error", "no")
    assert run(server.url, 1)["last snapshot"]["level"] == "warn"
    client.close()


def test_a_redis_of_a_newer_schema_one_that_is_away_and_a_wrong_password(private: Private) -> None:
    server = private.redis(AOF | {"requirepass": "right-4711"})
    make(server.url)
    client = redis.Redis.from_url(server.url)
    client.hset("{packhorse}:store", "schema", 99)
    client.close()
    assert broken(run(server.url, 1)) == {"schema"}
    wrong = CliRunner().invoke(root, ["doctor", server.url.replace("right", "wrong")])
    assert wrong.exit_code == 2
    assert "4711" not in wrong.output
    server.stop()
    found = run(server.url, 1)
    assert broken(found) == {"answers"}
    assert lost(found) == {"acknowledged", "server_kill", "power_cut", "dead_worker", "order"}


# ---- PostgreSQL --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keeping() -> Iterator[PrivatePostgres]:
    """A PostgreSQL as it comes, with a store."""
    try:
        with PrivatePostgres() as server:
            make(server.url)
            yield server
    except Missing as reason:
        missing(str(reason))


@contextmanager
def set_to(server: PrivatePostgres, name: str, value: str) -> Iterator[None]:
    """Change a setting of a server for a while."""
    with psycopg.connect(server.url, autocommit=True) as db:
        (before,) = db.execute(f"SHOW {name}").fetchone() or ()
        for change, wanted in ((f"ALTER SYSTEM SET {name} = {value}", value), (f"ALTER SYSTEM RESET {name}", before)):
            db.execute("SET default_transaction_read_only = off" if name == "default_transaction_read_only" else "")
            db.execute(change)
            db.execute("SELECT pg_reload_conf()")
            db.execute("RESET default_transaction_read_only")
            until(lambda wanted=wanted: db.execute(f"SHOW {name}").fetchone() == (wanted,))
            if wanted == value:
                yield


def test_a_postgres_as_it_comes_keeps_the_promise(keeping: PrivatePostgres, private: Private) -> None:
    found = run(keeping.url, 0)
    assert found["opens"]["level"] == "ok"
    assert found["LISTEN"]["value"] == "works"
    assert lost(found) == set()
    assert re.fullmatch("1h behind|5[0-9]m[0-9]+s behind", clock_of(keeping.url))
    assert run(private.pgbouncer(keeping).url, 0)["LISTEN"]["level"] == "warn"
    assert broken(run(private.standby(keeping).url, 1)) == {"takes writes"}
    with psycopg.connect(keeping.url, autocommit=True) as db:  # it takes reads before it follows
        until(lambda: db.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").fetchone())
    assert run(keeping.url, 0)["replicas"]["level"] == "warn"


def test_the_doctor_makes_no_schema(keeping: PrivatePostgres) -> None:
    assert run(f"{keeping.url}?schema=other", 0)["schema"]["value"] == "none"
    with psycopg.connect(keeping.url) as db:
        assert db.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'other'").fetchone() == (0,)


@pytest.mark.parametrize(
    ("name", "value", "check", "lines"),
    [
        ("fsync", "off", "fsync", {"power_cut"}),
        ("full_page_writes", "off", "full_page_writes", {"power_cut"}),
        ("synchronous_commit", "off", "synchronous_commit", {"server_kill", "power_cut"}),
        ("default_transaction_read_only", "on", "takes writes", {"acknowledged"}),
    ],
)
def test_a_postgres_with_a_bad_setting(
    keeping: PrivatePostgres, name: str, value: str, check: str, lines: set[str]
) -> None:
    with set_to(keeping, name, value):
        found = run(keeping.url, 1)
    assert broken(found) == {check}
    assert found[check]["remedy"]
    assert lost(found) == lines
    assert run(keeping.url, 0)[check]["level"] == "ok"


def test_what_slows_a_postgres_down_is_a_warning(keeping: PrivatePostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    from packhorse.backends.postgres import checkup

    monkeypatch.setattr(checkup, "OLDEST_MS_MAX", 0)
    monkeypatch.setattr(checkup, "CONNECTIONS_LEFT_MIN", 1_000)
    with psycopg.connect(keeping.url) as db, set_to(keeping, "autovacuum", "off"):
        db.execute("SELECT 1")
        found = run(keeping.url, 0)
    warned = {name for name, each in found.items() if each.get("level") == "warn"}
    assert {"autovacuum", "connections left", "oldest transaction", "workers"} <= warned
    levels = [
        finding.level
        for live, dead, prepared in ((0, 100_000, 0), (1_000_000, 999_999, 0), (0, 0, 1))
        for finding in checkup._vacuum({"autovacuum": "on"}, 0, prepared, live, dead)[1:]
    ]
    assert levels == ["warn", "ok", "ok", "ok", "ok", "warn"]


def test_a_newer_schema_a_wrong_database_and_a_server_that_is_away(keeping: PrivatePostgres) -> None:
    with psycopg.connect(keeping.url, autocommit=True) as db:
        db.execute("UPDATE packhorse.version SET number = number + 900")
        assert broken(run(keeping.url, 1)) == {"schema"}
        db.execute("UPDATE packhorse.version SET number = number - 900")
    wrong = CliRunner().invoke(root, ["doctor", keeping.url + "x"])
    assert wrong.exit_code == 2
    keeping.stop()
    found = run(keeping.url, 1)
    keeping.start()
    assert broken(found) == {"answers"}
