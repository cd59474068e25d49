"""How spans get to a receiver: the variables of OTLP, what is sent again, and what is not."""

from __future__ import annotations

import gzip
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from packhorse.clock import ManualClock
from packhorse.errors import ConfigurationError
from packhorse.observe import span_sending
from packhorse.observe.span_sending import HttpExporter

from .receiver import Spans


class Posted:
    """The requests that came: their path, headers and body. `answers` are the statuses to come; 200 after them."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []


@contextmanager
def taking(tls: ssl.SSLContext | None = None) -> Iterator[Posted]:
    posted = Posted()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.requests.append((self.path, {name.lower(): text for name, text in self.headers.items()}, body))
            self.send_response(posted.answers.pop(0) if posted.answers else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    posted.url = f"http{'s' if tls is not None else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield posted
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


@pytest.fixture
def spans() -> list[ReadableSpan]:
    made = Spans()
    made.provider.get_tracer("test").start_span("paid").end()
    return made.all


def test_a_batch_is_posted_as_protobuf(spans: list[ReadableSpan]) -> None:
    with taking() as posted:
        assert HttpExporter(f"{posted.url}/v1/traces").export(spans) is SpanExportResult.SUCCESS
    ((path, headers, body),) = posted.requests
    assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    assert ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans[0].name == "paid"


@pytest.mark.parametrize(
    ("variable", "suffix", "path"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "", "/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/otlp/", "/otlp/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/as/it/is", "/as/it/is"),
    ],
)
def test_the_environment_says_where(
    variable: str, suffix: str, path: str, spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    with taking() as posted:
        monkeypatch.setenv(variable, posted.url + suffix)
        HttpExporter().export(spans)
    assert posted.requests[0][0] == path


def test_the_environment_says_headers_of_which_those_of_traces_go_first(
    spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b=c, X-Team = shop,")
    with taking() as posted:
        HttpExporter(posted.url).export(spans)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=other")
        HttpExporter(posted.url).export(spans)
    (_, first, _), (_, second, _) = posted.requests
    assert (first["api-key"], first["x-team"]) == ("a b=c", "shop")
    assert second["api-key"] == "other"
    assert "x-team" not in second


def test_user_and_password_of_a_url_become_a_header(spans: list[ReadableSpan]) -> None:
    with taking() as posted:
        HttpExporter(posted.url.replace("http://", "http://me:s%40cret@")).export(spans)
    assert posted.requests[0][1]["authorization"] == "Basic bWU6c0BjcmV0"
    assert "@" not in posted.requests[0][1]["host"]


@pytest.mark.parametrize(("name", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_the_environment_says_how_it_is_compressed(
    name: str, undo: Any, spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", name)
    with taking() as posted:
        HttpExporter(posted.url).export(spans)
    (_, headers, body) = posted.requests[0]
    assert headers["content-encoding"] == name
    assert ExportTraceServiceRequest.FromString(undo(body)).resource_spans


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("ENDPOINT", "collector.example:4318", "must be the URL of a receiver"),
        ("ENDPOINT", "ftp://me:s3cret@collector.example", "must be the URL of a receiver"),
        ("ENDPOINT", "http://[::1", "must be the URL of a receiver"),
        ("ENDPOINT", "http://x:99999", "must be the URL of a receiver"),
        ("HEADERS", "s3cret", "must be NAME=VALUE,NAME=VALUE"),
        ("HEADERS", "key=s3cret%0d%0aother: x", "must be NAME=VALUE,NAME=VALUE"),
        ("TIMEOUT", "soon", "TIMEOUT='soon' must be seconds"),
        ("TIMEOUT", "nan", "must be seconds"),
        ("TIMEOUT", "0", "must be seconds"),
        ("COMPRESSION", "zip", "must be gzip, deflate or none"),
        ("CERTIFICATE", "/nowhere/ca.pem", "No such file"),
        ("CLIENT_CERTIFICATE", "/nowhere/me.pem", "No such file"),
    ],
)
def test_what_it_says_wrongly_is_refused_without_showing_secrets(
    variable: str, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example")
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", text)
    with pytest.raises(ConfigurationError, match=says) as refused:
        HttpExporter()
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


_REQUEST = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"


def test_a_certificate_is_checked_and_an_own_authority_is_named(
    tmp_path: Path, spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run([*_REQUEST.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    tls.load_verify_locations(certificate)
    with taking(tls) as posted:
        stranger = HttpExporter(posted.url)
        stranger._over = pauses = NoPause()
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            stranger.export(spans)
        assert not pauses.pauses
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate)
        assert HttpExporter(posted.url).export(spans) is SpanExportResult.SUCCESS
        tls.verify_mode = ssl.CERT_REQUIRED
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificate)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", key)
        assert HttpExporter(posted.url).export(spans) is SpanExportResult.SUCCESS
    assert len(posted.requests) == 2


class NoPause(threading.Event):
    """Pauses are over at once; remembers how long they were to be."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        return self.is_set()


def test_what_may_get_better_is_sent_again_after_growing_pauses(spans: list[ReadableSpan]) -> None:
    with taking() as posted:
        posted.answers = [503, 429]
        exporter = HttpExporter(posted.url)
        exporter._over = pauses = NoPause()
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert len(posted.requests) == 3
    assert 0.8 <= pauses.pauses[0] <= 1.2 < pauses.pauses[1] <= 3.0


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 500])
def test_what_will_not_get_better_is_given_up_and_no_redirect_is_followed(
    status: int, spans: list[ReadableSpan]
) -> None:
    with taking() as posted:
        posted.answers = [status]
        with pytest.raises(HTTPError, match=str(status)):
            HttpExporter(posted.url).export(spans)
    assert len(posted.requests) == 1


def test_it_is_given_up_when_the_next_pause_would_be_too_long_and_when_the_process_ends(
    spans: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_sending, "SYSTEM_CLOCK", ManualClock())  # by which posts take no time
    monkeypatch.setattr(span_sending, "TIMEOUT_S", 5.0)
    with taking() as posted:
        posted.answers = [503] * 6
        exporter = HttpExporter(posted.url)
        exporter._over = pauses = NoPause()
        with pytest.raises(HTTPError):
            exporter.export(spans)
        assert len(posted.requests) == len(pauses.pauses) + 1
        assert 2 <= len(pauses.pauses) <= 4  # each about twice as long as the one before
        assert pauses.pauses[-1] < 5.0
        posted.requests.clear()
        posted.answers = [503]
        exporter = HttpExporter(posted.url)
        exporter.shutdown()
        with pytest.raises(HTTPError):
            exporter.export(spans)
    assert len(posted.requests) == 1
