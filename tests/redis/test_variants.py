"""The contract on every kind of server there is: Cluster, sentinels, TLS, and on the server's own clock (FAILURES B32).

Every few cases at a desk; all of them with `PACKHORSE_FULL=1`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest

from packhorse.testing.conformance import Case, cases, run_case
from packhorse.testing.conformance.stores import RedisHarness
from tests.private import PrivateRedisCluster, RedisSentinels
from tests.real_time import run_in_real_time
from tests.servers import Private

FULL = os.environ.get("PACKHORSE_FULL") == "1"


def some(one_in: int) -> list[Case]:
    """Answer all cases, or one in so many, always the same."""
    return [case for case in cases() if FULL or zlib.crc32(str(case).encode()) % one_in == 0]


@pytest.fixture(scope="module")
def servers() -> Iterator[Private]:
    makes = Private()
    try:
        yield makes
    finally:
        makes.close()


@pytest.fixture(scope="module")
def cluster(servers: Private) -> PrivateRedisCluster:
    return servers.cluster()


@pytest.fixture(scope="module")
def sentinels(servers: Private) -> RedisSentinels:
    return servers.sentinels()


@pytest.fixture(scope="module")
def encrypted(servers: Private) -> str:
    return servers.redis(tls=True).url


@pytest.mark.parametrize("case", some(8), ids=str)
def test_cluster(case: Case, cluster: PrivateRedisCluster) -> None:
    run_case(case, lambda: RedisHarness(cluster.url))


@pytest.mark.parametrize("case", some(8), ids=str)
def test_sentinels(case: Case, sentinels: RedisSentinels) -> None:
    run_case(case, lambda: RedisHarness(sentinels.url))


@pytest.mark.parametrize("case", some(8), ids=str)
def test_tls(case: Case, encrypted: str) -> None:
    run_case(case, lambda: RedisHarness(encrypted))


@pytest.mark.parametrize("case", some(6), ids=str)
def test_the_clock_of_the_server(case: Case, redis_url: str) -> None:
    run_in_real_time(case, lambda: RedisHarness(redis_url, server_clock=True))
