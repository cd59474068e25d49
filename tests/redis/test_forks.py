"""Forked children leave the connections of their parent alone."""

from __future__ import annotations

from tests.forks import check_forks


def test_parent_and_children_go_on(redis_url: str) -> None:
    check_forks(redis_url)
