"""URLs, and what is checked before a server is trusted with jobs."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.backends.opening import open_backend
from packhorse.backends.redis.location import parse_url
from packhorse.errors import ConfigurationError, PackhorseError, SchemaMismatch, Unavailable
from tests.servers import Private, with_parameter

from .kit import add, key, opened, run, shell

SECRET = "s3cret-pa%2Fss"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("redis://h", {"kind": "single", "hosts": (("h", 6379),), "prefix": "packhorse", "options": {"db": 0}}),
        ("valkey://h:1/2?prefix=a.b&timeout=0.5", {"hosts": (("h", 1),), "options": {"db": 2}, "timeout_s": 0.5}),
        ("rediss://u:p%40@h", {"options": {"db": 0, "ssl": True, "username": "u", "password": "p@"}}),
        ("valkeys://h?ssl_check_hostname=no", {"options": {"db": 0, "ssl": True, "ssl_check_hostname": False}}),
        ("unix+redis:///run/redis.sock?db=3", {"kind": "unix", "path": "/run/redis.sock", "options": {"db": 3}}),
        ("redis+cluster://a:1,b:2", {"kind": "cluster", "hosts": (("a", 1), ("b", 2))}),
        (
            "redis+sentinel://:pw@a,b:2/main/4",
            {"kind": "sentinel", "hosts": (("a", 26379), ("b", 2)), "master": "main"},
        ),
        ("redis://[::1]:7", {"hosts": (("::1", 7),)}),
    ],
)
def test_urls(url: str, wanted: dict[str, object]) -> None:
    location = parse_url(url)
    assert {name: getattr(location, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?prefix=", "1 to 64"),
        ("redis://h?prefix=a%7Db", "1 to 64"),
        ("redis://h?prefix=" + "x" * 65, "1 to 64"),
        ("redis://h?timeout=0", "seconds"),
        ("redis://h?timeout=soon", "seconds"),
        ("redis://h?decode_responses=true", "no parameter 'decode_responses'"),
        ("redis://a,b", "several hosts"),
        ("redis://h/main", "must be a number"),
        ("redis+cluster://h/1", "only database 0"),
        ("redis+sentinel://h", "names no master"),
        ("redis://h?ssl_ca_certs=x", "rediss://"),
        ("redis://h:port", "cannot be read"),
    ],
)
def test_urls_that_cannot_work(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        open_backend(url)


def test_nobody_there(private: Private) -> None:
    server = private.redis()
    server.stop()

    async def main() -> None:
        url = with_parameter(server.url.replace("redis://", f"redis://u:{SECRET}@"), "timeout", "0.5")
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            await open_backend(url).open()
        assert "s3cret" not in str(caught.value)
        with pytest.raises(Unavailable):
            await open_backend(url.replace("redis://", "redis+cluster://")).open()
        with pytest.raises(Unavailable):
            await open_backend(url.replace("redis://", "redis+sentinel://").replace("/0?", "/main?")).open()

    run(main)


def test_a_wrong_password_is_said_without_it(private: Private) -> None:
    server = private.redis({"requirepass": "right"})

    async def main() -> None:
        for url in (server.url.replace("right", SECRET), server.url.replace(":right@", "")):
            with pytest.raises(ConfigurationError, match="password") as caught:
                await open_backend(url).open()
            assert "s3cret" not in str(caught.value)
        async with opened(server.url) as backend:
            await add(backend)

    run(main)


def test_a_password_for_a_server_without_one(private: Private) -> None:
    server = private.redis()

    async def main() -> None:
        with pytest.raises(ConfigurationError) as caught:
            await open_backend(server.url.replace("redis://", f"redis://nobody:{SECRET}@")).open()
        assert "s3cret" not in str(caught.value)

    run(main)


def test_a_server_that_throws_keys_away_is_refused(private: Private) -> None:
    server = private.redis({"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"})

    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"maxmemory-policy allkeys-lru.*noeviction"):
            await open_backend(server.url).open()
        shell(server.url).config_set("maxmemory-policy", "noeviction")
        async with opened(server.url) as backend:
            await add(backend)

    run(main)


def test_a_replica_is_refused(private: Private) -> None:
    master = private.redis()
    replica = private.redis({"replicaof": f"127.0.0.1 {master.port}"})

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="read-only replica; name its master"):
            await _until_it_answers(replica.url)
        async with opened(master.url) as backend:
            await add(backend)
            shell(master.url).replicaof("127.0.0.1", replica.port)  # it is demoted while we work
            with pytest.raises(Unavailable, match="replica, which cannot be written"):
                await add(backend)

    run(main)


async def _until_it_answers(url: str) -> None:
    for _ in range(1_200):
        try:
            await open_backend(url).open()
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return


def test_a_newer_schema_is_left_alone(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            with shell(redis_url) as client:
                client.hset(key(backend, "store"), "schema", 99)
                with pytest.raises(SchemaMismatch, match="upgrade packhorse") as caught:
                    await open_backend(redis_url).open()
                assert (caught.value.found, caught.value.wanted) == (99, 1)

    run(main)


def test_a_user_with_few_rights_is_enough(private: Private) -> None:
    """Managed servers allow no CONFIG; a careful operator allows one prefix only."""
    server = private.redis()
    shell(server.url).execute_command(
        "ACL", "SETUSER", "jobs", "on", ">pw", "~{mine}:*", "&{mine}:*", "+@all", "-@dangerous", "-@admin", "+info"
    )

    async def main() -> None:
        url = server.url.replace("redis://", "redis://jobs:pw@")
        async with opened(with_parameter(url, "prefix", "mine")) as backend:
            await add(backend)
            with backend.watch(["queue:default"]) as bell:
                assert await bell.wait(30_000)
        with pytest.raises(PackhorseError, match=r"may not do this|answered with an error"):
            await open_backend(with_parameter(url, "prefix", "theirs")).open()

    run(main)


def test_a_unix_socket(private: Private) -> None:
    server = private.redis()
    path = server.directory / "s"
    shell(server.url)
    other = private.redis({"unixsocket": path, "unixsocketperm": "777"})
    assert other

    async def main() -> None:
        async with opened(f"unix+redis://{path}?prefix=sock") as backend:
            assert len(await add(backend, 3)) == 3

    run(main)


def test_opening_again_after_closing(redis_url: str) -> None:
    async def main() -> None:
        backend = open_backend(redis_url)
        for _ in range(2):
            await backend.open()
            await backend.open()
            assert await backend.counts() == {}
            await backend.close()
            await backend.close()

    run(main)
