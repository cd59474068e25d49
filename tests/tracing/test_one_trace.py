"""From an HTTP request to the follow-up of its job: one trace, as a receiver sees it from real processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.witness import Witness, boot_s

from ..cli.serving import Command, alive, until
from .receiver import Receiver, Seen, receiving
from .test_trace_context import GOOD, SPAN, TRACE

HERE = Path(__file__).parent
QUEUES = ("default", "mail", "warehouse", "later")
CANARY = "canary-4711"
#: What comes of a request for the job `checkout`, in all processes.
ALL = {
    "POST /api/v1/jobs",
    "charge the card",
    "render the mail",
    "weigh the parcel",
    "create warehouse",
    *(f"send {queue}" for queue in ("default", "mail", "later")),
    *(f"{what} {queue}" for what in ("receive", "process", "settle") for queue in QUEUES),
}


def environ_of(directory: Path, tracing: str, **more: str) -> dict[str, str]:
    url = f"sqlite:///{directory / 'packhorse.db'}"
    return {
        "TRACED_URL": url,
        "PACKHORSE_URL": url,
        "PACKHORSE_TRACING": tracing,
        "PYTHONPATH": str(HERE),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        **more,
    }


class WorkerCommand(Command):
    """`packhorse worker` of the app beside this file."""

    def __init__(self, directory: Path, *args: str, environ: dict[str, str]) -> None:
        folder = directory / "worker"
        folder.mkdir(exist_ok=True)
        super().__init__(folder, "worker", "process_jobs:app", *args, environ=environ)

    def ready(self) -> None:
        until(lambda: " ready" in self.output or self.process.poll() is not None)
        assert " ready" in self.output, self.output


@contextmanager
def both(directory: Path, receiver: Receiver, **more: str) -> Iterator[tuple[Command, WorkerCommand]]:
    """A server and a worker that send their spans to the receiver."""
    environ = environ_of(directory, receiver.url, **more)
    with (
        Command(directory, "serve", "process_jobs:app", "--port", "0", environ=environ) as server,
        WorkerCommand(directory, "-q", ",".join(QUEUES), environ=environ) as worker,
    ):
        server.url  # noqa: B018  # waits until it is there
        worker.ready()
        yield server, worker
        assert worker.stop() == 0, worker.output
        assert server.stop() == 0, server.output


def check(span: Seen, kind: str, operation: str, queue: str, parent: Seen | None, service: str) -> None:
    assert span.kind == kind
    assert span.trace == TRACE
    if parent is not None:
        assert span.parent == parent.span
    assert span.service == service
    assert span.attributes["messaging.system"] == "packhorse"
    assert span.attributes["messaging.operation.type"] == operation
    assert span.attributes["messaging.operation.name"] == operation
    assert span.attributes["messaging.destination.name"] == queue


def test_a_request_and_all_that_comes_of_it_are_one_trace(tmp_path: Path) -> None:
    with receiving() as receiver:
        with both(tmp_path, receiver) as (server, _):
            body = {"type": "checkout", "payload": {"card": CANARY}}
            job = server.ask("/api/v1/jobs", body, {"traceparent": GOOD})["id"]
            server.wait_for(job, "succeeded")
            # How long a process waits at its end for what it has to send is bounded: all of it is waited for here.
            until(lambda: {span.name for span in list(receiver.seen)} >= ALL)
        request = receiver.one("POST /api/v1/jobs")
        assert (request.trace, request.parent, request.kind, request.service) == (
            TRACE,
            SPAN,
            "SERVER",
            "packhorse-server",
        )
        assert request.attributes["http.response.status_code"] == 201
        send, process = receiver.one("send default"), receiver.one("process default")
        worker = "packhorse-worker"
        check(send, "PRODUCER", "send", "default", request, "packhorse-server")
        check(process, "CONSUMER", "process", "default", send, worker)
        assert process.attributes["messaging.message.id"] == job
        assert process.attributes["packhorse.job.type"] == "checkout"
        assert process.attributes["packhorse.job.attempt"] == 1
        receive, settle = receiver.one("receive default"), receiver.one("settle default")
        check(receive, "CLIENT", "receive", "default", send, worker)
        check(settle, "CLIENT", "settle", "default", process, worker)
        assert receive.links == [send.span]
        assert settle.links == [process.span]
        # The handler's own span, what it enqueued (run in a thread), and its follow-up (run in a child process).
        assert receiver.one("charge the card").parent == process.span
        send_mail = receiver.one("send mail")
        check(send_mail, "PRODUCER", "send", "mail", process, worker)
        mail = receiver.one("process mail")
        check(mail, "CONSUMER", "process", "mail", send_mail, worker)
        assert receiver.one("render the mail").parent == mail.span
        create = receiver.one("create warehouse")
        check(create, "PRODUCER", "create", "warehouse", process, worker)
        ship = receiver.one("process warehouse")
        check(ship, "CONSUMER", "process", "warehouse", create, worker)
        weigh = receiver.one("weigh the parcel")
        assert (weigh.trace, weigh.parent, weigh.service) == (TRACE, ship.span, worker)
        send_later = receiver.one("send later")
        check(send_later, "PRODUCER", "send", "later", ship, worker)
        check(receiver.one("process later"), "CONSUMER", "process", "later", send_later, worker)
        in_trace = [span for span in receiver.seen if span.trace == TRACE]
        for span in in_trace:
            assert span.starts_ns <= span.ends_ns
        assert not any(CANARY in span.text for span in receiver.seen)


def test_attempts_that_fail_are_errors_of_the_same_trace(tmp_path: Path) -> None:
    with receiving() as receiver:
        with both(tmp_path, receiver) as (server, _):
            body = {"type": "flaky", "payload": {"password": CANARY}}
            server.wait_for(server.ask("/api/v1/jobs", body)["id"], "succeeded")
            until(lambda: len(receiver.named("process default")) == 3 and receiver.named("send default"))
        send = receiver.one("send default")
        runs = sorted(receiver.named("process default"), key=lambda span: span.attributes["packhorse.job.attempt"])
        assert [run.parent for run in runs] == [send.span] * 3
        assert [run.status for run in runs] == ["ERROR", "ERROR", "UNSET"]
        assert runs[0].attributes["error.type"] == "ConnectionError"
        name, event = runs[0].events[0]
        assert name == "exception"
        assert event["exception.message"] == "no answer, attempt 1"
        assert not any(CANARY in span.text for span in receiver.seen)


def test_what_was_not_sent_yet_is_sent_when_the_processes_end(tmp_path: Path) -> None:
    """The batches are far apart: what arrives was sent because the processes end."""
    with receiving() as receiver:
        with both(tmp_path, receiver, OTEL_BSP_SCHEDULE_DELAY="60000") as (server, worker):
            server.wait_for(server.submit("ship", order=1), "succeeded")
            until(lambda: server.ask("/api/v1/stats")["states"].get("running", 0) == 0)
            assert not receiver.named("process default")
            tree = worker.tree()
            assert tree
        assert not any(alive(one) for one in tree)
        assert receiver.one("process default")
        assert receiver.one("weigh the parcel").parent == receiver.one("process default").span
        assert receiver.one("send default").service == "packhorse-server"


@pytest.mark.parametrize("trouble", ["away", "hangs", "refuses"])
def test_a_receiver_in_trouble_holds_nobody_up(tmp_path: Path, trouble: str, witness: Witness) -> None:
    with receiving() as receiver:
        url = receiver.url
        receiver.answer = {"away": 200, "hangs": None, "refuses": 503}[trouble]
        if trouble == "away":
            url = "http://127.0.0.1:9"  # discard: nobody listens
        environ = environ_of(tmp_path, url, OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16")
        with Command(tmp_path, "serve", "--port", "0", environ=environ) as server:
            jobs = [{"type": "nothing"}] * 200
            for _ in range(5):
                server.ask("/api/v1/jobs/batch", {"jobs": jobs})
            with WorkerCommand(tmp_path, environ=environ) as worker:
                until(lambda: server.ask("/api/v1/stats")["states"].get("succeeded") == 1_000)
                began = boot_s()
                assert worker.stop() == 0, worker.output
                assert witness.since_s(began) < 5
            began = boot_s()
            assert server.stop() == 0, server.output
            assert witness.since_s(began) < 8
        lines = (worker.output + server.output).splitlines()
        assert sum("traces cannot be sent" in line for line in lines) <= 2, lines
        assert not any("opentelemetry" in line.lower() for line in lines), lines


def test_a_worker_that_is_killed_loses_spans_but_no_jobs(tmp_path: Path) -> None:
    with receiving() as receiver:
        environ = environ_of(tmp_path, receiver.url)
        with Command(tmp_path, "serve", "--port", "0", environ=environ) as server:
            job = server.submit("nothing")
            with WorkerCommand(tmp_path, environ=environ) as worker:
                server.wait_for(job, "succeeded")
                tree = worker.tree()
                worker.process.send_signal(signal.SIGKILL)
                until(lambda: not any(alive(one) for one in tree))
            assert server.stop() == 0
