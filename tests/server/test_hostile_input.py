"""What no honest client sends, to every operation: refused with a reason, nothing changed, the server lives."""

from __future__ import annotations

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from packhorse import codec
from packhorse.backends.base import Query
from packhorse.clock import process_cpu_ms
from packhorse.errors import InvalidPayload
from packhorse.job import JobSpec, State
from packhorse.server.access import Caller, Role
from packhorse.server.app import operations
from packhorse.server.operation import Operation

from ..unit.test_codec import BAD, GOOD
from ..worker.working import until
from .api import Api, asking, on_stores

#: C9, C10: what must never name anything.
NAMES = [
    "",
    " ",
    "a b",
    "*",
    ">",
    "a.*",
    "{a}",
    "a:b",
    "a/b",
    "../a",
    "..\\a",
    "a\0",
    "a\r\nDEL x",
    "a\n",
    "$queue",
    "ü",
    "ａ",
    "🐴",
    "\u202ea",
    "a" * 129,
    "'; DROP TABLE jobs; --",
    "' OR '1'='1",
    '" OR 1=1 --',
    "a' UNION SELECT sql FROM sqlite_master--",
    "1); DELETE FROM jobs; --",
    "%' AND 1=CAST((SELECT 1) AS INT)--",
    "$(reboot)",
    "`id`",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "(a+)+$",
    "return redis.call('FLUSHALL')",
]
#: C5: what would be a script in a page that shows it.
SCRIPTS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "</title><svg onload=alert(1)>",
    "%3Cscript%3E",
    "a&b=<b>",
]
#: C6: what is no number of items.
NUMBERS = [
    "1000000000",
    "9" * 5_000,
    "-1",
    "0",
    "1.0",
    "1e2",
    "+5",
    " 5",
    "５",
    "٣",
    "0x10",
    "1_0",
    "",
    "abc",
    "null",
    "true",
]

_SAFE = frozenset({"GET"})


def _operations() -> list[Operation]:
    return [
        operation
        for operation in operations()
        if operation.raw_body is None and operation.media_type == "application/json" and "session" not in operation.path
    ]


def _path(operation: Operation, part: str) -> str:
    return re.sub(r"{\w+}", part.replace("\\", r"\\"), operation.path)


async def _everything(api: Api) -> Any:
    """Answer all that is in the store, but for how old it is."""
    backend = await api.backend()
    jobs = (await backend.find(Query(limit=1_000))).jobs
    counts = {name: each.states for name, each in (await backend.counts()).items()}
    return (
        msgspec.to_builtins(jobs),
        counts,
        msgspec.to_builtins(await backend.queues()),
        msgspec.to_builtins(await backend.limits()),
        msgspec.to_builtins(await backend.schedules()),
    )


async def _furnish(api: Api) -> None:
    await api.enqueue(queue="mail")
    await api.done("POST", "/api/v1/workflows", {"nodes": [{"name": "a", "job": {"type": "work"}}]})
    await api.done("PUT", "/api/v1/schedules/report", {"type": "report", "cron": "0 9 * * *"})
    await api.done("POST", "/api/v1/rate-limits/email", {"limit": 5})
    await api.done("PUT", "/api/v1/queues/mail/capacity", {"capacity": 50})


# ---- URLs ------------------------------------------------------------------------------------------------


@on_stores
def test_no_get_changes_anything(store: str, tmp_path: Path) -> None:
    """C31: a crawler that follows every link with GET."""

    async def scenario(api: Api) -> None:
        await _furnish(api)
        before = await _everything(api)
        (job,) = (await api.done("GET", "/api/v1/jobs?queue=mail"))["items"]
        for operation in _operations():
            for part in (job["id"], "mail", "email", "report"):
                response = await api.client.get(_path(operation, part))
                allowed = {200, 202, 400, 404} if operation.method == "GET" else {200, 400, 404, 405}
                assert response.status_code in allowed, operation.path
        for verb in ("cancel", "rerun", "delete", "batch"):
            assert (await api.client.get(f"/api/v1/jobs/{verb}")).status_code == 405
        assert await _everything(api) == before

    asking(store, tmp_path, scenario)


@on_stores
def test_a_hostile_name_names_nothing_wherever_it_stands_in_a_path(store: str, tmp_path: Path) -> None:
    """C9, C10."""

    async def scenario(api: Api) -> None:
        await _furnish(api)
        before = await _everything(api)
        for operation in _operations():
            if "{" not in operation.path:
                continue
            body = operation.example if operation.example is not None else {} if operation.body is not None else None
            for name in NAMES:
                response = await api.client.request(
                    operation.method,
                    _path(operation, quote(name, safe="")),
                    **({} if body is None else {"json": body}),
                )
                assert response.status_code in {400, 404, 405, 422}, (operation.name, name, response.text)
        assert await _everything(api) == before

    asking(store, tmp_path, scenario)


