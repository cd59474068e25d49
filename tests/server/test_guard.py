"""The guard: who is asking, and what he may know of what is there (FAILURES C1, C17, C19, C28)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from packhorse.backends.base import Schedule, ScheduleChange, WorkerInfo
from packhorse.errors import ConfigurationError
from packhorse.job import JobSpec
from packhorse.server.access import CALLER_KEY, LOCAL, Permission
from packhorse.server.app import operations
from packhorse.server.door.guard import Guard
from packhorse.server.door.origins import Hosts
from tests.witness import Witness, boot_s

from ..worker.working import new_app, store_of, until, work
from .guarded import METHODS, PATHS, SETTING, TOKENS, bearer, guarded, status_of


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_c28_no_answer_may_be_framed_kept_or_sniffed() -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            for path in PATHS:
                for headers in ({}, bearer(), {"Host": "evil.example"}):
                    response = await client.get(path, headers=headers)
                    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
                    assert response.headers["cache-control"] == "no-store"
                    assert response.headers["x-content-type-options"] == "nosniff"

    work(scenario)


# ---- C1, C17: who is asking --------------------------------------------------------------------------------


def test_c1_everything_that_is_not_meant_for_all_needs_a_token() -> None:
    """Also what is not there: without a token nobody learns what there is."""

    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            for operation in operations():
                path = operation.path.replace("{", "").replace("}", "")
                response = await client.request(operation.method, path)
                assert (response.status_code != 401) is (operation.may is None), (operation.method, path)
            for method in METHODS:
                assert (await client.request(method, "/nothing/here")).status_code == 401
            open_to_all = {(one.method, one.path) for one in operations() if one.may is None}
            assert open_to_all == {
                ("GET", "/"),
                ("GET", "/health"),
                ("GET", "/livez"),
                ("GET", "/readyz"),
                ("POST", "/api/v1/session"),
            }
            assert (await client.head("/livez")).status_code == 200
            assert (await client.get("/health")).json().keys() == {"status", "service"}
            assert "workers" in (await client.get("/health", headers=bearer())).json()

    work(scenario)


WRONG = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer ph_0000000000000000000000000000000000000000"},
    {"Authorization": f"Basic {TOKENS['admin']}"},
    {"Authorization": TOKENS["admin"]},
    {"Authorization": f"Bearer {TOKENS['admin']}x"},
    {"Authorization": f"Bearer {TOKENS['admin'].upper()}"},
    {"Authorization": "Bearer ü".encode()},
    {"Authorization": b"Bearer \xff\xfe\x80"},
    {"Authorization": "Bearer " + "a" * 60_000},
    {"Cookie": "packhorse_session=" + "0" * 64},
    {"Cookie": b"packhorse_session=\xff; =; ;; x"},
    {"X-Api-Key": TOKENS["admin"]},
]


def test_c17_every_way_to_be_nobody_gets_the_same_401_and_none_a_500() -> None:
    """Missing, unknown, garbled, not ASCII: the answer helps nobody to guess."""

    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server:
            bodies = set()
            for number, headers in enumerate(WRONG):
                async with server.client(f"10.0.0.{number}") as client:
                    response = await client.get("/api/v1/jobs", headers=headers)
                assert response.status_code == 401, headers
                assert response.headers["www-authenticate"] == 'Bearer realm="packhorse"'
                bodies.add(response.content)
            assert len(bodies) == 1

    work(scenario)


@pytest.mark.parametrize("query", ["token=x", "a=1&access_token=x", "TOKEN=x", "token", f"token={TOKENS['admin']}"])
def test_c17_a_token_in_a_url_is_not_looked_at_and_the_answer_says_so(query: str) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            for headers in ({}, bearer()):
                response = await client.get(f"/api/v1/jobs?{query}", headers=headers)
                assert response.status_code == 400
                assert response.json()["type"] == "urn:packhorse:token-in-url"
                assert TOKENS["admin"] not in response.text

    work(scenario)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_good_token_says_who_is_asking(scheme: str) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            header = {"Authorization": f"{scheme}  {TOKENS['work@mail+sms']} "}
            assert (await client.get("/api/v1/session", headers=header)).json() == {
                "name": "setting-6",
                "role": "work",
                "queues": ["mail", "sms"],
                "expires_at": None,
            }

    work(scenario)


GRANTED = {
    "read": {Permission.LOOK},
    "submit": {Permission.LOOK, Permission.SUBMIT},
    "work": {Permission.LOOK, Permission.SUBMIT, Permission.WORK},
    "admin": set(Permission),
}


@pytest.mark.parametrize("role", GRANTED)
def test_every_operation_is_refused_to_roles_that_do_not_grant_it(role: str) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            for operation in operations():
                if operation.may is None or operation.may in GRANTED[role]:
                    continue
                path = operation.path.replace("{", "").replace("}", "")
                response = await client.request(operation.method, path, headers=bearer(role), json={})
                assert response.status_code == 403, (operation.method, path)

    work(scenario)


def test_c19_the_job_of_another_queue_is_as_missing_as_one_that_never_was() -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            made = await client.post("/api/v1/jobs", json={"type": "x", "queue": "bills"}, headers=bearer())
            job_id, never = made.json()["id"], "019a0000-0000-7000-8000-000000000000"
            for operation in operations():
                if operation.path.count("{") != 1 or "/jobs/{" not in operation.path:
                    continue
                answers = set()
                for name in (job_id, never):
                    path = operation.path.replace(operation.path[operation.path.index("{") :].split("/")[0], name)
                    response = await client.request(operation.method, path, headers=bearer("admin@mail"), json={})
                    assert response.status_code == 404 or operation.method == "GET", (operation.method, path)
                    answers.add((response.status_code, response.text.replace(name, "ID")))
                assert len(answers) == 1, (operation.method, operation.path, answers)
                assert answers.pop()[0] in {404, 405}
            refused = await client.post(
                "/api/v1/jobs", json={"type": "x", "queue": "bills"}, headers=bearer("admin@mail")
            )
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:packhorse:out-of-scope")
            assert (await client.get("/api/v1/jobs", headers=bearer("admin@mail"))).json()["items"] == []
            assert (await client.get(f"/api/v1/jobs/{job_id}", headers=bearer())).status_code == 200

    work(scenario)


def test_c19_no_answer_tells_of_another_queue() -> None:
    """Every GET there is, asked by its name and by ours: neither its jobs, types, workers, schedules nor itself."""

    async def scenario() -> None:
        app = new_app(tokens=SETTING)
        async with guarded(app=app) as server, server.client() as client:
            backend = await app.backend()
            job_id, running = app.chance.ids(app.clock.now_ms(), 2)
            secret = {"queue": "theirs-q", "type": "theirs-t", "tags": ("theirs-tag",), "key": "theirs-k"}
            await backend.enqueue(
                [JobSpec(id=one, workflow=job_id, node="theirs-n", **secret) for one in (job_id, running)]
            )
            await backend.heartbeat(WorkerInfo(id="theirs-w", queues=("theirs-q",), types=("theirs-t",)), 30_000)
            await backend.claim(["theirs-q"], 1, 30_000, "theirs-w")
            slot = Schedule(name="theirs-s", spec=JobSpec(id="", **secret), every_ms=60_000)
            await backend.schedules([ScheduleChange(name="theirs-s", define=slot)])
            mine = await client.post("/api/v1/jobs", json={"type": "x", "queue": "mail"}, headers=bearer())
            asked = 0
            for operation in operations():
                if operation.method != "GET" or "event-stream" in operation.media_type:
                    continue
                names = [job_id, running, "theirs-q", "theirs-s", "theirs-w", mine.json()["id"], "mail"]
                for name in names if "{" in operation.path else [""]:
                    start, end = operation.path.find("{"), operation.path.find("}") + 1
                    path = operation.path if start < 0 else operation.path[:start] + name + operation.path[end:]
                    text = (await client.get(path, headers=bearer("work@mail+sms"))).text.replace(name or "\0", "")
                    assert "theirs" not in text, path
                    assert job_id not in text, path
                    asked += 1
            assert asked > 50
            whole = (await client.get("/api/v1/stats", headers=bearer())).text
            assert "theirs-q" in whole

    work(scenario)


# ---- C1: without tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.8.8.8", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("192.168.1.7", {}, 401),
        ("fe80::1%eth0", {}, 401),
        ("::ffff:192.168.1.7", {}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "unknown"}, 401),
        ("127.0.0.1", {"X-Real-IP": "203.0.113.9"}, 401),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, 200),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "203.0.113.9"}, 401),
        ("127.0.0.1", {"X-Forwarded-For": ""}, 401),
        ("127.0.0.1", {"Forwarded": "for=203.0.113.9"}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 200),
    ],
)
def test_c1_without_tokens_only_this_machine_comes_in(address: str, headers: dict[str, str], status: int) -> None:
    """Neither a client of another machine, wherever the server listens, nor one whom a proxy brings."""

    async def scenario() -> None:
        async with guarded() as server, server.client(address) as client:
            assert (await client.get("/api/v1/jobs", headers=headers)).status_code == status
            assert (await client.get("/nothing", headers=headers)).status_code == (404 if status == 200 else 401)

    work(scenario)


def test_c1_a_proxy_hides_nobody_behind_a_second_header() -> None:
    async def scenario() -> None:
        async with guarded() as server:
            host = (b"host", b"localhost")
            far, near = (b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-for", b"127.0.0.1")
            for headers, status in (([host, far, near], 401), ([host, near, far], 401), ([host, near, near], 405)):
                asked = await status_of(server.application, headers, method="PUT")
                assert asked == status

    work(scenario)


def test_c1_a_public_name_without_tokens_is_refused_at_the_start() -> None:
    async def scenario() -> None:
        for allowed in ("jobs.example.com", "*.example.com", "10.0.0.5"):
            with pytest.raises(ConfigurationError, match="packhorse tokens create"):
                async with guarded(allowed_hosts=allowed):
                    pass
            async with guarded(allowed_hosts=allowed, tokens=SETTING):
                pass
        async with guarded(allowed_hosts="localhost:9999,dev.localhost,[::1]:80"):
            pass

    work(scenario)


# ---- what is behind it ---------------------------------------------------------------------------------------


def test_a_websocket_is_closed_and_a_lifespan_passes() -> None:
    async def scenario() -> None:
        seen: list[Any] = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

        async def send(message: Any) -> None:
            seen.append(message["type"])

        async with guarded() as server:
            wrapped = Guard(server.service.door, Hosts())(application)
            await wrapped({"type": "websocket"}, None, send)
            await wrapped({"type": "lifespan"}, None, send)
        assert seen == ["websocket.close", "lifespan"]

    work(scenario)


def test_a_stream_ends_when_its_token_is_revoked(directory: Path) -> None:
    """One that was opened before must not go on to tell what happens."""
    from packhorse.clock import ManualClock
    from packhorse.server.access import Role
    from packhorse.server.door.tokens import TokensFile, create_token, revoke_tokens

    async def scenario() -> None:
        clock = ManualClock()
        file = TokensFile(directory / "packhorse-tokens.json")
        secret, _ = create_token(file, "page", Role.READ)
        sent: list[Any] = []
        revoked = asyncio.Event()

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            assert scope[CALLER_KEY].name == "page"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            revoke_tokens(file, ["page"])
            clock.advance(1_000)
            revoked.set()
            while True:
                await send({"type": "http.response.body", "body": b"two", "more_body": True})

        async def send(message: Any) -> None:
            sent.append(message)

        async with guarded(app=new_app(clock=clock)) as server:
            wrapped = Guard(server.service.door, Hosts())(stream)
            headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + secret.encode())]
            await wrapped(
                {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}, None, send
            )
        assert revoked.is_set()
        assert [message.get("body") for message in sent] == [None, b"one", b""]
        assert sent[-1]["more_body"] is False

    work(scenario)


def test_a_wait_that_outlives_its_token_answers_nothing(directory: Path) -> None:
    """A long poll that began with a good token must not tell, a minute later, how the job ended."""
    from packhorse.clock import ManualClock
    from packhorse.server.access import Role
    from packhorse.server.door.tokens import TokensFile, create_token, revoke_tokens

    async def scenario() -> None:
        clock = ManualClock()
        file = TokensFile(directory / "packhorse-tokens.json")
        secret, _ = create_token(file, "page", Role.READ)
        app = new_app(clock=clock)
        job = await app.aenqueue("x", {})
        async with guarded(app=app) as server, server.client() as client:
            headers = {"Authorization": f"Bearer {secret}"}
            asked = asyncio.create_task(client.get(f"/api/v1/jobs/{job.id}/result?wait=60s", headers=headers))
            await until(lambda: store_of(app).bells.are_hung)
            revoke_tokens(file, ["page"])
            clock.advance(1_000)
            await job.acancel()
            answer = await asyncio.wait_for(asked, 60)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "cancelled" not in answer.text

    work(scenario)


def test_an_error_behind_the_guard_is_not_swallowed() -> None:
    async def scenario() -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            raise ValueError(scope[CALLER_KEY].name)

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
        async with guarded() as server:
            with pytest.raises(ValueError, match=LOCAL.name):
                await Guard(server.service.door, Hosts())(broken)(dict(scope), None, None)
        async with guarded(tokens=SETTING) as server:
            headers += [(b"authorization", b"Bearer " + TOKENS["admin"].encode())]
            with pytest.raises(ValueError, match="setting-1"):
                await Guard(server.service.door, Hosts())(broken)(dict(scope), None, None)

    work(scenario)


def test_c17_over_a_real_connection_a_revocation_is_live_within_a_second(directory: Path, witness: Witness) -> None:
    """With a token that is not ASCII on the wire, too: 401, and the server goes on."""
    from packhorse.server.access import Role
    from packhorse.server.door.tokens import TokensFile, create_token, revoke_tokens
    from packhorse.server.net.running import serving

    async def scenario() -> None:
        file = TokensFile(directory / "packhorse-tokens.json")
        secret, _ = create_token(file, "ci", Role.READ)
        async with guarded() as server, serving(server.application) as url, httpx.AsyncClient(base_url=url) as client:

            async def status(token: bytes) -> int:
                return (await client.get("/api/v1/jobs", headers={"Authorization": b"Bearer " + token})).status_code

            assert await status(secret.encode()) == 200
            assert await status("ключ".encode()) == 401
            assert await status(b"\xff\xfe") == 401
            revoke_tokens(file, ["ci"])
            began = boot_s()
            await until(lambda: _is(status(secret.encode()), 401))
            assert witness.since_s(began) < 1.5  # a second, and what a busy machine adds
            assert (await client.get("/livez")).status_code == 200

    work(scenario)


async def _is(asked: Any, status: int) -> bool:
    return bool(await asked == status)
