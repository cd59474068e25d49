"""`packhorse move`: what it says, and that it loses and doubles nothing while both stores work and it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from packhorse import admin_move
from packhorse.backends import opening
from packhorse.backends.base import Backend, Query, Schedule, ScheduleChange, Settlement
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import open_backend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK
from packhorse.errors import Unavailable
from packhorse.job import JobError, JobRecord, JobSpec, State, Unique
from tests.servers import SERVERS

from .kit import Cli, SharedMemory, clean_environ

# ---- what it says ----------------------------------------------------------------------------------------


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SharedMemory:
    """A second store, `other://`."""
    found = SharedMemory(MemoryStore(SYSTEM_CLOCK))
    monkeypatch.setitem(opening._registered, "other", lambda url, clock: SharedMemory(found.store))
    return found


MOVE = ("move", "--from", "clitest://store", "--to", "other://store")


def test_all_is_moved_and_counted(cli: Cli, target: SharedMemory) -> None:
    cli.add(5)
    cli.settle(State.SUCCEEDED, 2)
    cli.add(3, delay_ms=10**6)
    result = cli(*MOVE, "--batch", "2")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["STATE", "MOVED", "LEFT"],
        ["scheduled", "3", "0"],
        ["pending", "3", "0"],
        ["succeeded", "2", "0"],
        ["(all)", "8", "0"],
        ["schedules", "0,", "limits", "0,", "settings", "of", "queues", "0"],
    ]
    assert result.stderr == ""
    assert len(target.store.jobs) == 8
    assert cli.json(*MOVE)["moved"]["pending"] == 0


def test_what_runs_stays_with_no_wait_and_a_second_call_goes_on(cli: Cli, target: SharedMemory) -> None:
    cli.add(3)
    started = cli.start(1)
    result = cli(*MOVE, "--no-wait", "--json", code=1)
    answer = json.loads(result.stdout)
    assert (answer["done"], answer["left"], answer["moved"]["pending"]) == (False, {"running": 1}, 2)
    assert "1 job still runs at the source" in result.stderr
    job_id, token = started[0]
    asyncio.run(cli.backend().settle([Settlement(id=job_id, token=token, state=State.SUCCEEDED)]))
    assert cli.json(*MOVE, "--no-wait")["moved"]["succeeded"] == 1


def test_ids_that_are_there_already_are_told(cli: Cli, target: SharedMemory) -> None:
    ids = cli.add(3)
    asyncio.run(target.enqueue([JobSpec(id=ids[1], type="email")]))
    result = cli(*MOVE)
    assert "1 job was left out" in result.stderr
    assert len(target.store.jobs) == 3


def test_one_store_twice_is_refused(cli: Cli) -> None:
    assert "the same store" in cli("move", "--from", "clitest://a", "--to", "clitest://a", code=2).stderr
    assert "the same store" in cli("move", "--from", "clitest://a", "--to", "clitest://b", code=2).stderr
    assert "Missing option" in cli("move", "--from", "clitest://a", code=2).stderr


def test_memory_and_files_that_are_not_there_are_refused(cli: Cli) -> None:
    assert "inside one process" in cli("move", "--from", "memory://", "--to", "clitest://a", code=2).stderr
    assert "there is no file" in cli("move", "--from", "sqlite:///no.db", "--to", "clitest://a", code=2).stderr


def test_a_store_that_cannot_take_part_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    class Old(MemoryBackend):
        capabilities = msgspec.structs.replace(SharedMemory.capabilities, transfer=False)

    monkeypatch.setitem(opening._registered, "old", lambda url, clock: Old(MemoryStore(clock)))
    cli.add(1)
    assert "does not support 'transfer'" in cli("move", "--from", "clitest://a", "--to", "old://", code=1).stderr
    assert len(cli.store.jobs) == 1


def test_a_store_that_is_away_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(SharedMemory):
        async def take_over(self, transfer: Any = None) -> Any:
            raise Unavailable("no answer within 1 s")

    monkeypatch.setattr(admin_move, "PATIENCE_MS", 0)
    monkeypatch.setitem(opening._registered, "away", lambda url, clock: Away(MemoryStore(clock)))
    said = cli("move", "--from", "clitest://a", "--to", "away://", code=1).stderr
    assert said == "packhorse: no answer within 1 s; nothing is lost, run the same command again to go on\n"


def test_a_password_in_an_argument_is_warned_of_and_never_shown(cli: Cli) -> None:
    result = cli("move", "--from", "nothing://u:geheim@h/a", "--to", "clitest://a", code=2)
    assert "the password in --from" in result.stderr
    assert "PACKHORSE_MOVE_FROM" in result.stderr
    assert "geheim" not in result.output


# ---- under load, killed ----------------------------------------------------------------------------------

APP = """
import os
import time

from packhorse import Context, Fail, Packhorse

app = Packhorse()


