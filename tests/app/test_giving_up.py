"""A caller that gives up while the store is being opened: nobody is told of an error, and nothing is logged as lost."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from packhorse import Packhorse, Unavailable
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.opening import register_backend


def test_an_error_of_opening_that_nobody_waits_for_any_more_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        opening, fail = asyncio.Event(), asyncio.Event()

        class Away(MemoryBackend):
            async def open(self) -> None:
                opening.set()
                await fail.wait()
                raise Unavailable("nobody there")

        register_backend("away-while-asked", lambda url, clock: Away())
        app = Packhorse("away-while-asked://")
        asking = asyncio.create_task(app.backend())
        await opening.wait()
        asking.cancel()
        await asyncio.wait([asking])
        fail.set()
        await app.aclose()
        await asyncio.sleep(0)
        gc.collect()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "never retrieved" not in caplog.text
