"""What happens to servers, done to real ones under real workers: nothing is lost, all comes back by itself."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from packhorse import Packhorse
from packhorse.backends.base import Query
from packhorse.backends.opening import open_backend
from packhorse.errors import PackhorseError, Unavailable
from packhorse.job import JobSpec, State

from ..proxy import FaultProxy
from ..witness import Witness, boot_s
from .harness import HERE, Lab, Start, Worker

FULL = os.environ.get("PACKHORSE_FULL") == "1"
#: A producer's call ends within this time, whatever the server does.
CALL_S = 20
#: After the server is back, every loop is at work again within this, on a machine that has time for them.
BACK_S = 10
#: Longer than a machine stands still: a lease that ran out under a living process would be a reason for a second run.
LEASE_S = 8


@pytest.fixture(params=["postgres", "redis"])
def server(request: pytest.FixtureRequest, private: Any) -> Any:
    """A server of the test's own that keeps what it acknowledged."""
    if request.param == "postgres":
        return private.postgres()
    return private.redis({"appendonly": "yes", "appendfsync": "always"})


def is_redis(server: Any) -> bool:
    return server.url.startswith("redis")


@pytest.fixture
def far_lab(tmp_path: Path, server: Any) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    lab.url = server.url
    try:
        yield lab
    finally:
        if server.process is not None and server.process.poll() is None:
            server.thaw()
        lab.close()


