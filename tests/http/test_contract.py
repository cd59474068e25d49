"""Every rule of the contract, over HTTP: a memory store and a SQLite file behind a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.errors import ConfigurationError
from packhorse.testing.conformance import Case, cases, check, run_case
from packhorse.testing.machine import machine_for
from tests.forks import check_forks

from .kit import MEMORY, HTTPHarness, sqlite_url
from .process import ServerProcess


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_contract(case: Case, store: str, tmp_path: Path) -> None:
    url = MEMORY if store == "memory" else sqlite_url(tmp_path)
    run_case(case, lambda: HTTPHarness(url))


def test_any_history_goes_as_the_model_says() -> None:
    machine_for(HTTPHarness, examples=6, steps=30)("runTest").runTest()


def test_the_shipped_suite_refuses_the_url_of_a_server_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="the store behind it"):
        check("http://127.0.0.1:1")


def test_a_forked_child_reaches_the_server_over_connections_of_its_own(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, sqlite_url(tmp_path)) as server:
        check_forks(server.url)
