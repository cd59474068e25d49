"""Where spans go, and who decides which there are."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision

from packhorse.clock import ManualClock
from packhorse.errors import ConfigurationError
from packhorse.job import Claimed
from packhorse.observe import exporting
from packhorse.observe.current import CURRENT_JOB
from packhorse.observe.exporting import AGAIN_MS, HANGS_MS, Patient, Sender, endpoint_of
from packhorse.observe.guarded_tracer import ROOT
from packhorse.observe.own_provider import Roots
from packhorse.settings import load

from ..cli.kit import clean_environ, process
from ..worker.working import new_app
from .receiver import Receiver, receiving


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/otlp", "https://collector.example/otlp/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces/", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318?key=1", "http://127.0.0.1:4318/v1/traces?key=1"),
    ],
)
def test_the_url_of_a_receiver_is_where_traces_are_posted_below(url: str, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint


def test_the_standard_environment_says_what_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert isinstance(exporting._exporter("on"), ConsoleSpanExporter)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert exporting._exporter("on") is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER='zipkin' must be otlp, console or none"):
        exporting._exporter("on")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match="packhorse sends http/protobuf"):
        exporting._exporter("on")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert exporting._exporter("on") is not None


def test_without_the_extra_it_says_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("packhorse.observe.exporting", "packhorse.observe.spans"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'packhorse\[otel\]'"):
        new_app(tracing="on").tracing()


def test_without_the_extra_a_command_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('no', name='opentelemetry')\n")
    environ = {
        "PACKHORSE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
        "PACKHORSE_TRACING": "on",
        "PYTHONPATH": str(tmp_path),
    }
    (tmp_path / "shop.py").write_text("from packhorse import Packhorse\napp = Packhorse()\n")
    commands = (
        ["serve", "--port", "0"],
        ["serve", "shop", "--port", "0"],
        ["submit", "-t", "email", "-p", "{}"],
        ["worker", "shop", "--burst"],
    )
    for command in commands:
        ended = process(*command, environ=environ)
        assert ended.returncode == 2, ended.stderr
        assert "packhorse[otel]" in ended.stderr
        assert "Traceback" not in ended.stderr


# ---- who decides -------------------------------------------------------------------------------------------


def _job() -> Claimed:
    return Claimed("a", "t", "t", b"", 1, 1, 0, "q", 5, 0, 0)


def test_a_span_of_a_handler_that_is_not_traced_begins_no_trace() -> None:
    sampler = Roots(1.0)
    assert sampler.should_sample(Context(), 1, "name").decision is Decision.RECORD_AND_SAMPLE
    token = CURRENT_JOB.set(_job())
    try:
        assert sampler.should_sample(Context(), 1, "name").decision is Decision.DROP
        assert sampler.should_sample(ROOT, 1, "name").decision is Decision.RECORD_AND_SAMPLE
    finally:
        CURRENT_JOB.reset(token)


def test_of_other_traces_the_share_is_kept() -> None:
    for share, kept in ((0.0, 0), (0.25, 25), (1.0, 100)):
        sampler = Roots(share)
        traces = [(number << 64) // 100 for number in range(100)]
        decisions = [sampler.should_sample(None, trace, "name").decision for trace in traces]
        assert decisions.count(Decision.RECORD_AND_SAMPLE) == kept
        assert sampler.should_sample(ROOT, (1 << 128) - 1, "name").decision is Decision.RECORD_AND_SAMPLE
        assert str(share) in sampler.get_description()


# ---- a receiver in trouble ---------------------------------------------------------------------------------


class Failing(SpanExporter):
    """An exporter that does not get rid of anything."""

    def __init__(self, how: Exception | SpanExportResult) -> None:
        self.how = how

    def export(self, spans: Any) -> SpanExportResult:
        if isinstance(self.how, Exception):
            raise self.how
        return self.how


@pytest.mark.parametrize("how", [OSError("away"), SpanExportResult.FAILURE], ids=["raises", "fails"])
def test_that_nothing_arrives_is_said_once_a_minute(
    how: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(exporting, "SYSTEM_CLOCK", clock)
    exporter, sender = Failing(how), Sender(None)  # type: ignore[arg-type]
    patient = Patient(exporter, sender)
    spans: list[ReadableSpan] = []
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert patient.export(spans) is SpanExportResult.FAILURE
            clock.advance(AGAIN_MS // 10)
        assert len(caplog.records) == 1
        clock.advance(AGAIN_MS)
        patient.export(spans)
        assert len(caplog.records) == 2
    assert sender.failing
    exporter.how = SpanExportResult.SUCCESS
    assert patient.export(spans) is SpanExportResult.SUCCESS
    assert not sender.failing


def test_nobody_waits_for_a_receiver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(exporting, "SYSTEM_CLOCK", clock)
    asked: list[int] = []

    class Provider:
        def force_flush(self) -> None:
            asked.append(1)

    sender = Sender(Provider())  # type: ignore[arg-type]
    sender.flush(5)
    assert len(asked) == 1
    sender.busy_since_ms = clock.boot_ms()
    clock.advance(HANGS_MS + 1)
    sender.flush(5)
    sender.busy_since_ms, sender.failing = None, True
    sender.flush(5)
    assert len(asked) == 1


# ---- whole programs ----------------------------------------------------------------------------------------


def program(text: str, **environ: str) -> str:
    """Run a program to its end; answers what it printed."""
    if "PACKHORSE_TRACING" in environ:
        text = PATIENT + text
    ended = subprocess.run(
        [sys.executable, "-c", text],
        env=clean_environ() | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


#: How long the end of a program waits for its spans is promised elsewhere; a busy machine may need longer.
PATIENT = """
from packhorse.observe import exporting
exporting.FLUSH_S, exporting.HANGS_MS = 60.0, 60_000
"""
ENQUEUE = """
from packhorse import Packhorse
app = Packhorse("memory://", name="shop")
app.enqueue("email")
"""


def test_on_makes_a_provider_from_the_environment_that_sends_at_the_end_of_the_program() -> None:
    with receiving() as receiver:
        program(
            ENQUEUE,
            PACKHORSE_TRACING="on",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_SERVICE_NAME="till",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
        assert receiver.one("send default").service == "till"


def test_a_url_makes_a_provider_with_the_name_of_the_app_and_takes_the_programs_spans_too() -> None:
    with receiving() as receiver:
        program(
            f"{ENQUEUE}\nfrom opentelemetry import trace\n"
            "with trace.get_tracer('mine').start_as_current_span('checkout'):\n"
            "    app.enqueue('email', queue='mail')\n",
            PACKHORSE_TRACING=receiver.url,
        )
        assert receiver.one("send default").service == "shop"
        assert receiver.one("send mail").parent == receiver.one("checkout").span


def test_on_takes_the_provider_that_the_program_has() -> None:
    seen = program(
        """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
        + ENQUEUE
        + "print(*[span.name for span in exporter.get_finished_spans()])\n",
        PACKHORSE_TRACING="on",
    )
    assert seen == "send default\n"


