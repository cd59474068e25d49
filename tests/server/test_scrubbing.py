"""C20: the password of the store's URL is in no answer, whatever the store's driver says when it fails."""

from __future__ import annotations

import pytest

from packhorse import Packhorse
from packhorse.backends.memory import MemoryBackend
from packhorse.backends.memory_store import MemoryStore
from packhorse.backends.opening import register_backend
from packhorse.clock import SYSTEM_CLOCK
from packhorse.errors import ConfigurationError, Unavailable
from packhorse.server.access import Caller, Role

from ..worker.working import work
from .kit import client_of

CANARY = "canary%2Fof-5tests"
MEANT = "canary/of-5tests"


class Talkative(MemoryBackend):
    """Says its URL when it is asked for anything, as written and as meant."""

    error: type[Exception] = Unavailable

    async def workers(self):
        raise self.error(f"no way to canary://user:{CANARY}@box: password {MEANT} was not taken")

    async def enqueue(self, specs):
        return await self.workers()

    async def find(self, query):
        return await self.workers()

    async def counts(self):
        return await self.workers()


@pytest.mark.parametrize("error", [Unavailable, ConfigurationError])
def test_no_answer_has_the_password_of_the_stores_url(error: type[Exception]) -> None:
    async def scenario() -> None:
        store = MemoryStore(SYSTEM_CLOCK)
        register_backend("canary", lambda url, clock: Talkative(store))
        Talkative.error = error
        app = Packhorse(f"canary://user:{CANARY}@box")
        assert "canary%2F" not in repr(app.settings)
        async with client_of(app) as client:
            answers = [
                await client.get("/health"),
                await client.get("/api/v1/stats"),
                await client.get("/api/v1/jobs"),
                await client.post("/api/v1/jobs", json={"type": "x"}),
            ]
        for answer in answers:
            assert answer.status_code == 503
            assert "***" in answer.text
            assert "of-5tests" not in answer.text

    work(scenario)


def test_an_answer_to_a_wrong_request_does_not_tell_a_guesser_which_password_is_right() -> None:
    """What a request said is repeated as it was: were the right password hidden there, that would confirm it."""

    async def scenario() -> None:
        app = Packhorse("memory://scrubbing?password=swordfish-1")
        async with client_of(app, Caller(name="tenant", role=Role.READ)) as client:
            answer = await client.get("/api/v1/jobs?swordfish-1=1")
            assert answer.status_code == 400
            assert "swordfish-1" in answer.json()["detail"]

    work(scenario)
