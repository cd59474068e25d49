"""`GET /metrics` of a server: who may see it, what it says of requests, and that strangers cannot make it large."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from packhorse import Packhorse, State
from packhorse.backends.base import Settlement, WorkerInfo
from packhorse.backends.http import wire
from packhorse.clock import SYSTEM_CLOCK, ManualClock
from packhorse.errors import Unavailable
from packhorse.observe import exposition, store_gauges
from packhorse.observe.exposition import OPENMETRICS, PLAIN, Collector, expose, media_type
from packhorse.observe.labels import QUEUES_MAX, TYPES_MAX
from packhorse.observe.meters import Exemplar, Meters
from packhorse.observe.metrics import JOB_SECONDS_BY_QUEUE, METRICS, Kind
from packhorse.server.counting import CountedRequests
from packhorse.server.net.limits import ClientGone
from packhorse.server.problems import Problem
from tests.http.kit import opened, served
from tests.scraped import Scraped

from ..worker.working import ended, new_app, until, work
from .api import Api, asking, on_stores
from .guarded import SETTING, bearer, guarded
from .kit import client_of

#: What Prometheus 2.45 and 3 send.
ACCEPTS = {
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1": OPENMETRICS,
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1": OPENMETRICS,
    "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4": PLAIN,
    "application/openmetrics-text; version=1.0.0; charset=utf-8": OPENMETRICS,
    "application/openmetrics-text": OPENMETRICS,
    "Application/OpenMetrics-Text": OPENMETRICS,
    "application/openmetrics-text;version=2.0.0": PLAIN,
    "application/openmetrics-text;q=0": PLAIN,
    "application/openmetrics-text;q=nonsense": PLAIN,
    "application/openmetrics-text;version=\x00;q=;=,;,": PLAIN,
    "text/html": PLAIN,
    "*/*": PLAIN,
    "": PLAIN,
    ";" * 100_000: PLAIN,
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers late counts as away, and a busy machine may make any store late."""
    monkeypatch.setattr(store_gauges, "WAIT_MS_MAX", 60_000)


@pytest.mark.parametrize("accept", ACCEPTS, ids=lambda text: text[:40].encode("unicode_escape").decode())
def test_the_format_is_what_the_scraper_likes_best(accept: str) -> None:
    assert media_type(accept) == ACCEPTS[accept]


def check(text: str) -> Scraped:
    """Read a scrape, and let promtool judge it where it is installed."""
    found = Scraped(text)
    promtool = shutil.which("promtool")
    if promtool is not None and not found.is_openmetrics:
        judged = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")
    return found