@on_stores
def test_a_hostile_name_finds_nothing_in_a_filter(store: str, tmp_path: Path) -> None:
    """C9, C10, C24."""

    async def scenario(api: Api) -> None:
        await _furnish(api)
        before = await _everything(api)
        for name in NAMES:
            for parameter in ("queue", "type", "tag"):
                for path in ("/api/v1/jobs", "/api/v1/dead-letter", "/api/v1/dead-letter/groups"):
                    await api.refused("GET", path, status=400, params={parameter: name})
                for path in ("/api/v1/jobs/delete", "/api/v1/jobs/cancel", "/api/v1/dead-letter/purge"):
                    await api.refused("POST", path, {"filter": {parameter: name}}, status=422)
            for parameter in ("state", "cursor", "created_from"):
                await api.refused("GET", "/api/v1/jobs", status=400, params={parameter: name})
            found = await api.get("/api/v1/jobs", params={"key": name})  # a key is any printable text
            assert found.status_code == 400 or found.json()["items"] == []
            for member in ("type", "queue"):
                await api.refused("POST", "/api/v1/jobs", {"type": "x", member: name}, status=422, at=f"/{member}")
            problem = await api.refused("POST", "/api/v1/jobs", {"type": "x", "tags": [name]}, status=422)
            assert problem["errors"][0]["pointer"] in {"/tags", "/tags/0"}
            await api.refused("POST", "/api/v1/jobs", {"type": "x", "meta": {name: "x"}}, status=422)
        assert await _everything(api) == before

    asking(store, tmp_path, scenario)


def test_no_parameter_comes_back_as_anything_but_json(tmp_path: Path) -> None:
    """C5: every parameter of every URL, and a URL that is nowhere."""

    async def scenario(api: Api) -> None:
        asked = 0
        for operation in _operations():
            if operation.method != "GET":
                continue
            names = [] if operation.query is None else [f.encode_name for f in msgspec.structs.fields(operation.query)]
            for text in SCRIPTS:
                for params in [{name: text} for name in names] + [{text: "x"}]:
                    response = await api.client.get(_path(operation, quote(text, safe="")), params=params)
                    asked += 1
                    assert response.headers["content-type"] in {"application/json", "application/problem+json"}
                    assert response.headers["x-content-type-options"] == "nosniff"
                    assert "default-src 'none'" in response.headers["content-security-policy"]
                    json.loads(response.content)
                    assert response.status_code < 500
        for text in SCRIPTS:
            response = await api.client.get(f"/{quote(text)}")
            assert response.status_code == 404
            assert text not in response.text
        assert asked > 400

    asking("memory", tmp_path, scenario)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12] or "nothing")
def test_a_number_out_of_bounds_is_refused_at_once(number: str, tmp_path: Path) -> None:
    """C6: clamped by refusal, within 50 ms."""

    async def scenario(api: Api) -> None:
        for operation in _operations():
            if operation.query is None or "{" in operation.path:
                continue
            names = {field.encode_name for field in msgspec.structs.fields(operation.query)}
            for name in names & {"limit", "count"}:
                started_ms = process_cpu_ms()  # of this process: the machine may have other things to do
                response = await api.client.get(operation.path, params={name: number})
                took_ms = process_cpu_ms() - started_ms
                assert response.status_code == 400, operation.path
                assert response.json()["errors"][0]["parameter"] == name
                assert took_ms < 50

    asking("memory", tmp_path, scenario)


