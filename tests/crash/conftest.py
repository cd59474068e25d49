import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import DURABLE, SERVERS

from .harness import Lab


@pytest.fixture(params=DURABLE)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """An empty store of each durable backend, and workers on it."""
    url = "" if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_url")
    lab = Lab(tmp_path, url)
    try:
        yield lab
    finally:
        lab.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """At the quick size, what is the same on every store is run on SQLite only (CONTRIBUTING: how long tests take)."""
    if os.environ.get("PACKHORSE_FULL") == "1":
        return

    def left_out(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        return (
            item.get_closest_marker("of_workers") is not None
            and callspec is not None
            and callspec.params.get("lab") in SERVERS
        )

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]