@on_stores
def test_all_metrics_are_there_before_any_job(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for accept, form in (("", PLAIN), ("application/openmetrics-text", OPENMETRICS)):
            response = await api.client.get("/metrics", headers={"Accept": accept})
            assert response.status_code == 200
            assert response.headers["content-type"] == form
            assert response.headers["cache-control"] == "no-store"
            found = check(response.text)
            assert set(found.families) == {name.removesuffix("_total") for name in METRICS}
            for metric in METRICS.values():
                family = found.families[metric.name.removesuffix("_total")]
                assert (family.type, family.documentation) == (metric.kind, metric.help)
                if metric.kind is Kind.COUNTER and not metric.labels:
                    assert found.has(metric.name)
            assert found.has("worker_jobs_processed_total", status="success")
            assert found.has("worker_jobs_processed_total", status="failure")
            assert found.has("worker_job_duration_seconds_bucket", le="+Inf")
            assert found.total("packhorse_store_up") == 1
            assert found.total("packhorse_build_info") == 1

    asking(store, tmp_path, scenario)


def test_who_may_see_them() -> None:
    async def main() -> None:
        async with guarded(tokens=SETTING) as behind, behind.client() as client:
            for scope, status in (("read", 200), ("submit", 200), ("work", 200), ("admin", 200), ("admin@mail", 403)):
                response = await client.get("/metrics", headers=bearer(scope))
                assert response.status_code == status, scope
            assert "metrics speak of all" in response.json()["detail"]
            assert "--role read" in response.json()["detail"]
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/metrics", headers={"Host": "evil.example", **bearer()})).status_code == 403
            assert (await client.post("/metrics", headers=bearer())).status_code == 405
        async with guarded() as behind:
            async with behind.client() as client:
                assert (await client.get("/metrics")).status_code == 200
                assert (await client.get("/")).json()["links"]["metrics"] == "/metrics"
            async with behind.client("192.168.1.5") as client:
                assert (await client.get("/metrics")).status_code == 401

    work(main)


def test_requests_are_counted_by_the_pattern_of_their_route_never_by_their_path(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        job_id = await api.enqueue()
        for number in range(50):
            await api.client.get(f"/api/v1/jobs/secret-{number}")
            await api.client.get(f"/made/up/{number}")
            await api.client.request(f"METHOD{number}", "/health")
        await api.client.get(f"/api/v1/jobs/{job_id}")
        await api.client.delete("/health")
        found = check((await api.client.get("/metrics")).text)
        name = "packhorse_http_requests_total"
        assert found.total(name, method="POST", route="/api/v1/jobs", status="201") == 1
        assert found.total(name, method="GET", route="/api/v1/jobs/{id}", status="200") == 1
        assert found.total(name, method="GET", route="/api/v1/jobs/{id}", status="404") == 50
        assert found.total(name, method="GET", route="none", status="404") == 50
        assert found.total(name, method="other", route="/health", status="405") == 50
        assert found.total(name, method="DELETE", route="/health", status="405") == 1
        assert found.total(name) == 153
        assert found.total("packhorse_http_request_duration_seconds_count") == 153
        assert not {"secret", "made", "METHOD"} & set(found.text.replace("-", " ").replace("/", " ").split())

    asking("memory", tmp_path, scenario)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 499),
        (ClientGone(), 499),
        (Problem(413, "too-large", "The body is too large"), 413),
        (asyncio.CancelledError(), 503),
        (ValueError("a bug"), 500),
    ],
    ids=repr,
)
def test_a_request_without_an_answer_of_the_application_is_counted_as_what_the_client_gets(
    error: BaseException | None, status: int
) -> None:
    meters = Meters()

    async def application(*_: object) -> None:
        if error is not None:
            raise error

    async def main() -> None:
        counted = CountedRequests(application, meters.sheet(), SYSTEM_CLOCK)
        with suppress(BaseException):
            await counted({"type": "http", "method": "GET"}, None, None)

    asyncio.run(main())
    found = check(expose(meters).content.decode())
    assert found.total("packhorse_http_requests_total", route="none", status=str(status)) == 1


def test_10_000_hostile_names_leave_metrics_small_and_every_job_counted(tmp_path: Path) -> None:
    """Through the door and through a worker: series, bytes and memory stay bounded, and the sums are right."""
    count = 10_000
    app = new_app()

    @app.task
    async def known(n: int) -> int:
        return n

    async def scenario() -> None:
        async with client_of(app) as client:
            api = Api(app, client)
            before = len((await client.get("/metrics")).content)
            for name in ("a\nb 1", 'x"} 1', "", "x" * 129, "ünï", "\\"):
                await api.refused("POST", "/api/v1/jobs", {"type": name}, status=422)
                await api.refused("POST", "/api/v1/jobs", {"type": "t", "queue": name}, status=422)
            for start in range(0, count, 1_000):
                items = [{"type": f"t{n}", "queue": f"q{n}"} for n in range(start, start + 1_000)]
                await api.done("POST", "/api/v1/jobs/batch", {"jobs": items})
            await client.get("/metrics")
            backend = await app.backend()
            for start in range(0, count, 500):
                jobs = await backend.claim([f"q{n}" for n in range(start, start + 500)], 500, 30_000, "w")
                ends = [Settlement(id=job.id, token=job.token, state=State.SUCCEEDED) for job in jobs]
                await backend.settle(ends)
            async with app.worker(queues="default"):
                await ended(app, await known.aenqueue(1))

            async def latest() -> bytes | None:
                content: bytes = (await client.get("/metrics")).content
                return content if Scraped(content.decode()).total("packhorse_queue_depth") == count + 1 else None

            content = await until(
                latest, 60
            )  # on a busy machine a look at 10,000 queues takes long, and the rest after it
            found = check(content.decode())
            assert found.total("packhorse_jobs_enqueued_total") == count + 1
            assert found.total("packhorse_job_queue_time_seconds_count") == count + 1
            assert found.total("packhorse_jobs_completed_total", queue="default", job_type="known") == 1
            assert len(list(found.samples("packhorse_jobs_enqueued_total"))) <= QUEUES_MAX + 2
            assert len(found.values("packhorse_jobs_enqueued_total", "job_type")) == 2
            assert len(found.series) < 12_000
            assert before < len(content) < 1_500_000
            assert sum(len(sheet.cells) for sheet in app.meters._sheets) < 2_000
            assert len(backend._enqueued) <= 1  # nothing is kept for a name that has no label of its own

    work(scenario)


