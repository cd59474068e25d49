"""The cases of `bind` over the drivers that the conformance suite does not ask: blocking psycopg, and asyncpg."""

from __future__ import annotations

import asyncpg
import psycopg
import pytest

from packhorse.testing.conformance import Case, cases, run_case
from packhorse.testing.conformance.stores import PostgresHarness


class Psycopg:
    def __init__(self, raw) -> None:
        self.raw = raw

    async def begin(self) -> None:
        self.raw.execute("BEGIN")

    async def commit(self) -> None:
        self.raw.execute("COMMIT")

    async def rollback(self) -> None:
        self.raw.execute("ROLLBACK")

    async def close(self) -> None:
        self.raw.close()


class Asyncpg:
    def __init__(self, raw) -> None:
        self.raw = raw

    async def begin(self) -> None:
        await self.raw.execute("BEGIN")

    async def commit(self) -> None:
        await self.raw.execute("COMMIT")

    async def rollback(self) -> None:
        await self.raw.execute("ROLLBACK")

    async def close(self) -> None:
        self.raw.terminate()


class BindHarness(PostgresHarness):
    def __init__(self, url: str, kind: str) -> None:
        super().__init__(url)
        self.kind = kind

    async def make_connection(self):
        url = self.url.partition("?")[0]
        if self.kind == "asyncpg":
            return Asyncpg(await asyncpg.connect(url))
        return Psycopg(psycopg.connect(url, autocommit=True))


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("case", [case for case in cases() if case.topic == "bind"], ids=str)
def test_contract(case: Case, kind: str, postgres_url: str) -> None:
    run_case(case, lambda: BindHarness(postgres_url, kind))
