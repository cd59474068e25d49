"""What looks secret is hidden from who may only look, and no secret of ours is ever shown (FAILURES C20, C24)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from packhorse.backends.base import Settlement
from packhorse.clock import ManualClock, process_cpu_ms
from packhorse.job import JobRecord, JobSpec, State
from packhorse.redaction import WORDS, looks_secret, redacted, redacted_json, redacted_record, words_with
from packhorse.server.app import operations

from ..worker.working import new_app, work
from .guarded import SETTING, TOKENS, bearer, guarded

CANARY = "canary-5f3a9c1e"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "db_password",
        "userPassword",
        "passwd",
        "pwd",
        "passphrase",
        "secret",
        "client-secret",
        "token",
        "accessToken",
        "refresh_token",
        "api_key",
        "apikey",
        "API-Key",
        "x.api.key",
        "Authorization",
        "Set-Cookie",
        "private_key",
        "privateKey",
        "ssh private key",
        "aws_credentials",
    ],
)
def test_keys_that_look_secret(key: str) -> None:
    assert looks_secret(key)
    assert redacted({"a": [{key: CANARY}]}) == {"a": [{key: "***"}]}


@pytest.mark.parametrize("key", ["to", "key", "name", "monkey", "pass", "author", "private", "", "api", "ключ"])
def test_keys_that_do_not(key: str) -> None:
    assert not looks_secret(key)
    assert redacted({key: "x"}) == {key: "x"}


def test_all_that_stands_under_a_secret_key_is_hidden_and_nothing_else_changes() -> None:
    value = {
        "password": {"old": "a", "new": ["b", 1]},
        "tokens": [1, 2],
        "pin_secret": 1234,
        "has_password": True,
        "token": None,
        "cookie": "",
        "to": ["a@example.com", {"secret": 0.5, "n": 1}],
    }
    before = msgspec.json.encode(value)
    assert redacted(value) == {
        "password": "***",
        "tokens": "***",
        "pin_secret": "***",
        "has_password": True,
        "token": None,
        "cookie": "",
        "to": ["a@example.com", {"secret": "***", "n": 1}],
    }
    assert msgspec.json.encode(value) == before


@pytest.mark.parametrize("value", ["password", 3, None, [], {}, [["secret"]], "my password is x"])
def test_what_has_no_keys_is_shown(value: Any) -> None:
    assert redacted(value) == value


def test_own_keys_are_hidden_too() -> None:
    words = words_with(["IBAN", "card-number", "_"])
    assert set(words) == {*WORDS, "iban", "cardnumber"}
    assert redacted({"customer_iban": "DE", "cardNumber": 1, "password": "x", "to": "a"}, words) == {
        "customer_iban": "***",
        "cardNumber": "***",
        "password": "***",
        "to": "a",
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b'"password"', b"\x80\x02}", b"{broken", b'{"to": 1 , "x":2}', b"[1e999]", b"{" * 200_000],
)
def test_what_hides_nothing_stays_byte_for_byte(data: bytes) -> None:
    assert redacted_json(data) == data


@pytest.mark.parametrize("data", [b'{"password":"x"}', b'{"p\\u0061ssword":"x"}', b'[{"a":{"PassWord":["x"]}}]'])
def test_stored_json_is_hidden_however_it_is_written(data: bytes) -> None:
    shown = redacted_json(data)
    assert b"x" not in shown
    assert b"***" in shown


def test_c24_no_key_makes_it_slow() -> None:
    keys = ["a" * 1_000_000, "(a+)+$" * 100_000, "passwor" * 100_000, "_" * 1_000_000]
    began_ms = process_cpu_ms()
    assert [looks_secret(key) for key in keys] == [False] * 4
    assert process_cpu_ms() - began_ms < 1_000


def test_of_a_job_payload_result_steps_and_meta_are_hidden_and_the_job_is_left_alone() -> None:
    record = JobRecord(
        id="i",
        type="t",
        queue="q",
        state=State.SUCCEEDED,
        payload=b'{"password":"a","to":"b"}',
        priority=5,
        attempt=1,
        max_attempts=4,
        timeout_ms=1,
        created_at_ms=1,
        due_at_ms=1,
        result=b'{"access_token":"c"}',
        meta={"cookie": "d", "trace": "e"},
        steps={"login": b'{"secret":"f"}'},
    )
    shown = redacted_record(record)
    assert shown.payload == b'{"password":"***","to":"b"}'
    assert shown.result == b'{"access_token":"***"}'
    assert shown.meta == {"cookie": "***", "trace": "e"}
    assert shown.steps == {"login": b'{"secret":"***"}'}
    assert (record.payload, record.meta) == (b'{"password":"a","to":"b"}', {"cookie": "d", "trace": "e"})


# ---- over HTTP -----------------------------------------------------------------------------------------------


async def _fill(app: Any) -> list[str]:
    """Store jobs of every state and a schedule, each with a canary in its payload, result and meta."""
    backend = await app.backend()
    payload = b'{"to":"visible","password":"%b","deep":[{"iban":"%b"}]}' % (CANARY.encode(), CANARY.encode())
    ids = app.chance.ids(app.clock.now_ms(), 4)
    specs = [
        JobSpec(id=job_id, type="mail", payload=payload, meta={"api_key": CANARY}, workflow=ids[0]) for job_id in ids
    ]
    await backend.enqueue(specs)
    jobs = await backend.claim(["default"], 3, 30_000, "w")
    result = b'{"access_token":"%b","sent":1}' % CANARY.encode()
    states = (State.SUCCEEDED, State.FAILED)
    await backend.settle(
        [
            Settlement(id=job.id, token=job.token, state=state, result=result)
            for job, state in zip(jobs, states, strict=False)
        ]
    )
    return ids


@pytest.mark.parametrize("role", ["read", "submit", "work"])
def test_c20_no_answer_shows_a_secret_to_who_may_not_steer(role: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every GET there is, asked about every job."""

    async def scenario() -> None:
        app = new_app(tokens=SETTING, redact="iban", clock=ManualClock())
        async with guarded(app=app) as server, server.client() as client:
            ids = await _fill(app)
            schedule = {"type": "mail", "payload": {"secret": CANARY}, "cron": "0 0 * * *"}
            await client.put("/api/v1/schedules/nightly", json=schedule, headers=bearer())
            seen = ""
            for operation in operations():
                if operation.method != "GET" or "text/event-stream" in operation.media_type:
                    continue
                for name in [*ids, "nightly", "mail", "default"] if "{" in operation.path else [""]:
                    start, end = operation.path.find("{"), operation.path.find("}") + 1
                    path = operation.path if start < 0 else operation.path[:start] + name + operation.path[end:]
                    response = await client.get(path, headers=bearer(role))
                    assert CANARY not in response.text + str(response.headers), path
                    seen += response.text
            assert seen.count('"visible"') >= 8  # lists, shows, plain routes
            assert '"***"' in seen
            whole = (await client.get(f"/api/v1/jobs/{ids[0]}", headers=bearer("admin"))).text
            assert whole.count(CANARY) >= 3

    with caplog.at_level(logging.DEBUG):
        work(scenario)
    assert CANARY not in caplog.text


