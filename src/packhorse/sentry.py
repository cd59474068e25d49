"""Failures captured by Sentry: `app.on_failure(sentry_failures())`. Needs `pip install 'packhorse[sentry]'`.

What is captured has the exception, what job it was of and the breadcrumbs of its own run. Never payload, result, the
local variables of frames, which hold payloads, or passwords of URLs in the exceptions' texts (FAILURES C20).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError
from .fingerprint import fingerprint
from .job import JobError
from .redaction import without_passwords

if TYPE_CHECKING:
    from .context import Context
    from .observe.failures import Failure

log = logging.getLogger("packhorse.failures")

#: How long a worker that stops waits for what Sentry's own thread has to send, s.
FLUSH_S = 1.5
#: Scopes of runs that failed and were not told of yet.
_SCOPES_MAX = 1_000
#: What a handler raises to be run again: meant, and no error until it is the last time.
_ASKED = "Retry"


class SentryFailures:
    """A failure hook that captures with the Sentry client of the program, wherever that was initialised."""

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._scopes: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._warned = False

    def __repr__(self) -> str:
        return "<sentry_failures>"

    async def middleware(self, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        """Give each run a scope of its own, so that it shares no breadcrumbs and tags with others."""
        with self._sdk.isolation_scope() as scope:
            scope.clear_breadcrumbs()  # those from before were of whoever ran here
            scope.set_tag("packhorse.type", ctx.type)
            scope.set_tag("packhorse.queue", ctx.queue)
            try:
                return await call_next()
            except BaseException:
                self._scopes[ctx.id, ctx.attempt] = scope
                if len(self._scopes) > _SCOPES_MAX:
                    with suppress(KeyError):
                        self._scopes.popitem(last=False)
                raise

    def __call__(self, failure: Failure) -> None:
        """Capture a failure. Called in a thread: the client may look files up for their source lines."""
        scope = self._scopes.pop((failure.id, failure.attempt), None)
        if failure.error_kind == _ASKED and not failure.final:
            return
        client = self._sdk.get_client()
        if not client.is_active():
            if not self._warned:
                self._warned = True
                log.warning("sentry_failures has nobody to tell: call sentry_sdk.init(dsn=…) in the module of the app")
            return
        if scope is None:
            scope = self._sdk.Scope.get_isolation_scope().fork()
            scope.clear_breadcrumbs()
        event, hint = self._event(failure, client.options)
        with self._sdk.scope.use_isolation_scope(scope):
            self._sdk.capture_event(event, hint)

    def _event(self, failure: Failure, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        mechanism = {"type": "packhorse", "handled": False}
        hint: dict[str, Any] = {}
        if failure.error is not None:
            options = {**options, "include_local_variables": False}
            event, hint = self._sdk.utils.event_from_exception(
                failure.error, client_options=options, mechanism=mechanism
            )
            for each in event["exception"]["values"]:  # the causes too
                each["value"] = without_passwords(str(each.get("value") or ""))
        else:
            said = JobError(
                attempt=failure.attempt,
                at_ms=failure.at_ms,
                kind=failure.error_kind,
                message=failure.message,
                traceback=failure.traceback,
            )
            value = {"type": failure.error_kind, "value": failure.message, "mechanism": mechanism}
            event = {"exception": {"values": [value]}}
            event["fingerprint"] = ["packhorse", failure.type, fingerprint(said, failure.type).hash]
        tags = {
            "packhorse.type": failure.type,
            "packhorse.queue": failure.queue,
            "packhorse.attempt": str(failure.attempt),
            "packhorse.final": "yes" if failure.final else "no",
            "packhorse.worker": failure.worker or "unknown",
        }
        about = {
            "job": failure.id,
            "attempt": f"{failure.attempt} of {failure.max_attempts}",
            "retry_in_ms": failure.retry_in_ms,
            "duration_ms": failure.duration_ms,
            "key": failure.key,
            "tags": list(failure.tags),
            "workflow": failure.workflow,
            "trace_id": failure.trace_id,
            "traceback": failure.traceback if failure.error is None else None,
        }
        event["level"] = "error" if failure.final else "warning"
        event["logger"] = "packhorse"
        event["transaction"] = failure.type
        event["tags"] = tags
        event["contexts"] = {"packhorse": {name: value for name, value in about.items() if value not in (None, [])}}
        return event, hint

    async def close(self) -> None:
        """Give the client a moment to send: a worker's process ends without waiting for its threads."""
        if self._sdk.get_client().is_active():
            await asyncio.to_thread(self._sdk.flush, FLUSH_S)


def sentry_failures() -> SentryFailures:
    """Make a failure hook that captures failures with `sentry_sdk`, which the program has initialised itself.

    Attempts that will be retried are captured as warnings, final failures as errors; `on_failure(…, final=True)` leaves
    the first out. Raises ConfigurationError where sentry_sdk is not installed.
    """
    try:
        import sentry_sdk
        import sentry_sdk.scope
        import sentry_sdk.utils
        from sentry_sdk.integrations.logging import ignore_logger
    except ImportError:
        raise ConfigurationError("sentry_failures needs sentry-sdk; run: pip install 'packhorse[sentry]'") from None
    ignore_logger("packhorse.jobs")  # its lines about failed jobs would be captured once more
    return SentryFailures(sentry_sdk)
