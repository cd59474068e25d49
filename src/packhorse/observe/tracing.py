"""Whether a process makes traces: the way from the setting `tracing` to what makes spans, loaded only when it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..settings import Settings
    from .spans import Tracing

#: What a worker and a server are called in traces, unless OTEL_SERVICE_NAME says otherwise.
WORKER_SERVICE = "packhorse-worker"
SERVER_SERVICE = "packhorse-server"


def start_tracing(settings: Settings, service: str) -> Tracing | None:
    """Answer what makes spans as the settings say; None where they say off.

    Spans go to the provider that the program has set up; where it has none, to one made here, once a process and after
    any fork. Raises ConfigurationError where OpenTelemetry is missing or OTEL_* asks for what cannot be had.
    """
    if settings.tracing == "off":
        return None
    try:
        from .exporting import provider_of
        from .spans import Tracing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise ConfigurationError(
            "tracing needs OpenTelemetry; install it with pip install 'packhorse[otel]', or set tracing to off"
        ) from None
    provider, sender = provider_of(settings, service)
    return Tracing(provider, settings.tracing_sample, sender)