@pytest.mark.parametrize(
    "query",
    [
        "nothing=1",
        "limit=1&limit=2",
        "limit",
        "brief=1",
        "brief=yes",
        "brief=",
        "oldest_first=True",
        "key=%ff",
        "key=%00",
        "state=gone",
        "state=",
        "cursor=-1",
        "cursor=" + "9" * 300,
        "created_from=yesterday",
        "created_from=2030-01-31T09:00:00",
        "created_before=99999-01-31T09:00:00Z",
        "queue=a&queue=b",
    ],
)
def test_a_wrong_query_string_is_a_400(query: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        problem = await api.refused("GET", f"/api/v1/jobs?{query}", status=400)
        assert len(problem["detail"]) <= 600

    asking("memory", tmp_path, scenario)


def test_a_query_string_has_a_length(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.refused("GET", f"/api/v1/jobs?key={'x' * 33_000}", status=414)
        await api.refused("GET", "/api/v1/queues?a=1", status=400)  # takes none at all

    asking("memory", tmp_path, scenario)


# ---- bodies ----------------------------------------------------------------------------------------------


def _verdict(text: str) -> bool:
    """Tell whether Python takes this text as a payload."""
    try:
        codec.parse(text)
    except InvalidPayload:
        return False
    return True


@on_stores
def test_a_payload_has_the_same_verdict_over_http_as_in_python(store: str, tmp_path: Path) -> None:
    """C13: the same corpus, and what is taken comes back as it was."""
    texts = [good[0] for good in GOOD] + [bad[0] for bad in BAD if bad[0].strip()]

    async def scenario(api: Api) -> None:
        for text in texts:
            body = b'{"type":"work","payload":' + text.encode(errors="surrogatepass") + b"}"
            response = await api.client.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == (201 if _verdict(text) else 422), text[:80]
            if response.status_code == 201:
                shown = await api.client.get(f"/api/v1/jobs/{response.json()['id']}")
                assert codec.parse(shown.content, 1 << 22, depth=-3)["payload"] == codec.parse(text)

    asking(store, tmp_path, scenario)


@on_stores
def test_a_payload_has_a_size(store: str, tmp_path: Path) -> None:
    """C13, C16."""

    async def scenario(api: Api) -> None:
        largest = "x" * (codec.PAYLOAD_BYTES_MAX - 2)
        await api.done("POST", "/api/v1/jobs", {"type": "work", "payload": largest})
        await api.refused("POST", "/api/v1/jobs", {"type": "work", "payload": f"{largest}x"}, status=413, at="/payload")
        await api.refused("POST", "/api/v1/jobs", {"type": "work", "payload": "x" * (3 << 20)}, status=413)

    asking(store, tmp_path, scenario)


def test_garbage_is_refused_by_every_operation(tmp_path: Path) -> None:
    """C32: seeded noise, and JSON that is no object, as the body of everything that takes one."""
    chance = random.Random(32)
    bodies = [chance.randbytes(chance.randint(1, 200)) for _ in range(20)]
    bodies += [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"\xff\xfe{\x00}\x00",
        b"{}{}",
    ]

    async def scenario(api: Api) -> None:
        before = await _everything(api)
        for operation in _operations():
            if operation.body is None:
                continue
            path = _path(operation, "x")
            for body in bodies:
                response = await api.client.request(
                    operation.method, path, content=body, headers={"Content-Type": "application/json"}
                )
                assert response.status_code in {404, 413, 422}, (operation.name, body[:40], response.text)
            for kind in (
                "text/plain",
                "application/x-www-form-urlencoded",
                "multipart/form-data",
                "",
                "application/xml",
                "application/json; charset=latin1",
                'Application/JSON;x=1;Charset="iso-8859-1"',
                "application/json; charset=",
            ):
                response = await api.client.request(
                    operation.method, path, content=b"{}", headers={"Content-Type": kind}
                )
                assert response.status_code == 415, (operation.name, kind)
                assert response.json()["errors"][0]["parameter"] == "Content-Type"
            for kind in ("application/json; charset=utf-8", 'APPLICATION/JSON ; a=b; Charset = "UTF-8"'):
                response = await api.client.request(
                    operation.method, path, content=b"[]", headers={"Content-Type": kind}
                )
                assert response.status_code == 422, (operation.name, kind)
        assert await _everything(api) == before

    asking("memory", tmp_path, scenario)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "FOO"])
def test_a_method_that_a_url_does_not_take_is_a_405(method: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for path in ("/api/v1/jobs/batch", "/api/v1/queues/mail/pause", "/api/v1/jobs/x/cancel"):
            response = await api.client.request(method, path)
            assert response.status_code == 405, path
            assert response.headers["allow"] == "POST"

    asking("memory", tmp_path, scenario)


# ---- clients that go away --------------------------------------------------------------------------------


def test_a_client_that_stops_waiting_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue(delay="1h")
        backend = await api.backend()
        bells = backend.inner.store.bells  # type: ignore[attr-defined]
        waiting = [asyncio.create_task(api.client.get(f"/api/v1/jobs/{job_id}/result?wait=60s")) for _ in range(20)]
        await until(lambda: bells.are_hung)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not bells.are_hung

    asking("memory", tmp_path, scenario)


@pytest.mark.parametrize("role", list(Role))
def test_no_operation_breaks_for_a_caller_of_some_queues(role: Role, tmp_path: Path) -> None:
    """C19: what is of another queue is not there, or not allowed; it is never a fault of the server."""

    async def scenario(api: Api) -> None:
        theirs = (await (await api.backend()).enqueue([JobSpec(id="theirs", type="work", queue="theirs")]))[0].id
        for operation in _operations():
            path = _path(operation, theirs if "jobs" in operation.path else "theirs")
            body = operation.example if operation.example is not None else {}
            response = await api.client.request(
                operation.method, path, **({} if operation.body is None else {"json": body})
            )
            assert response.status_code < 500, (operation.name, response.text)
        (record,) = await (await api.backend()).get([theirs])
        assert record is not None
        assert record.state is State.PENDING
        assert (await (await api.backend()).queues()).keys() <= {"mine"}

    asking("memory", tmp_path, scenario, caller=Caller(name="some", role=role, queues=frozenset({"mine"})))