class Producer(threading.Thread):
    """Enqueues batch after batch; `acknowledged` are the ids it was told are stored, `refused` the errors."""

    def __init__(self, url: str, count: int, batch: int = 20, ms: float = 20, pause_s: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.enough = threading.Event()  # after `count` jobs it goes on until this is set
        self.enough.set()
        self.acknowledged: list[str] = []
        self.refused: list[PackhorseError] = []
        self.longest_s = 0.0
        self._url, self._count, self._batch, self._ms, self._pause_s = url, count, batch, ms, pause_s

    def run(self) -> None:
        with Packhorse(self._url) as app:
            while len(self.acknowledged) < self._count or not self.enough.is_set():
                started = time.monotonic()
                try:
                    jobs = app.enqueue_many(
                        [{"type": "work", "payload": {"ms": self._ms}, "max_attempts": 100}] * self._batch
                    )
                    self.acknowledged += [job.id for job in jobs]
                except PackhorseError as error:
                    self.refused.append(error)
                    time.sleep(0.2)
                self.longest_s = max(self.longest_s, time.monotonic() - started)
                time.sleep(self._pause_s)

    def finish(self, limit: float) -> list[str]:
        self.enough.set()
        self.join(limit)
        assert not self.is_alive(), f"{len(self.acknowledged)} of {self._count}; {self.refused[-3:]}"
        assert all(isinstance(error, Unavailable) for error in self.refused), self.refused[:3]
        assert self.longest_s < CALL_S
        return self.acknowledged


def back_within(limit_s: float, lab: Lab, witness: Witness, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; what the machine did not have time for does not count."""
    began = boot_s()
    lab.until(condition, 100, what)
    assert boot_s() - began <= limit_s + witness.lost_s(began, boot_s()), f"not within {limit_s} s: {what}"


def check_promise(lab: Lab, ids: list[str], explained: set[int]) -> None:
    """Each job ended once, well, and no process that nobody touched ran one twice."""
    records = {job.id: job for job in lab.records(ids)}
    assert {job.state for job in records.values()} == {State.SUCCEEDED}
    runs: dict[str, list[Start]] = defaultdict(list)
    for start in lab.lines():
        runs[start.job].append(start)
    assert set(ids) <= set(runs)
    unexplained = []
    for job_id in ids:
        mine = sorted(runs[job_id], key=lambda run: run.attempt)
        assert len({run.attempt for run in mine}) == len(mine), f"one attempt started twice: {mine}"
        assert len(mine) <= records[job_id].attempt
        unexplained += [run for run in mine[:-1] if run.pid not in explained]
    assert not unexplained, f"runs repeated although their process was left alone: {unexplained[:5]}"


@pytest.mark.timeout(600)
def test_a_storm_of_kills_stops_and_restarts(far_lab: Lab, server: Any) -> None:
    """Every second a runner or worker is killed or stopped for longer than its lease, or the server restarted."""
    lab = far_lab
    count, rounds = (5_000, 45) if FULL else (1_200, 12)
    chance = random.Random(20261122)
    options = ("-c", "20", "-p", "2", "--lease", f"{LEASE_S}s")
    workers = [lab.worker(*options), lab.worker(*options)]
    explained: set[int] = set()
    done: dict[str, int] = defaultdict(int)
    producer = Producer(server.url, count, batch=50, ms=100, pause_s=0.05)
    lab.until(lambda: len(lab.live_workers()) >= 4, 60, "the workers are there")
    producer.start()
    restarts = 0
    away: list[tuple[float, float]] = []  # when there was no server
    for turn in range(rounds):
        time.sleep(1)  # the rhythm of the storm
        index = chance.randrange(2)
        worker = workers[index]
        runners = worker.runners()
        what = chance.choice(["runner", "worker", "stop", "server"]) if turn % 3 else "server"
        done[what] += 1
        if what == "server":
            began = time.monotonic()
            server.restart(hard=restarts % 2 == 1)
            away.append((began, time.monotonic()))
            lately = away[-1][1] - LEASE_S
            if sum(end - max(begin, lately) for begin, end in away if end > lately) > LEASE_S / 3:
                # Some leases could not be renewed in time.
                explained.update(pid for each in workers for pid in each.runners())
            restarts += 1
        elif what == "runner" and runners:
            explained.add(victim := chance.choice(runners))
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        elif what == "worker":
            explained.update(worker.kill_all())
            workers[index] = lab.worker(*options)
        elif what == "stop" and runners:
            explained.add(victim := chance.choice(runners))
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)
                time.sleep(LEASE_S + 1)  # longer than its lease
                os.kill(victim, signal.SIGCONT)
    ids = producer.finish(120)
    lab.until(lambda: lab.all_ended(ids), 120, "all jobs ended")
    for worker in workers:
        assert worker.stop() == 0
    check_promise(lab, ids, explained)
    print(f"{len(ids)} jobs, {dict(done)}, {len(lab.lines())} runs, {len(producer.refused)} calls refused")


@pytest.mark.timeout(300)
def test_five_restarts_under_load(far_lab: Lab, server: Any, witness: Witness) -> None:
    """B2, B17: nobody is touched but the server, so nothing runs twice; all goes on within ten seconds."""
    lab = far_lab
    worker = lab.worker("-c", "20", "--lease", "20s")
    lab.until(lambda: len(lab.live_workers()) >= 1, 60, "the worker is there")
    producer = Producer(server.url, 600, pause_s=0.05)
    producer.enough.clear()
    producer.start()
    for number in range(5):
        time.sleep(0.7)
        server.restart(hard=number % 2 == 1)
        before = len(lab.lines())
        back_within(BACK_S, lab, witness, lambda before=before: len(lab.lines()) > before, "jobs start again")
    ids = producer.finish(60)
    lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
    assert worker.stop() == 0
    check_promise(lab, ids, set())


@pytest.mark.timeout(240)
def test_a_frozen_server(far_lab: Lab, server: Any, witness: Witness) -> None:
    """B27: SIGSTOP of the server. Producers hear of it in bounded time; schedules and jobs go on ten seconds after."""
    lab = far_lab
    worker = lab.worker("-c", "20", "--lease", "5s")
    first = lab.enqueue("work", 50, {"ms": 5}, max_attempts=100)
    lab.until(lambda: lab.all_ended(first), 60, "the worker works")
    held = lab.enqueue("work", 50, {"ms": 500}, max_attempts=100)
    server.freeze()
    frozen_at = time.monotonic()
    with Packhorse(server.url) as app:
        with pytest.raises(Unavailable):
            app.enqueue("work", {"ms": 1})
        assert time.monotonic() - frozen_at < CALL_S
    time.sleep(max(0, (60 if FULL else 12) - (time.monotonic() - frozen_at)))
    server.thaw()
    later = lab.enqueue("work", 50, {"ms": 5}, max_attempts=100)
    back_within(BACK_S + 10, lab, witness, lambda: lab.all_ended(held + later), "all goes on")
    assert worker.stop() == 0


@pytest.mark.timeout(300)
def test_a_server_that_comes_after_the_worker(far_lab: Lab, server: Any, witness: Witness) -> None:
    lab = far_lab
    server.stop()
    started = time.monotonic()
    with Packhorse(server.url) as app, pytest.raises(Unavailable) as refused:
        app.enqueue("work", {"ms": 1})
    assert time.monotonic() - started < CALL_S
    assert "127.0.0.1" in str(refused.value)
    worker = lab.worker("-c", "4")
    lab.until(lambda: b"trying again" in worker.output.read_bytes(), 60, "the worker says what it waits for")
    server.start()
    ids = lab.enqueue("work", 20)
    back_within(BACK_S + 5, lab, witness, lambda: lab.all_ended(ids), "the worker works")
    assert worker.stop() == 0
    # And one that is told to stop while it still waits.
    server.stop()
    late = lab.worker("-c", "4")
    lab.until(lambda: b"trying again" in late.output.read_bytes(), 60, "it waits")
    late.process.send_signal(signal.SIGTERM)
    assert late.process.wait(60) == 0
    server.start()


@pytest.mark.timeout(240)
def test_replies_that_are_lost_or_cut(far_lab: Lab, server: Any) -> None:
    """The server did the work, its reply never came, or only half of it: nothing is lost, nothing runs twice for it."""
    lab = far_lab
    chance = random.Random(7)
    with FaultProxy(server.port) as proxy:
        lab.url = proxy.url(server.url)
        worker = lab.worker("-c", "20", "--lease", "4s")
        lab.until(lambda: b" ready: " in worker.output.read_bytes(), 60, "the worker is there")
        producer = Producer(lab.url, 400, pause_s=0.05)
        producer.enough.clear()
        producer.start()
        for _ in range(60 if FULL else 20):
            time.sleep(0.3)
            proxy.cut(after_bytes=chance.choice([0, 0, 1, 7, 60, 900]))
        proxy.reset()
        ids = producer.finish(90)
        lab.url = server.url  # our own looks go past the proxy: a cut that met nobody yet would meet them
        lab.until(lambda: lab.all_ended(ids), 60, "all jobs ended")
        assert worker.stop() == 0
        records = lab.records(ids)
    assert {job.state for job in records} == {State.SUCCEEDED}
    starts = lab.lines()
    assert len({(start.job, start.attempt) for start in starts}) == len(starts)


@pytest.mark.timeout(300)
def test_an_enqueue_repeated_after_a_lost_reply_is_one_job(server: Any) -> None:
    async def run() -> None:
        with FaultProxy(server.port) as proxy:
            backend = open_backend(proxy.url(server.url))
            await backend.open()
            specs = [JobSpec(id=f"00000000-0000-7000-8000-{n:012d}", type="work") for n in range(500)]
            proxy.cut(after_bytes=0, when=b"00000000-0000-7000-8000-000000000499")
            with pytest.raises(Unavailable):
                await backend.enqueue(specs)
            again = await backend.enqueue(specs)
            assert [one.id for one in again] == [spec.id for spec in specs]
            assert len((await backend.find(Query(limit=1_000))).jobs) == 500
            await backend.close()

    asyncio.run(run())


@pytest.mark.timeout(300)
def test_a_server_that_turned_read_only(far_lab: Lab, server: Any, witness: Witness) -> None:
    """A failover that left us with a replica: a clear error, and all goes on once it may be written to again."""
    lab = far_lab
    worker = lab.worker("-c", "4", "--lease", "30s")
    first = lab.enqueue("work", 20)
    lab.until(lambda: lab.all_ended(first), 60, "the worker works")
    _read_only(server, True)
    with Packhorse(server.url) as app, pytest.raises(Unavailable) as refused:
        app.enqueue("work", {"ms": 1})
    assert any(word in str(refused.value) for word in ("read-only", "read only", "standby", "replica"))
    time.sleep(2)
    _read_only(server, False)
    ids = lab.enqueue("work", 20)
    back_within(BACK_S, lab, witness, lambda: lab.all_ended(ids), "all goes on")
    assert worker.stop() == 0


def _read_only(server: Any, on: bool) -> None:
    if is_redis(server):
        with closing(redis.Redis.from_url(server.url)) as client:
            if on:
                client.replicaof("127.0.0.1", 1)
            else:
                client.replicaof("NO", "ONE")
        return
    wanted = "on" if on else "off"
    server.configure({"default_transaction_read_only": wanted})
    server.reload()
    end = time.monotonic() + 60
    while _read_only_is(server) != wanted:  # its processes read their settings when they come to it
        assert time.monotonic() < end
        time.sleep(0.05)
    with psycopg.connect(server.url, autocommit=True) as connection:  # a failover ends connections
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def _read_only_is(server: Any) -> str:
    with psycopg.connect(server.url, autocommit=True) as connection:
        return str(connection.execute("SHOW default_transaction_read_only").fetchone()[0])  # type: ignore[index]


@pytest.mark.timeout(240)
def test_a_redis_that_was_emptied(private: Any, tmp_path: Path, witness: Witness) -> None:
    """FLUSHALL: what was there is gone, as it was asked for; workers and producers go on."""
    server = private.redis()
    lab = Lab(tmp_path)
    lab.url = server.url
    try:
        worker = lab.worker("-c", "4", "--lease", "3s")
        lab.enqueue("work", 500, {"ms": 50})
        lab.until(lambda: len(lab.lines()) > 10, 60, "the worker works")
        with closing(redis.Redis.from_url(server.url)) as client:
            client.flushall()
        ids = lab.enqueue("work", 50)
        back_within(BACK_S + 5, lab, witness, lambda: lab.all_ended(ids), "new jobs run")
        with closing(redis.Redis.from_url(server.url)) as client:
            client.script_flush()
        ids = lab.enqueue("work", 50)
        back_within(BACK_S, lab, witness, lambda: lab.all_ended(ids), "new jobs run")
        assert worker.stop() == 0
    finally:
        lab.close()


@pytest.mark.timeout(300)
def test_a_redis_without_memory(private: Any, tmp_path: Path, witness: Witness) -> None:
    """A clear error to the producer, nothing lost, and the workers make room by going on."""
    server = private.redis({"maxmemory-policy": "noeviction"})
    lab = Lab(tmp_path)
    lab.url = server.url
    try:
        ids = lab.enqueue("work", 300, {"ms": 1}, max_attempts=100)
        with closing(redis.Redis.from_url(server.url)) as client:
            client.config_set("maxmemory", "1")
            with Packhorse(server.url) as app, pytest.raises(Unavailable) as refused:
                app.enqueue_many([{"type": "work", "payload": {"ms": 1}}] * 50)
            assert "memory" in str(refused.value)
            worker = lab.worker("-c", "4", "--lease", "3s")
            time.sleep(3)
            client.config_set("maxmemory", "0")
        back_within(BACK_S + 10, lab, witness, lambda: lab.all_ended(ids), "all jobs ended")
        assert worker.stop() == 0
    finally:
        lab.close()


@pytest.mark.timeout(300)
def test_a_table_that_somebody_locked(private: Any, tmp_path: Path, witness: Witness) -> None:
    """An operator's LOCK TABLE, or a migration of somebody else's: bounded errors, and all goes on after it."""
    server = private.postgres()
    lab = Lab(tmp_path)
    lab.url = server.url
    try:
        worker = lab.worker("-c", "4", "--lease", "30s")
        first = lab.enqueue("work", 20)
        lab.until(lambda: lab.all_ended(first), 60, "the worker works")
        with psycopg.connect(server.url) as connection:
            connection.execute("LOCK TABLE packhorse.jobs IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            with Packhorse(server.url) as app, pytest.raises(Unavailable):
                app.enqueue("work", {"ms": 1})
            assert time.monotonic() - started < CALL_S
        ids = lab.enqueue("work", 20)
        back_within(BACK_S, lab, witness, lambda: lab.all_ended(ids), "all goes on")
        assert worker.stop() == 0
    finally:
        lab.close()


@pytest.mark.timeout(300)
def test_more_workers_than_connections(private: Any, tmp_path: Path) -> None:
    """Those that get no connection wait and say so; the others do the work; nothing is lost."""
    limit, count = (64, 100) if FULL else (12, 16)
    server = private.postgres(max_connections=limit, superuser_reserved_connections=0, max_wal_senders=0)
    lab = Lab(tmp_path)
    lab.url = server.url
    try:
        ids = lab.enqueue("work", 2_000, {"ms": 5}, max_attempts=100)
        workers = [lab.worker("-c", "4", "--lease", "10s") for _ in range(count)]

        # Only by what handlers wrote: there may be no connection left to ask the store.
        lab.until(lambda: len({line.job for line in lab.lines("end")}) == len(ids), 240, "all jobs ran")
        for worker in workers:  # until it has said something, a signal just ends a starting Python
            lab.until(lambda worker=worker: told(worker), 60, "it is ready, or waits for a connection")
            worker.process.send_signal(signal.SIGTERM)
        for worker in workers:
            assert worker.process.wait(60) == 0
        starts = lab.lines()
        assert len({(start.job, start.attempt) for start in starts}) == len(starts)
        lab.until(lambda: lab.states(ids) == {State.SUCCEEDED: len(ids)}, 60, "all succeeded")
    finally:
        lab.close()


def told(worker: Worker) -> bool:
    said = worker.output.read_bytes()
    return b" ready: " in said or b"trying again" in said


SECRET = "canary-9f3b"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_passwords_are_nowhere(private: Any, tmp_path: Path, kind: str) -> None:
    """B40, C20: not in what workers, commands and errors print while the server is there, gone, or refuses us."""
    if kind == "redis":
        server = private.redis({"requirepass": SECRET})
        url = server.url
        wrong = url.replace(SECRET, f"{SECRET}-wrong")
    else:
        server = private.postgres()
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"ALTER USER postgres PASSWORD '{SECRET}'")
        hba = server.data / "pg_hba.conf"
        hba.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.reload()
        parts = urlsplit(server.url)
        url = parts._replace(netloc=f"postgres:{SECRET}@127.0.0.1:{server.port}").geturl()
        wrong = url.replace(SECRET, f"{SECRET}-wrong")
    lab = Lab(tmp_path)
    lab.url = url
    said = []
    try:
        worker = lab.worker("-c", "4", "--log-level", "debug")
        ids = lab.enqueue("work", 10)
        lab.until(lambda: lab.all_ended(ids), 60, "the worker works")
        said.append(_command(url, "stats"))
        said.append(_command(wrong, "stats"))
        lab.url = wrong
        refused = lab.worker("-c", "4", "--log-level", "debug")
        lab.url = url
        refused.process.wait(60)
        assert refused.process.returncode == 2
        server.stop()
        time.sleep(3)
        said.append(_command(url, "stats"))
        with Packhorse(url) as app, pytest.raises(Unavailable) as error:
            app.enqueue("work", {"ms": 1})
        said.append(str(error.value))
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(60)
    finally:
        lab.close()
    said += [one.output.read_text() for one in lab.workers]
    assert all(said), "nothing was said"
    assert not [text for text in said if SECRET in text]
    assert "password" in said[1].lower()


def _command(url: str, *words: str) -> str:
    environ = {**os.environ, "PACKHORSE_URL": url, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "packhorse", *words]
    done = subprocess.run(command, check=False, env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr
