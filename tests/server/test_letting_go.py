"""A request that was refused leaves nothing that only the garbage collector finds: a server looks for that seldom."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.service import Service

from .kit import admitting
from .tasks import make_app

LARGE = "x" * 60_000  # read in the event loop; larger ones are read in a thread, in the same way

REFUSED = {
    "no JSON": (422, '{"type": "email", "payload": "' + LARGE),
    "an unknown field": (422, json.dumps({"type": "email", "payload": LARGE, "nonsense": 1})),
    "a wrong name": (422, json.dumps({"type": "no name", "payload": LARGE})),
    "a wrong option": (422, json.dumps({"type": "other", "payload": LARGE, "delay": "-1s"})),
    "two options that contradict": (
        422,
        json.dumps({"type": "other", "payload": LARGE, "delay": "1s", "at": "2030-01-31T09:00:00Z"}),
    ),
    "a wrong payload": (422, json.dumps({"type": "email", "payload": {"nonsense": LARGE}})),
    "a key of another job": (409, json.dumps({"type": "other", "payload": LARGE, "idempotency_key": "taken"})),
    "an unknown parent": (422, json.dumps({"type": "other", "payload": LARGE, "after": ["nobody"]})),
}


async def post(application: Any, body: bytes) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/jobs", "query_string": b"", "headers": headers}
    await application(scope, receive, send)
    return int(sent[0])


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_body_is_let_go_at_once(case: str) -> None:
    status, body = REFUSED[case]

    async def main() -> None:
        service = Service(make_app("memory://letting-go"))
        application = make_application(service, admitting(LOCAL))
        taken = json.dumps({"type": "other", "payload": 1, "idempotency_key": "taken"})
        assert await post(application, taken.encode()) in {200, 201}
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(5):
                assert await post(application, body.encode() + b" " * number) == status
            gc.collect()
            left = [found for each in gc.garbage for found in gc.get_referents(each)]
            part = LARGE[: len(LARGE) // 2]  # what others in this process leave behind may be long, too
            assert not [found for found in left if isinstance(found, str) and part in found]
            assert not [found for found in left if isinstance(found, bytes) and part.encode() in found]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            await service.close()

    asyncio.run(main())
