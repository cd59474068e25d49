"""Requests as spans, and what they hand on to the jobs that they store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from packhorse import Packhorse

from ..cli.serving import until
from ..server.kit import client_of
from ..server.real import TOKEN, served
from ..worker.working import new_app, work
from .receiver import is_child, trace_in, traced_app, traceparent_of
from .test_trace_context import GOOD, HOSTILE, SPAN, TRACE

UNSAMPLED = GOOD[:-2] + "00"
JOB = {"type": "email", "payload": {"to": "canary@example.com"}}


def asking(app: Packhorse, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client_of(app) as client:
            await scenario(client)
        assert not trace.get_current_span().get_span_context().is_valid

    work(main)


async def stored(client: httpx.AsyncClient, headers: dict[str, str] | None = None, path: str = "/api/v1/jobs") -> dict:
    answer = await client.post(path, json=JOB, headers=headers)
    assert answer.status_code == 201, answer.text
    job = (await client.get(f"/api/v1/jobs/{answer.json()['job_id']}")).json()
    return job["meta"] or {}


def test_a_request_in_a_trace_is_a_server_span_above_the_send() -> None:
    app, spans = traced_app()

    async def scenario(client: httpx.AsyncClient) -> None:
        meta = await stored(client, {"traceparent": GOOD, "tracestate": "x=1"})
        request, send = spans.one("POST /api/v1/jobs"), spans.one("send default")
        assert (request.context.trace_id, request.parent and request.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
        assert request.kind is SpanKind.SERVER
        assert dict(request.attributes or {}) == {
            "http.request.method": "POST",
            "http.route": "/api/v1/jobs",
            "http.response.status_code": 201,
            "url.scheme": "http",
        }
        assert is_child(send, request)
        assert meta == {"traceparent": traceparent_of(send), "tracestate": "x=1"}
        assert not any("canary" in span.to_json() for span in spans.all)

    asking(app, scenario)


def test_a_request_that_begins_a_trace_is_above_the_send_of_its_job() -> None:
    app, spans = traced_app()

    async def scenario(client: httpx.AsyncClient) -> None:
        await stored(client)
        request, send = spans.one("POST /api/v1/jobs"), spans.one("send default")
        assert request.parent is None
        assert is_child(send, request)
        assert (request.start_time or 0) <= (send.start_time or 0)
        assert spans.one("GET /api/v1/jobs/{id}").parent is None

    asking(app, scenario)


def test_of_requests_that_begin_a_trace_their_jobs_decide() -> None:
    app, spans = traced_app(share=0.5)

    async def scenario(client: httpx.AsyncClient) -> None:
        tracing = app.tracing()
        assert tracing is not None
        for _ in range(40):
            spans.exporter.clear()
            answer = (await client.post("/api/v1/jobs", json=JOB)).json()
            kept = tracing.keeps(answer["id"])
            assert len(spans.named("send default")) == kept
            if kept:
                assert is_child(spans.one("send default"), spans.one("POST /api/v1/jobs"))

    asking(app, scenario)


def test_a_request_whose_trace_is_not_kept_makes_no_span_and_says_so_to_the_job() -> None:
    app, spans = traced_app()

    async def scenario(client: httpx.AsyncClient) -> None:
        assert await stored(client, {"traceparent": UNSAMPLED}) == {"traceparent": UNSAMPLED}
        assert [span.name for span in spans.all] == ["GET /api/v1/jobs/{id}"]

    asking(app, scenario)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_is_not_valid_is_ignored(name: str) -> None:
    text = HOSTILE[name]
    if not text.isascii() or not text.isprintable():
        text = ascii(text)
    for app, is_on in ((new_app(), False), (traced_app()[0], True)):

        async def scenario(client: httpx.AsyncClient, is_on: bool = is_on) -> None:
            meta = await stored(client, {"traceparent": text})
            assert ("traceparent" in meta) == is_on
            assert TRACE not in meta.get("traceparent", "")

        if name != "spaces around":  # a header's value has none
            asking(app, scenario)


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/jobs"])
@pytest.mark.parametrize("given", [GOOD, UNSAMPLED], ids=["kept", "not kept"])
def test_a_server_that_makes_no_spans_hands_the_trace_on(path: str, given: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"traceparent": given, "tracestate": "x=1"}
        assert await stored(client, headers, path) == {"traceparent": given, "tracestate": "x=1"}

    asking(new_app(), scenario)


def test_a_request_that_names_two_traces_belongs_to_none() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        twice = [("traceparent", GOOD), ("traceparent", UNSAMPLED)]
        answer = await client.post("/api/v1/jobs", json=JOB, headers=twice)
        job = (await client.get(f"/api/v1/jobs/{answer.json()['id']}")).json()
        assert "traceparent" not in (job["meta"] or {})

    asking(new_app(), scenario)


def test_a_context_in_the_meta_of_a_job_goes_before_the_header() -> None:
    own = f"00-{'a' * 32}-{'b' * 16}-01"

    async def scenario(client: httpx.AsyncClient) -> None:
        job = JOB | {"meta": {"traceparent": own}}
        answer = await client.post("/api/v1/jobs", json=job, headers={"traceparent": GOOD})
        found = (await client.get(f"/api/v1/jobs/{answer.json()['id']}")).json()
        assert found["meta"] == {"traceparent": own}

    asking(new_app(), scenario)
    app, spans = traced_app()
    asking(app, scenario)
    assert not spans.named("send default")


def test_refused_requests_and_health_are_what_they_are() -> None:
    app, spans = traced_app()

    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/livez", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert not spans.all
        await client.post("/api/v1/jobs", json={"nothing": 1})
        refused = spans.one("POST /api/v1/jobs")
        assert (refused.attributes or {})["http.response.status_code"] == 422
        assert refused.status.status_code is StatusCode.UNSET
        await client.get("/nowhere/secret-canary")
        nowhere = spans.one("GET")
        assert (nowhere.attributes or {})["http.response.status_code"] == 404
        assert "canary" not in nowhere.to_json()
        await client.request("BREW", "/api/v1/jobs")
        assert (spans.one("_OTHER /api/v1/jobs").attributes or {})["http.response.status_code"] == 405

    asking(app, scenario)


def test_a_failure_of_the_server_is_an_error() -> None:
    app, spans = traced_app()

    async def scenario(client: httpx.AsyncClient) -> None:
        async def broken() -> None:
            raise RuntimeError("canary")

        app.backend = broken  # type: ignore[assignment, method-assign]
        assert (await client.get("/api/v1/queues")).status_code == 500
        request = spans.one("GET /api/v1/queues")
        assert request.status.status_code is StatusCode.ERROR
        assert (request.attributes or {})["error.type"] == "500"
        assert "canary" not in request.to_json()

    asking(app, scenario)


def test_who_is_not_let_in_makes_no_spans(tmp_path: Path) -> None:
    app, spans = traced_app()
    with served(app) as url:
        refused = httpx.get(f"{url}/api/v1/queues", headers={"traceparent": GOOD})
        assert refused.status_code == 401
        assert not spans.all
        given = {"traceparent": GOOD, "Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/api/v1/queues", headers=given).status_code == 200
        until(lambda: spans.named("GET /api/v1/queues"))  # it ends after its answer
        assert TOKEN not in spans.one("GET /api/v1/queues").to_json()


def test_a_trace_goes_through_a_store_at_the_other_end_of_http() -> None:
    app, at_server = traced_app()
    with served(app) as url:
        client = Packhorse(url, token=TOKEN, tracing="on")
        at_client = trace_in(client)

        async def main() -> None:
            job = await client.aenqueue("email")
            send = at_client.one("send default")
            record = await job.arecord()
            assert record.meta == {"traceparent": traceparent_of(send)}
            await client.aclose()

        work(main)
        until(lambda: at_server.named("POST /api/v1/contract/enqueue"))
        assert not at_server.named("send default")
        assert is_child(at_server.one("POST /api/v1/contract/enqueue"), at_client.one("send default"))
