"""Several stores on one server: a namespace is the schema or the prefix, unless the URL names one."""

import pytest

from packhorse.backends.opening import in_namespace


@pytest.mark.parametrize(
    ("url", "namespace", "expected"),
    [
        ("postgresql://h/db", "packhorse", "postgresql://h/db"),
        ("postgresql://h/db", "shop", "postgresql://h/db?schema=shop"),
        ("postgres://h/db?sslmode=require", "shop", "postgres://h/db?sslmode=require&schema=shop"),
        ("postgresql://h/db?schema=own", "shop", "postgresql://h/db?schema=own"),
        ("redis://h/0", "shop", "redis://h/0?prefix=shop"),
        ("redis+sentinel://a,b/m/0", "shop", "redis+sentinel://a,b/m/0?prefix=shop"),
        ("redis://h/0", "a&b=c", "redis://h/0?prefix=a%26b%3Dc"),
        ("sqlite:///jobs.db", "shop", "sqlite:///jobs.db"),
        ("memory://", "shop", "memory://"),
        ("http://[half", "shop", "http://[half"),
    ],
)
def test_a_namespace_goes_where_the_server_keeps_it(url: str, namespace: str, expected: str) -> None:
    assert in_namespace(url, namespace) == expected
