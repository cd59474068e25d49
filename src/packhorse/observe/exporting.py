"""Where spans go: the program's own provider of OpenTelemetry, or one made here that sends them by OTLP over HTTP.

Sending is done by a thread of its own from a bounded queue (2,048 spans, OTEL_BSP_MAX_QUEUE_SIZE). A receiver that is
away or hangs costs spans, never jobs: what does not fit is dropped, and that is said once a minute.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

from ..clock import SYSTEM_CLOCK
from ..errors import ConfigurationError, shown
from .own_provider import OwnProvider
from .span_sending import PATH, HttpExporter

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider as AnyProvider

    from ..settings import Settings

log = logging.getLogger("packhorse.tracing")

#: How long the end of a process waits for its last spans to be sent, s.
FLUSH_S = 2.0
#: A batch that is on its way for longer than this will not arrive soon.
HANGS_MS = 1_000
#: That they cannot be sent is said this often.
AGAIN_MS = 60_000
#: Who says at every span that it is dropped. We say it once a minute.
_NOISY = "opentelemetry.sdk._shared_internal"

_lock = threading.Lock()
_made: dict[tuple[str, str], tuple[TracerProvider, Sender]] = {}


def provider_of(settings: Settings, service: str) -> tuple[AnyProvider, Sender | None]:
    """Answer the provider that the settings ask for, and what sends its spans if it was made here.

    Made once a process for each receiver; the first one made is the program's own from then on, where it has none, so
    that spans of handlers have a way too. Raises ConfigurationError.
    """
    with _lock:
        known = _made.get((settings.tracing, service))
        if known is not None:
            return known
        current = trace.get_tracer_provider()
        has_own = not isinstance(current, trace.ProxyTracerProvider)
        if settings.tracing == "on" and has_own:
            return current, None
        provider, sender = _made[settings.tracing, service] = _make(settings, service)
        if not has_own:
            trace.set_tracer_provider(provider)
        return provider, sender


def _make(settings: Settings, service: str) -> tuple[TracerProvider, Sender]:
    exporter = _exporter(settings.tracing)
    says_sampler = settings.tracing == "on" and "OTEL_TRACES_SAMPLER" in os.environ
    try:
        provider = OwnProvider(_resource(service), None if says_sampler else settings.tracing_sample)
        sender = Sender(provider)
        if exporter is not None:
            logging.getLogger(_NOISY).addFilter(_says_nothing)
            processor = BatchSpanProcessor(Patient(exporter, sender))
            if isinstance(exporter, HttpExporter):
                provider.send_through(processor)
            else:
                provider.add_span_processor(processor)
            atexit.register(sender.flush, FLUSH_S)
    except ValueError as error:  # OTEL_SPAN_…_LIMIT, OTEL_BSP_…
        raise ConfigurationError(f"the limits of OpenTelemetry: {error}") from None
    return provider, sender


def _resource(service: str) -> Resource:
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes: dict[str, Any] = {"process.pid": os.getpid()}
    return Resource.create(attributes if named else attributes | {"service.name": service})


def _exporter(setting: str) -> SpanExporter | None:
    if setting != "on":
        return HttpExporter(endpoint_of(setting))
    kinds = [kind.strip() for kind in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    match kinds:
        case ["otlp" | "otlp_proto_http" | ""]:
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
                "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
            )
            if protocol != "http/protobuf":
                raise ConfigurationError(
                    f"OTEL_EXPORTER_OTLP_PROTOCOL={shown(protocol)}: packhorse sends http/protobuf (port 4318); set "
                    "that, or let the program set up a provider of its own"
                )
            return HttpExporter()
        case ["console"]:
            return ConsoleSpanExporter()
        case ["none"]:
            return None
    raise ConfigurationError(
        f"OTEL_TRACES_EXPORTER={shown(','.join(kinds))} must be otlp, console or none; for others let the program set "
        "up a provider of its own"
    )


def endpoint_of(url: str) -> str:
    """Answer where spans are posted for the URL of a receiver: /v1/traces below it, unless it ends so already."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(PATH) else path + PATH))


def _says_nothing(record: logging.LogRecord) -> bool:
    return False


class Patient(SpanExporter):
    """Sends through another exporter; says once a minute that it cannot, and never raises."""

    def __init__(self, exporter: SpanExporter, sender: Sender) -> None:
        self._exporter = exporter
        self._sender = sender
        self._said_ms: int | None = None  # boot clock

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; blocks this thread, which is the sender's own, for up to OTEL_EXPORTER_OTLP_TIMEOUT (10 s)."""
        self._sender.busy_since_ms = SYSTEM_CLOCK.boot_ms()
        reason = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # whatever it is, it is no reason to end the thread that sends
            log.debug("sending traces failed", exc_info=error)
            result, reason = SpanExportResult.FAILURE, f": {shown(error, 80)}"
        self._sender.failing = result is not SpanExportResult.SUCCESS
        self._sender.busy_since_ms = None
        if self._sender.failing:
            self._say(reason)
        return result

    def _say(self, reason: str) -> None:
        now_ms = SYSTEM_CLOCK.boot_ms()
        if self._said_ms is None or now_ms - self._said_ms >= AGAIN_MS:
            self._said_ms = now_ms
            log.warning("traces cannot be sent and are lost%s; does the receiver run, and is its URL right?", reason)

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: nothing is kept here."""
        return True


class Sender:
    """The last spans of a process on their way, within bounded time."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        #: Whether the latest batch could not be sent: then nobody waits for the next.
        self.failing = False
        #: Since when a batch is on its way, boot clock; None: none is.
        self.busy_since_ms: int | None = None

    def _is_in_vain(self, limit_s: float) -> bool:
        """Tell whether nobody is to wait: the receiver does not take what it was sent."""
        since_ms = self.busy_since_ms
        hangs = since_ms is not None and SYSTEM_CLOCK.boot_ms() - since_ms > HANGS_MS
        return self.failing or hangs or limit_s <= 0

    def _start(self, then: Callable[[], object]) -> threading.Thread:
        def send() -> None:
            try:
                self._provider.force_flush()
            finally:
                with suppress(RuntimeError):  # the loop that waited is closed
                    then()

        # A thread of its own: what cannot be sent must not hold up the end of the process, as one of a pool would.
        thread = threading.Thread(target=send, name="packhorse-traces", daemon=True)
        thread.start()
        return thread

    def flush(self, limit_s: float) -> None:
        """Send what is there; blocks for up to `limit_s`."""
        if not self._is_in_vain(limit_s):
            self._start(lambda: None).join(limit_s)

    async def aflush(self, limit_s: float) -> None:
        """Send what is there; waits for up to `limit_s`."""
        if self._is_in_vain(limit_s):
            return
        loop, sent = asyncio.get_running_loop(), asyncio.Event()
        self._start(lambda: loop.call_soon_threadsafe(sent.set))
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await sent.wait()