@pytest.mark.parametrize("words", ["json", "contract"])
def test_the_workers_of_one_token_leave_room_in_the_labels_for_all_others(words: str) -> None:
    """However many workers they are, and whatever these name: what another token's worker names is told apart."""

    async def beat(client: httpx.AsyncClient, worker: str, types: list[str], scope: str) -> None:
        if words == "json":
            body = {"worker": worker, "types": types, "queues": [f"of-{name}" for name in types]}
            response = await client.post("/api/v1/heartbeats", json=body, headers=bearer(scope))
        else:
            info = WorkerInfo(id=worker, queues=tuple(f"of-{name}" for name in types), types=tuple(types))
            body = wire.write(wire.Heartbeat(info, 60_000, []))
            headers = bearer(scope) | {"Content-Type": wire.MEDIA_TYPE}
            response = await client.post(wire.HEARTBEAT.path, content=body, headers=headers)
        assert response.status_code == 200, response.text

    async def main() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as client:
            for number in range(20):
                await beat(client, f"stranger-{number}", [f"t{number}-{name}" for name in range(50)], "work")

            async def shown() -> set[str]:
                text = (await client.get("/metrics", headers=bearer("read"))).text  # which asks the store for workers
                return set(check(text).values("packhorse_type_workers", "job_type"))

            strangers = [name for name in await shown() if name.startswith("t")]
            assert 1 < len(strangers) <= TYPES_MAX // 5
            await beat(client, "honest", ["email", "report"], "admin")

            async def honest() -> bool:
                return {"email", "report"} <= await shown()

            await until(honest, 60)
            bounds = server.service.app.meters.bounds
            assert bounds.queue("of-report") == "of-report"
            server.service.app.task("late")(asyncio.sleep)
            assert bounds.job_type("late") == "late"

    work(main)