def test_one_provider_serves_all_apps_of_a_process() -> None:
    seen = program(
        ENQUEUE
        + """
other = Packhorse("memory://", name="shop")
other.enqueue("email")
import threading
print(sum("Otel" in thread.name for thread in threading.enumerate()))
""",
        PACKHORSE_TRACING="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    assert seen == "1\n"


def test_a_forked_program_sends_its_own_spans() -> None:
    with receiving() as receiver:
        program(
            ENQUEUE
            + """
import os
pid = os.fork()
app.enqueue("email", queue="child" if pid == 0 else "parent")
if pid == 0:
    app.tracing().flush(60)
    os._exit(0)
os.waitpid(pid, 0)
""",
            PACKHORSE_TRACING=receiver.url,
        )
        assert receiver.one("send child")
        assert receiver.one("send parent")


def test_off_loads_nothing_of_it() -> None:
    seen = program(
        """
import asyncio, sys
from packhorse import Packhorse
app = Packhorse("memory://")
@app.task
async def email() -> None: ...
async def main():
    await email.aenqueue()
    await app.worker(burst=True).run()
asyncio.run(main())
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    )
    assert seen == "False\n"


def test_spans_of_handlers_that_are_not_traced_are_not_sent() -> None:
    text = """
import asyncio
from opentelemetry import trace
from packhorse import Packhorse
app = Packhorse("memory://", name="shop")
@app.task
async def email() -> None:
    with trace.get_tracer("mine").start_as_current_span("render"):
        pass
async def main():
    await email.aenqueue()
    await app.worker(burst=True).run()
asyncio.run(main())
"""

    def names(receiver: Receiver) -> set[str]:
        return {span.name for span in receiver.seen}

    with receiving() as receiver:
        program(text, PACKHORSE_TRACING=receiver.url, PACKHORSE_TRACING_SAMPLE="0")
        assert names(receiver) == set()
        program(text, PACKHORSE_TRACING=receiver.url)
        assert names(receiver) == {"send default", "receive default", "process default", "render", "settle default"}


def test_the_settings_are_checked() -> None:
    assert load({"tracing": "ON"}).tracing == "on"
    for given in ("yes", "ftp://x", "http://", "127.0.0.1:4318"):
        with pytest.raises(ConfigurationError, match="must be off, on"):
            load({"tracing": given})
    for share in ("-0.1", "1.1", "much", "nan"):
        with pytest.raises(ConfigurationError, match="from 0 to 1"):
            load({"tracing_sample": share})
    assert "s3cret" not in repr(load({"tracing": "http://user:s3cret@collector.example"}))