def note(ctx: Context) -> None:
    line = f"{ctx.id} {ctx.attempt} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f}\\n"
    fd = os.open(os.environ["MOVE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


@app.task
async def work(ctx: Context) -> int:
    note(ctx)
    return 1


@app.task(backoff="20ms", backoff_max="50ms")
async def flaky(ctx: Context) -> int:
    note(ctx)
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return 1


@app.task
async def bad(ctx: Context) -> None:
    note(ctx)
    raise Fail("never")
"""


class Lab:
    """Two stores, workers on both, and what their handlers wrote down."""

    def __init__(self, directory: Path, urls: list[str]) -> None:
        self.directory = directory
        self.urls = urls
        (directory / "moveapp.py").write_text(APP)
        self.logs = [directory / "source.log", directory / "target.log"]  # what the workers of each ran
        self.environ = {**clean_environ(), "PYTHONPATH": str(directory)}
        self.started: list[subprocess.Popen[bytes]] = []
        self.wanted: dict[str, set[str]] = defaultdict(set)

    def start(self, *args: str, **environ: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{args[0]}-{len(self.started)}.log").open("wb") as out:
            one = subprocess.Popen(
                [sys.executable, "-m", "packhorse", *args],
                cwd=self.directory,
                env=self.environ | environ,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.started.append(one)
        return one

    def worker(self, number: int) -> subprocess.Popen[bytes]:
        options = ("moveapp:app", "--url", self.urls[number], "-c", "10")
        return self.start("worker", *options, MOVE_LOG=str(self.logs[number]))

    def move(self, *options: str) -> subprocess.Popen[bytes]:
        return self.start("move", "--from", self.urls[0], "--to", self.urls[1], "--batch", "50", *options)

    def stop(self) -> None:
        for one in self.started:
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
        for one in self.started:
            with suppress(subprocess.TimeoutExpired):
                one.wait(60)
            if one.poll() is None:
                one.kill()

    # ---- jobs ----------------------------------------------------------------------------------------------

    async def add(self, backend: Backend, kind: str, specs: list[JobSpec]) -> list[JobSpec]:
        for start in range(0, len(specs), 1_000):
            await backend.enqueue(specs[start : start + 1_000])
        self.wanted[kind] |= {spec.id for spec in specs}
        return specs

    async def fill(self, backend: Backend) -> None:
        """5,000 jobs of all kinds, and a schedule."""
        for state, count in ((State.SUCCEEDED, 1_200), (State.FAILED, 300), (State.CANCELLED, 200)):
            await self.add(backend, str(state), specs("work", count))
            for start in range(0, count, 1_000):
                jobs = await backend.claim(["default"], min(1_000, count - start), 30_000, "filler")
                error = JobError(attempt=1, at_ms=1, kind="E", message="m") if state is State.FAILED else None
                await backend.settle([Settlement(id=job.id, token=job.token, state=state, error=error) for job in jobs])
        await self.add(backend, "later", specs("work", 800, delay_ms=3_600_000))
        for number in range(150):  # a diamond each
            (top,) = await self.add(backend, "work", specs("work", 1))
            sides = await self.add(backend, "work", specs("flaky", 2, after=(top.id,)))
            await self.add(backend, "work", specs("work", 1, after=tuple(side.id for side in sides)))
            if number % 3 == 0:
                (ruin,) = await self.add(backend, "bad", specs("bad", 1))
                await self.add(backend, "ruined", specs("work", 4, after=(ruin.id,)))
        for number in range(150):
            await self.add(backend, "work", specs("work", 1, unique=Unique(key=f"k{number}")))
        left = 5_000 - sum(map(len, self.wanted.values()))
        await self.add(backend, "work", specs("work", left, key="a"))
        every = Schedule(name="pulse", spec=JobSpec(id="", type="work"), every_ms=1_000, missed="all")
        await backend.schedules([ScheduleChange(name="pulse", define=every)])

    def runs(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for log in self.logs:
            for line in log.read_text().splitlines():
                job_id, _, at = line.split()
                found[job_id].append(float(at))
        return found


def specs(job_type: str, count: int, **fields: Any) -> list[JobSpec]:
    return [JobSpec(id=one, type=job_type, **fields) for one in CHANCE.ids(SYSTEM_CLOCK.now_ms(), count)]


PAIRS = [("sqlite", "sqlite")]
if os.environ.get("PACKHORSE_FULL"):
    PAIRS += [pair for kind in SERVERS for pair in (("sqlite", kind), (kind, "sqlite"))]


@pytest.fixture(params=PAIRS, ids="-to-".join)
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    urls = [
        f"sqlite:///{tmp_path}/{number}.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
        for number, kind in enumerate(request.param)
    ]
    found = Lab(tmp_path, urls)
    yield found
    found.stop()


async def _records(backend: Backend, ids: list[str]) -> dict[str, JobRecord]:
    found: list[JobRecord | None] = []
    for start in range(0, len(ids), 1_000):
        found += await backend.get(ids[start : start + 1_000])
    return {one.id: one for one in found if one is not None}


async def _until_moved(source: Backend, mover: subprocess.Popen[bytes], count: int) -> None:
    """Wait until a mover has moved so many jobs, or has ended."""
    start = await _left(source)
    for _ in range(12_000):
        if mover.poll() is not None or await _left(source) <= start - count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"fewer than {count} jobs were moved")


async def _left(backend: Backend) -> int:
    return sum(sum(one.states.values()) for one in (await backend.counts()).values())


async def _until_pulsed(backend: Backend, slots: int) -> None:
    """Wait until the schedule has made so many jobs."""
    for _ in range(600):
        if len((await backend.find(Query(schedule="pulse"))).jobs) >= slots:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the schedule that was moved did not make {slots} jobs within a minute")


async def _until_quiet(backend: Backend) -> None:
    """Wait until nothing but what is due later is left to do."""
    for _ in range(600):
        counts: Counter[State] = Counter()
        for one in (await backend.counts()).values():
            counts.update(one.states)
        if not counts[State.WAITING] + counts[State.PENDING] + counts[State.RUNNING] and counts[State.SCHEDULED] <= 800:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not quiet within a minute: {counts}")


def test_five_thousand_jobs_under_load_by_a_mover_that_is_killed_again_and_again(lab: Lab) -> None:
    asyncio.run(_under_load(lab, random.Random(4)))


async def _under_load(lab: Lab, chance: random.Random) -> None:
    source, target = (open_backend(url) for url in lab.urls)
    for backend in (source, target):
        await backend.migrate()
        await backend.open()
    try:
        await lab.fill(source)
        workers = [lab.worker(number) for number in range(2)]
        kills = number = 0
        while number < 10 or kills < 5:
            assert number < 60, "hardly any mover was killed on its way"
            if number >= 10:  # too many had moved all there was before we looked
                await lab.add(source, "work", specs("work", 1_000))
            mover = lab.move()
            await _until_moved(source, mover, chance.randrange(1, 700))
            kills += mover.poll() is None
            mover.kill()
            mover.wait()
            await lab.add(source, "work", specs("work", 5))
            await lab.add(target, "work", specs("flaky" if number % 2 else "work", 5))
            number += 1
        mover = lab.move("--json")
        assert await asyncio.to_thread(mover.wait, 60) == 0, (
            lab.directory / f"move-{len(lab.started) - 1}.log"
        ).read_text()
        workers[0].send_signal(signal.SIGTERM)
        await _until_pulsed(target, 4)
        await target.schedules([ScheduleChange(name="pulse", paused=True)])
        await _until_quiet(target)
        await _check(lab, source, target)
    finally:
        await target.close()
        await source.close()


async def _check(lab: Lab, source: Backend, target: Backend) -> None:
    ids = sorted(set().union(*lab.wanted.values()))
    assert await _records(source, ids) == {}
    assert await _left(source) == 0
    assert await source.schedules() == []
    records = await _records(target, ids)
    assert len(records) == len(ids) >= 5_100
    slots = [job.slot_at_ms or 0 for job in (await target.find(Query(schedule="pulse", oldest_first=True))).jobs]
    assert sorted(slots) == list(range(min(slots), max(slots) + 1, 1_000)), "a slot was missed or fired twice"
    assert len(slots) > 3
    states = {
        "succeeded": State.SUCCEEDED,
        "failed": State.FAILED,
        "cancelled": State.CANCELLED,
        "later": State.SCHEDULED,
        "work": State.SUCCEEDED,
        "bad": State.FAILED,
        "ruined": State.CANCELLED,
    }
    for kind, state in states.items():
        assert Counter(records[one].state for one in lab.wanted[kind]) == {state: len(lab.wanted[kind])}, kind
    assert all(log.stat().st_size for log in lab.logs), "only one of the stores had jobs to run"
    runs = lab.runs()
    for kind in ("succeeded", "failed", "cancelled", "later", "ruined"):
        assert not lab.wanted[kind] & runs.keys(), f"{kind} ran"
    for one in lab.wanted["work"] | lab.wanted["bad"]:
        assert len(runs[one]) == (2 if records[one].type == "flaky" else 1), (one, records[one])
        for parent in records[one].after:
            assert max(runs[parent]) <= min(runs[one]), "a child ran before its parent"
    assert all(len(found) == 1 for job_id, found in runs.items() if job_id not in records), "a slot ran twice"


def test_ctrl_c_lets_what_is_on_its_way_arrive(tmp_path: Path) -> None:
    lab = Lab(tmp_path, [f"sqlite:///{tmp_path}/{name}.db" for name in "ab"])

    async def main() -> None:
        source, target = (open_backend(url) for url in lab.urls)
        await source.open()
        await target.open()
        for _ in range(20):
            await lab.add(source, "work", specs("work", 10_000))
            mover = lab.move()
            await _until_moved(source, mover, 1_000)
            mover.send_signal(signal.SIGINT)
            code = await asyncio.to_thread(mover.wait, 60)
            if await _left(source):
                break  # else it had moved all before it heard of the signal
        said = (tmp_path / f"move-{len(lab.started) - 1}.log").read_text()
        assert code == 130
        assert "what is on its way arrives first" in said
        assert "run the same command again to go on" in said
        assert await _left(source) + await _left(target) == len(lab.wanted["work"])
        assert await _left(source) > 0
        await target.close()
        await source.close()

    try:
        asyncio.run(main())
    finally:
        lab.stop()