def test_c20_the_contract_shows_secrets_to_who_handles_payloads_only() -> None:
    from packhorse.backends.http import wire

    async def scenario() -> None:
        app = new_app(tokens=SETTING, redact="iban", clock=ManualClock())
        async with guarded(app=app) as server, server.client() as client:
            ids = await _fill(app)
            for role, shown in (("read", False), ("submit", True), ("work", True), ("admin", True)):
                response = await client.post(
                    wire.GET.path,
                    content=wire.write(wire.Get(ids)),
                    headers={**bearer(role), "Content-Type": wire.MEDIA_TYPE},
                )
                assert response.status_code == 200
                assert (CANARY.encode() in response.content) is shown, role

    work(scenario)


def test_an_idempotency_key_is_compared_with_the_whole_payload() -> None:
    """What is hidden when shown must not be taken for another payload, nor for the same one."""

    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            headers = {**bearer("submit"), "Idempotency-Key": "k"}
            answers = [
                await client.post(
                    "/api/v1/jobs", json={"type": "t", "payload": {"password": password}}, headers=headers
                )
                for password in ("a", "a", "b")
            ]
            assert [answer.status_code for answer in answers] == [201, 200, 409]

    work(scenario)


def test_c20_neither_the_stores_password_nor_a_token_is_in_any_answer_or_log(caplog: pytest.LogCaptureFixture) -> None:
    """With a store that cannot be reached, which is when messages name it."""
    from packhorse import Packhorse

    async def scenario() -> None:
        app = Packhorse(f"redis://worker:{CANARY}@127.0.0.1:1/0", tokens=SETTING)
        async with guarded(app=app) as server, server.client() as client:
            for operation in operations():
                if operation.path.startswith("/api/v1/events"):
                    continue
                path = operation.path.replace("{", "").replace("}", "")
                response = await client.request(operation.method, path, headers=bearer(), json={"type": "x"})
                text = response.text + str(response.headers)
                assert CANARY not in text, path
                assert not any(token in text for token in TOKENS.values()), path
                assert response.status_code != 500, path
            assert (await client.get("/health")).status_code == 503

    with caplog.at_level(logging.DEBUG):
        work(scenario, limit_s=60)
    assert CANARY not in caplog.text
    assert not any(token in caplog.text for token in TOKENS.values())
