"""Spans on their way to a receiver of OTLP over HTTP, as the standard OTEL_EXPORTER_OTLP_* variables say."""

from __future__ import annotations

import base64
import gzip
import os
import ssl
import threading
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ..chance import CHANCE
from ..clock import SYSTEM_CLOCK
from ..errors import ConfigurationError, shown
from .otlp import encode_spans

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

ENDPOINT = "http://localhost:4318"
PATH = "/v1/traces"
#: How long one batch may take, s, with all its attempts, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise.
TIMEOUT_S = 10.0
#: Answers after which a batch is sent again (OTLP, "Retryable Response Codes").
_AGAIN = frozenset({429, 502, 503, 504})
#: Bytes of an answer that are read; it says nothing that we need.
_ANSWER_BYTES_MAX = 65_536

_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 5),
    "deflate": zlib.compress,
}


class HttpExporter(SpanExporter):
    """Sends spans to `endpoint`, else to where the environment says; ConfigurationError where that is no good."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._url, given = _without_user(endpoint or _endpoint())
        self._timeout_s = _timeout_s()
        compression = _said("COMPRESSION").strip().lower() or "none"
        if compression not in _COMPRESSIONS:
            raise ConfigurationError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION={shown(compression)} must be gzip, deflate or none"
            )
        self._compress = _COMPRESSIONS[compression]
        self._headers = {"content-type": "application/x-protobuf", "user-agent": "packhorse"} | given | _headers()
        if compression != "none":
            self._headers["content-encoding"] = compression
        tls = [HTTPSHandler(context=_tls())] if urlsplit(self._url).scheme == "https" else []  # 10 ms, 3 MB
        self._opener = build_opener(_NoRedirects, *tls)  # and the proxy of the environment
        self._over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, again where that may help; blocks for up to OTEL_EXPORTER_OTLP_TIMEOUT.

        Raises OSError or HTTPException where they did not arrive.
        """
        data = self._compress(encode_spans(spans))
        end_at_ms = SYSTEM_CLOCK.boot_ms() + int(self._timeout_s * 1_000)
        pause_s = 1.0
        while True:
            try:
                self._post(data, max(0.001, (end_at_ms - SYSTEM_CLOCK.boot_ms()) / 1_000))
            except (OSError, HTTPException) as error:
                pause_s *= CHANCE.uniform(0.8, 1.2)
                is_late = SYSTEM_CLOCK.boot_ms() + pause_s * 1_000 >= end_at_ms
                if _is_final(error) or is_late or self._over.wait(pause_s):
                    raise
                pause_s *= 2
            else:
                return SpanExportResult.SUCCESS

    def _post(self, data: bytes, timeout_s: float) -> None:
        request = Request(self._url, data, self._headers, method="POST")  # noqa: S310  # the scheme was looked at
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                answer.read(_ANSWER_BYTES_MAX)
        except HTTPError as error:
            error.close()
            raise

    def shutdown(self) -> None:
        """Send nothing again from now on."""
        self._over.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: nothing is kept here."""
        return True


def _is_final(error: Exception) -> bool:
    """Tell whether to send again would not help."""
    if isinstance(error, HTTPError):
        return error.code not in _AGAIN
    return isinstance(error, URLError) and isinstance(error.reason, ssl.SSLCertVerificationError)


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an error: what follows one would be a GET without the spans."""

    def redirect_request(self, *args: object) -> None:
        return None


# ---- what the environment says -----------------------------------------------------------------------------


def _said(name: str) -> str:
    """Answer a variable of OTLP, that of traces first."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""


def _endpoint() -> str:
    own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    url = own or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ENDPOINT
    if not _is_url(url):  # it may have a password, so it is not shown
        raise ConfigurationError("OTEL_EXPORTER_OTLP_ENDPOINT must be the URL of a receiver, such as http://HOST:4318")
    parts = urlsplit(url)
    return url if own else urlunsplit(parts._replace(path=parts.path.rstrip("/") + PATH))


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _without_user(url: str) -> tuple[str, dict[str, str]]:
    """Answer a URL without user and password, and the header that says them."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    token = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"authorization": f"Basic {token}"}


def _headers() -> dict[str, str]:
    headers = {}
    for pair in _said("HEADERS").split(","):
        if not pair.strip():
            continue
        name, equals, value = (unquote(part).strip() for part in pair.partition("="))
        if not equals or not name or not (text := name + value).isprintable() or not text.isascii():
            raise ConfigurationError("OTEL_EXPORTER_OTLP_HEADERS must be NAME=VALUE,NAME=VALUE")
        headers[name.lower()] = value
    return headers


def _timeout_s() -> float:
    text = _said("TIMEOUT")
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3_600:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_TIMEOUT={shown(text)} must be seconds, above 0 and up to 3600")
    return seconds


def _tls() -> ssl.SSLContext:
    own, certificate = _said("CERTIFICATE"), _said("CLIENT_CERTIFICATE")
    try:
        context = ssl.create_default_context(cafile=own or None)
        if certificate:
            context.load_cert_chain(certificate, _said("CLIENT_KEY") or None)
    except OSError as error:  # of SSL too
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE or _CLIENT_KEY: {error.strerror or error}"
        ) from None
    return context
