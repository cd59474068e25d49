"""Workers over HTTP: claims that wait and give back what nobody takes, heartbeats, retirement."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from packhorse.backends.base import Keep, QueueChange, WorkerInfo
from packhorse.backends.http import wire
from packhorse.clock import ManualClock
from packhorse.job import JobSpec, State
from packhorse.server import claiming, portioning
from packhorse.server.access import LOCAL, Caller, Role
from packhorse.server.app import make_application
from packhorse.server.service import Service

from ..worker.working import new_app, store_of, until, work
from .kit import admitting, client_of
from .worker_calls import claim, one_claimed, post, record_of, settle


def test_a_claim_answers_all_that_a_worker_needs_to_run_a_job() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(
            app, {"to": "a@example.com"}, key="tenant", tags=["t"], meta={"m": "n"}, priority="high", timeout=7
        ) as (_, job):
            record = await record_of(app, job)
            assert record.state is State.RUNNING
            assert record.worker == "w1"
            assert list(job) == [  # in this order: examples/workers/worker.sh cuts it
                "id", "token", "type", "queue", "attempt", "max_attempts", "timeout_ms", "priority",
                "created_at", "ready_at", "key", "tags", "workflow", "payload", "meta",
            ]  # fmt: skip
            shown = {name: job[name] for name in ("type", "queue", "attempt", "max_attempts", "timeout_ms", "priority")}
            assert shown == {
                "type": "email",
                "queue": "default",
                "attempt": 1,
                "max_attempts": 4,
                "timeout_ms": 7000,
                "priority": 2,
            }
            assert (job["key"], job["tags"], job["meta"]) == ("tenant", ["t"], {"m": "n"})
            assert job["payload"] == {"to": "a@example.com"}

    work(scenario)


@pytest.mark.parametrize(
    "payload", ["text", 3, False, [1, {"a": 1.5}], {"big": 9007199254740993}, "é ", 'a","payload":']
)
def test_any_payload_arrives_as_it_was_enqueued(payload: Any) -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await client.post("/api/v1/jobs", json={"type": "x", "payload": payload})
            (job,) = (await claim(client))["jobs"]
            assert job["payload"] == payload

    work(scenario)


def test_a_claim_without_a_worker_makes_one() -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            first = await post(client, "claims")
            second = await post(client, "claims")
            assert first["jobs"] == []
            assert first["lease_ms"] == 30_000
            assert first["worker"] != second["worker"]

    work(scenario)


def test_a_worker_is_listed_like_any_other_and_keeps_what_it_said() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            about = {"queues": ["a", "b"], "types": ["x"], "concurrency": 7, "host": "box", "pid": 12, "version": "1.2"}
            await claim(client, **about)
            await post(client, "heartbeats", worker="w1", busy=3)
            (shown,) = await (await app.backend()).workers()
            assert (shown.id, shown.host, shown.pid, shown.queues) == ("w1", "box", 12, ("a", "b"))
            assert (shown.types, shown.concurrency, shown.busy, shown.version) == (("x",), 7, 3, "1.2")
            assert shown.started_at_ms > 0
        async with client_of(app) as other_server:  # which has not heard of it yet
            await app.aenqueue("x", {}, queue="b")
            await post(other_server, "heartbeats", worker="w1", concurrency=8)
            (shown,) = await (await app.backend()).workers()
            assert (shown.queues, shown.types, shown.concurrency) == (("a", "b"), ("x",), 8)
            await post(other_server, "heartbeats", worker="w2")
            shown = {one.id: one for one in await (await app.backend()).workers()}
            assert shown["w2"].queues == ("default",)

    work(scenario)


def test_a_claim_says_itself_what_it_takes_whatever_was_said_before() -> None:
    """Else a worker that was forgotten, or whose server was started anew, would take other jobs than before."""

    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await claim(client, queues=["mail"], types=["email"], concurrency=7)
            await app.aenqueue("email", {}, queue="mail")
            unknown = await app.aenqueue("other", {})
            assert [job["id"] for job in (await claim(client))["jobs"]] == [unknown.id]
            (shown,) = await (await app.backend()).workers()
            assert (shown.queues, shown.types, shown.concurrency) == (("default",), (), 7)

    work(scenario)


def test_a_claim_answers_no_more_bytes_than_one_answer_takes_and_gives_the_rest_back(monkeypatch) -> None:
    """C16: a hundred jobs of a MiB each would be 100 MB in memory for one request."""
    monkeypatch.setattr(portioning, "CLAIMED_BYTES_MAX", 100_000)
    monkeypatch.setattr(wire, "ANSWER_BYTES", 50_000)

    async def scenario() -> None:
        app = new_app()
        await app.aenqueue_many(("x", {"text": "a" * 30_000}) for _ in range(10))
        async with client_of(app) as client:
            seen: list[str] = []
            while jobs := (await claim(client, limit=100))["jobs"]:
                assert 1 <= len(jobs) <= 3
                assert all(job["attempt"] == 1 for job in jobs)
                seen += [job["id"] for job in jobs]
            assert len(seen) == len(set(seen)) == 10

    work(scenario)


@pytest.mark.parametrize("wait", [61, 60.5, "61s", "2m", -1])
def test_a_claim_that_would_wait_for_more_than_a_minute_is_refused(wait: object) -> None:
    async def scenario() -> None:
        async with client_of(new_app()) as client:
            problem = await post(client, "claims", 422, wait=wait)
            assert [fault["pointer"] for fault in problem["errors"]] == ["/wait"]

    work(scenario)


def test_a_claim_waits_and_is_woken_by_an_enqueue() -> None:
    async def scenario() -> None:
        app = new_app(poll_interval="1h")
        async with client_of(app) as client:
            asked = asyncio.create_task(claim(client, wait="60s", lease="1d"))
            await until(lambda: app._backends and store_of(app).bells.are_hung)
            assert not asked.done()
            await app.aenqueue("email", {})
            answer = await asked
            assert len(answer["jobs"]) == 1
            assert answer["waited_ms"] >= 0

    work(scenario)


def test_a_claim_that_finds_nothing_ends_empty_when_its_time_is_over() -> None:
    async def scenario() -> None:
        async with client_of(new_app(clock=ManualClock())) as client:  # by which no time passes
            assert (await claim(client, wait=0))["waited_ms"] == 0
        async with client_of(new_app()) as client:
            assert (await claim(client, wait="50ms"))["jobs"] == []
            # At most half a lease, so that the worker is heard of in time.
            answer = await asyncio.wait_for(claim(client, wait="60s", lease="1s"), 50)
            assert answer["jobs"] == []

    work(scenario)


def test_a_waiting_claim_ends_empty_at_once_when_the_server_stops() -> None:
    async def scenario() -> None:
        app = new_app()
        service = Service(app)
        application = make_application(service, admitting(LOCAL))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
            asked = asyncio.create_task(claim(client, wait="60s", lease="1d"))
            await until(lambda: app._backends and store_of(app).bells.are_hung)
            service.stopping.set()
            assert (await asyncio.wait_for(asked, 50))["jobs"] == []
            await app.aenqueue("email", {})
            assert (await claim(client))["jobs"] == []  # and claims nothing any more
            await service.close()

    work(scenario)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"worker": "a b"}, "/worker"),
        ({"worker": ""}, "/worker"),
        ({"queues": ["a", "../x"]}, "/queues"),
        ({"queues": []}, "/queues"),
        ({"types": ["os:system"]}, "/types"),
        ({"limit": 0}, "/limit"),
        ({"limit": 10**9}, "/limit"),
        ({"lease": "1ms"}, "/lease"),
        ({"lease": "2d"}, "/lease"),
        ({"lease": "soon"}, "/lease"),
        ({"wait": "later"}, "/wait"),
        ({"host": "h" * 200}, "/host"),
        ({"concurrency": -1}, "/concurrency"),
    ],
)
def test_c10_a_claim_that_is_wrong_is_refused_with_the_place(body: dict[str, Any], pointer: str) -> None:
    """C6, C10: numbers are bounded, names are of one alphabet; nothing is claimed and no worker appears."""

    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            refused = await post(client, "claims", 422, **body)
            assert refused["errors"][0]["pointer"].startswith(pointer)
            assert await (await app.backend()).workers() == []

    work(scenario)


def test_only_tokens_for_workers_may_work() -> None:
    async def scenario() -> None:
        async with client_of(new_app(), Caller(name="web", role=Role.SUBMIT)) as client:
            await post(client, "claims", 403, worker="w")
            await post(client, "settlements", 403, settlements=[{"id": "a", "token": "b", "outcome": "released"}])
            await post(client, "heartbeats", 403, worker="w")
            assert (await client.delete("/api/v1/workers/w")).status_code == 403

    work(scenario)


def test_c19_a_worker_of_some_queues_touches_no_other() -> None:
    """C19: with a token for queue a, jobs of queue b can neither be claimed nor settled, even with their token."""

    async def scenario() -> None:
        app = new_app()
        scoped = Caller(name="tenant", role=Role.WORK, queues=frozenset({"a"}))
        async with client_of(app) as everybody, client_of(app, scoped) as tenant:
            await app.aenqueue("x", {}, queue="b")
            own = await app.aenqueue("x", {}, queue="a")
            (foreign,) = (await claim(everybody, "w", queues=["b"]))["jobs"]
            assert (await tenant.post("/api/v1/claims", json={"worker": "w", "queues": ["b"]})).status_code in {
                403,
                404,
            }
            for outcome in ("succeeded", "failed", "released"):
                assert await settle(tenant, foreign, outcome) == "stale"
            beat = await post(tenant, "heartbeats", worker="w", queues=["a"])
            assert beat["held"] == {}
            assert (await tenant.delete("/api/v1/workers/w")).json()["lapsed"] == 0
            assert (await record_of(app, foreign)).state is State.RUNNING
            (job,) = (await claim(tenant, "w", queues=["a"]))["jobs"]
            assert job["id"] == own.id
            assert (await post(tenant, "heartbeats", worker="w"))["held"] == {job["id"]: job["token"]}
            assert await settle(tenant, job, "succeeded") == "applied"

    work(scenario)


def test_a_paused_queue_yields_nothing() -> None:
    async def scenario() -> None:
        app = new_app()
        async with client_of(app) as client:
            await app.aenqueue("email", {})
            await (await app.backend()).queues([QueueChange(queue="default", paused=True)])
            assert (await claim(client))["jobs"] == []

    work(scenario)


def test_b26_a_type_the_worker_does_not_know_is_kept_for_others() -> None:
    """B26: it is parked without an attempt; a worker that knows it gets it."""

    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with client_of(app) as client:
            strange = await app.aenqueue("strange", {})
            known = await app.aenqueue("known", {})
            answer = await claim(client, types=["known"])
            assert [job["id"] for job in answer["jobs"]] == [known.id]
            record = await strange.arecord()
            assert (record.state, record.attempt) == (State.SCHEDULED, 0)
            assert record.parked_at_ms is not None
            clock.advance(1_000)
            await (await app.backend()).tick(10, Keep())
            assert [job["id"] for job in (await claim(client, "w2", types=["strange"]))["jobs"]] == [strange.id]

    work(scenario)


@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("said", ["by its types", "by a settlement"])
def test_b26_a_type_does_not_fail_while_a_live_worker_that_knows_it_is_busy(said: str, scoped: bool) -> None:
    """B26: it is parked on past its deadline; once no live worker knows it, it fails with the reason."""

    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        caller = Caller(name="tenant", role=Role.WORK, queues=frozenset({"default"})) if scoped else LOCAL
        async with client_of(app) as everybody, client_of(app, caller) as client:
            backend = await app.backend()
            job = await app.aenqueue("perl", {})

            async def refuse() -> State:
                clock.advance(60_000)
                await backend.tick(10, Keep())
                if said == "by its types":
                    assert (await claim(client, "b", types=["python"]))["jobs"] == []
                else:
                    (held,) = (await claim(client, "b"))["jobs"]
                    assert await settle(client, held, "unknown") == "applied"
                return (await job.arecord()).state

            for _ in range(30):
                await post(everybody, "heartbeats", worker="a", queues=["default", "more"], types=["perl"], lease="1h")
                assert await refuse() is State.SCHEDULED
            await everybody.delete("/api/v1/workers/a")
            assert await refuse() is State.FAILED
            record = await job.arecord()
            assert (record.attempt, [error.kind for error in record.errors]) == (0, ["UnknownType"])

    work(scenario)


def test_b9_a_payload_that_is_not_json_is_parked_and_fails_with_the_reason() -> None:
    """B9: garbage in the store harms no worker and no other job."""

    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with client_of(app) as client:
            backend = await app.backend()
            store = store_of(app)
            store.add([JobSpec(id="bad", type="email", payload=b"{\xff")], clock.now_ms())
            good = await app.aenqueue("email", {})
            assert [job["id"] for job in (await claim(client))["jobs"]] == [good.id]
            for _ in range(200):
                clock.advance(10_000)
                await backend.tick(10, Keep())
                assert (await claim(client))["jobs"] == []
            record = await app.job("bad").arecord()
            assert record.state is State.FAILED
            assert "not JSON" in record.errors[-1].message

    work(scenario)


def test_a_heartbeat_keeps_the_lease_and_the_progress() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        app = new_app(clock=clock)
        async with one_claimed(app) as (client, job):
            for step in range(5):
                clock.advance(20_000)
                progress = [{"id": job["id"], "token": job["token"], "progress": step / 5, "text": f"step {step}"}]
                answer = await post(client, "heartbeats", worker="w1", lease="30s", progress=progress)
                assert answer == {
                    "worker": "w1",
                    "lease_ms": 30_000,
                    "held": {job["id"]: job["token"]},
                    "lost": [],
                    "cancel": [],
                }
                await (await app.backend()).tick(10, Keep())
            record = await record_of(app, job)
            assert (record.state, record.progress, record.progress_note) == (State.RUNNING, 0.8, "step 4")
            assert await settle(client, job, "succeeded") == "applied"

    work(scenario)


def test_a_cancellation_comes_with_the_heartbeat() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            await app.job(job["id"]).acancel()
            answer = await post(client, "heartbeats", worker="w1")
            assert answer["cancel"] == [job["id"]]
            assert await settle(client, job, "cancelled") == "applied"
            assert (await record_of(app, job)).state is State.CANCELLED

    work(scenario)


def test_a_worker_that_retires_gives_back_what_it_holds() -> None:
    async def scenario() -> None:
        app = new_app()
        async with one_claimed(app) as (client, job):
            gone = await client.delete("/api/v1/workers/w1")
            assert gone.json() == {"worker": "w1", "lapsed": 1}
            record = await record_of(app, job)
            assert (record.state, record.attempt) == (State.PENDING, 1)
            assert await (await app.backend()).workers() == []
            assert (await client.delete("/api/v1/workers/w1")).json()["lapsed"] == 0
            assert (await client.delete("/api/v1/workers/a%20b")).status_code == 404

    work(scenario)


def test_what_workers_said_is_remembered_within_bounds(monkeypatch) -> None:
    """A limit on everything: a worker may name 1,000 types, and a client may call itself by ever new names."""
    monkeypatch.setattr(claiming, "_KNOWN_NAMES_MAX", 100)
    known = claiming.KnownWorkers()
    for number in range(1_000):
        info = WorkerInfo(id=f"w{number}", queues=("a",), types=tuple(f"t{name}" for name in range(9)), started_at_ms=0)
        known.beaten(None, info, 1_000)
        known.beaten(None, info, 1_000)
    assert [known.age_ms(None, f"w{number}", 1_000) for number in range(990, 1_000)] == [0] * 10
    assert known.age_ms(None, "w989", 1_000) > 1_000
    for number in range(1_000):
        known.forget(None, f"w{number}")
    known.beaten(None, WorkerInfo(id="last", queues=("a",) * 100, started_at_ms=0), 0)
    assert known.age_ms(None, "last", 0) == 0