def test_what_a_worker_in_another_language_ends_is_counted_once(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for _ in range(3):
            await api.enqueue(type="work")
        claimed = await api.done(
            "POST", "/api/v1/claims", {"worker": "w1", "queues": ["default"], "types": ["work"], "limit": 3}
        )
        ends = [
            {"id": job["id"], "token": job["token"], "outcome": outcome}
            for job, outcome in zip(claimed["jobs"], ("succeeded", "failed", "succeeded"), strict=True)
        ]
        await api.done("POST", "/api/v1/settlements", {"settlements": ends})
        await api.done("POST", "/api/v1/settlements", {"settlements": ends})
        found = check((await api.client.get("/metrics")).text)
        assert found.total("packhorse_jobs_enqueued_total") == 3
        assert found.total("packhorse_jobs_completed_total") == 2
        assert found.total("packhorse_jobs_retried_total") == 1
        assert found.total("worker_jobs_processed_total", status="success") == 2
        assert found.total("worker_jobs_processed_total", status="failure") == 1
        assert found.total("worker_job_duration_seconds_count") == 3
        assert found.total("packhorse_settlements_refused_total") == 3

    asking("memory", tmp_path, scenario)


def test_jobs_of_a_python_worker_behind_the_server_are_its_own_to_count() -> None:
    """Else a Prometheus that scrapes both would count them twice."""

    async def main() -> None:
        async with served() as url:
            app = Packhorse(url)

            @app.task
            async def known(n: int) -> int:
                return n

            async with app:
                async with app.worker():
                    await ended(app, await known.aenqueue(1))
                own = check(await app.ametrics())  # an end counts once its worker has heard that it is stored
            async with opened(url) as backend:
                await backend.counts()
            import httpx

            async with httpx.AsyncClient() as client:
                theirs = check((await client.get(f"{url}/metrics")).text)
        assert own.total("packhorse_jobs_enqueued_total") == own.total("packhorse_jobs_completed_total") == 1
        assert theirs.total("packhorse_jobs_enqueued_total") == theirs.total("packhorse_jobs_completed_total") == 0
        assert theirs.total("packhorse_job_queue_time_seconds_count") == 0
        assert theirs.total("packhorse_backend_operation_duration_seconds_count", operation="claim") >= 1

    work(main)


def test_a_scrape_is_answered_while_the_store_is_away(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.enqueue()
        backend = await api.backend()

        async def counts() -> None:
            raise Unavailable("gone")

        backend.inner.counts = counts
        found = check((await api.client.get("/metrics")).text)
        assert found.total("packhorse_store_up") == 0
        assert found.has("packhorse_store_up")
        assert not found.has("packhorse_queue_depth")
        assert found.total("packhorse_jobs_enqueued_total") == 1

    asking("memory", tmp_path, scenario)


def test_many_scrapes_at_once_ask_the_store_once() -> None:
    async def scenario() -> None:
        async with client_of(new_app(clock=ManualClock())) as client:  # by which all this takes no time
            answers = await asyncio.gather(*(client.get("/metrics") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            found = check((await client.get("/metrics")).text)
            assert found.total("packhorse_backend_operation_duration_seconds_count", operation="counts") == 1

    work(scenario)


def test_a_storm_of_scrapes_is_written_a_few_times_and_no_answer_is_older_than_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    asked = 0
    go = threading.Event()
    answer_one = exposition.Scrapes.answer

    async def answer(scrapes: exposition.Scrapes, accept: str) -> exposition.Exposition:
        nonlocal asked
        asked += 1
        return await answer_one(scrapes, accept)

    def slowly(meters: Meters, gauges: object, accept: str) -> exposition.Exposition:
        found = expose(meters, gauges, accept)
        written.append(accept)
        assert go.wait(60)
        return found

    monkeypatch.setattr(exposition, "expose", slowly)
    monkeypatch.setattr(exposition.Scrapes, "answer", answer)

    async def scenario(api: Api) -> None:
        async def scrape(accept: str = "") -> float:
            answer = await api.client.get("/metrics", headers={"Accept": accept})
            return Scraped(answer.text).total("packhorse_jobs_enqueued_total")

        first = asyncio.ensure_future(scrape())
        while not written:
            await asyncio.sleep(0)
        await api.enqueue()
        leaves, *others = [asyncio.ensure_future(scrape(kind)) for _ in range(25) for kind in ("", OPENMETRICS)]
        await until(lambda: asked == 51)
        leaves.cancel()
        go.set()  # the first was under way until all had asked
        assert await asyncio.gather(*others) == [1] * 49
        assert await first == 0
        assert sorted(written) == sorted([PLAIN, PLAIN, OPENMETRICS])

    asking("memory", tmp_path, scenario)


# ---- in a program of one's own ---------------------------------------------------------------------------


def test_an_exemplar_is_in_openmetrics_and_not_in_the_older_text() -> None:
    app = new_app()

    @app.task
    async def known() -> None: ...

    times = app.meters.sheet().histogram(JOB_SECONDS_BY_QUEUE, "default", "known")
    times.attach(times.observe(30_000_000), Exemplar("4bf92f3577b34da6a3ce929d0e0e4736", 0.03, 1_700_000_000_500))
    found = check(expose(app.meters, accept="application/openmetrics-text").content.decode())
    for name in ("packhorse_job_duration_seconds_bucket", "worker_job_duration_seconds_bucket"):
        (exemplar,) = [sample.exemplar for sample in found.samples(name) if sample.exemplar]
        assert exemplar.labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
        assert exemplar.value == 0.03
        assert float(exemplar.timestamp) == 1_700_000_000.5
    assert "4bf92f" not in check(expose(app.meters).content.decode()).text


def test_a_registry_of_the_program_takes_the_collector_and_refuses_it_twice() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    app = new_app()
    registry = CollectorRegistry(auto_describe=True)
    with app:
        app.enqueue("t", {})
        registry.register(Collector(app, store=True))
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            registry.register(Collector(app))
        found = check(generate_latest(registry).decode())
    assert found.total("packhorse_jobs_enqueued_total") == 1
    assert found.total("packhorse_queue_depth", state="pending") == 1


def test_values_of_labels_are_escaped() -> None:
    """Whoever puts things into the store past the door cannot write lines of his own."""
    app = new_app()
    app.meters.bounds.learn(['x"} 1\npackhorse_store_up 0\\'], ["q\n"])
    app.meters.count(METRICS["packhorse_jobs_enqueued_total"], "q\n", 'x"} 1\npackhorse_store_up 0\\')
    for accept in ("", "application/openmetrics-text"):
        found = check(expose(app.meters, accept=accept).content.decode())
        assert not found.has("packhorse_store_up")
        assert found.total("packhorse_jobs_enqueued_total", queue="q\n") == 1


def test_a_worker_beside_the_scrape_shows_what_it_is_doing() -> None:
    app = new_app()
    go = asyncio.Event()

    @app.task
    async def waits() -> None:
        await go.wait()

    async def scenario() -> None:
        async with client_of(app) as client, app.worker():
            job = await waits.aenqueue()

            async def busy() -> bool:
                return Scraped((await client.get("/metrics")).text).total("packhorse_worker_busy") == 1

            await until(busy)
            go.set()
            await ended(app, job)

    work(scenario)
