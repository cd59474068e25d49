"""What a server and its connections may do to us: nothing is lost, nothing hangs, and errors say what to do."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from packhorse import Packhorse
from packhorse.backends.base import Keep, Limit, Settlement, Verdict, WorkerInfo, job_topic, queue_topic
from packhorse.backends.bells import Bell
from packhorse.backends.redis import RedisBackend
from packhorse.chance import CHANCE
from packhorse.clock import SYSTEM_CLOCK, ManualClock
from packhorse.errors import InvalidOption, StoreFull, Unavailable
from packhorse.job import State, Unique
from packhorse.testing.conformance.stores import RedisHarness
from tests.servers import Private, with_parameter
from tests.witness import Witness, boot_s

from .kit import add, beat, claim, key, opened, run, shell, specs, until

FOREVER = Keep(succeeded_ms=10**12, failed_ms=10**12, cancelled_ms=10**12)


async def settle(backend: RedisBackend, *jobs, state: State = State.SUCCEEDED) -> list[Verdict]:
    return await backend.settle([Settlement(id=job.id, token=job.token, state=state) for job in jobs])


def test_scripts_that_the_server_forgot_are_given_again(private: Private) -> None:
    url = private.redis().url

    async def main() -> None:
        async with opened(url) as backend:
            with shell(url) as client:
                ids = await add(backend, 3)
                client.script_flush()
                jobs = await claim(backend)
                client.script_flush()
                assert await settle(backend, *jobs) == [Verdict.APPLIED] * 3
                client.script_flush()
                assert [job.state for job in await backend.get(ids) if job] == [State.SUCCEEDED] * 3

    run(main)


def test_killed_connections_are_made_again(redis_url: str) -> None:
    name = f"killed-{CHANCE.ids(SYSTEM_CLOCK.now_ms(), 1)[0]}"

    async def main() -> None:
        async with opened(with_parameter(redis_url, "client_name", name)) as backend:
            with shell(redis_url) as client:
                for _ in range(5):
                    await _kill(client, name)
                    await add(backend)  # the driver sees the closed connection before it sends
                jobs = await claim(backend)
                assert len(jobs) == 5
                await _kill(client, name)
                assert await settle(backend, *jobs) == [Verdict.APPLIED] * 5

    run(main)


async def _kill(client, name: str, listens: bool = False) -> None:
    """Have the server close connections of this name, and wait until they are closed. Others may be at work beside."""

    def found() -> set[str]:
        return {one["id"] for one in client.client_list() if one["name"] == name and (one["sub"] != "0" or not listens)}

    killed = found()
    assert killed
    for number in killed:
        client.client_kill_filter(_id=number)
    await until(lambda: not killed & found(), "they are closed")
    await asyncio.sleep(0.01)  # the loop reads what is there before it comes back here: the ends of the connections


def test_a_killed_listener_is_back_within_a_second(redis_url: str, witness: Witness) -> None:
    """Also what a full output buffer does: the server closes the connection."""
    name = f"killed-{CHANCE.ids(SYSTEM_CLOCK.now_ms(), 1)[0]}"

    async def main() -> None:
        async with opened(with_parameter(redis_url, "client_name", name)) as backend, opened(redis_url) as other:
            with shell(redis_url) as client, backend.watch([queue_topic("default")]) as bell:
                await until(lambda: client.pubsub_numsub(key(backend, "wake"))[0][1] == 1, "it listens")
                await bell.wait(100)
                for _ in range(2):
                    await _kill(client, name, listens=True)
                    killed_at = boot_s()
                    assert await bell.wait(30_000), (
                        "the bells ring once it listens again: something may have been missed"
                    )
                    assert witness.since_s(killed_at) < 1.5
                await until(lambda: client.pubsub_numsub(key(backend, "wake"))[0][1] == 1, "it listens")
                await bell.wait(50)
                await add(other)
                assert await bell.wait(30_000)

    run(main)


def test_it_listens_only_while_a_bell_hangs(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.backends.redis.wake.LINGER_S", 0.05)

    async def main() -> None:
        async with opened(redis_url) as backend:
            with shell(redis_url) as client:
                wake, ended = key(backend, "wake"), key(backend, "ended")

                def listeners() -> tuple[int, ...]:
                    return tuple(count for _, count in client.pubsub_numsub(wake, ended))

                assert listeners() == (0, 0)
                bell = backend.watch([queue_topic("q")])
                await until(lambda: listeners() == (1, 0), "it listens for queues")
                other = backend.watch([job_topic("j")])
                await until(lambda: listeners() == (1, 1), "it listens for jobs that end too")
                bell.close()
                other.close()
                with backend.watch([queue_topic("q")]):
                    pass
                backend._wake._task and backend._wake._task.cancel()  # SILENCE_S is long
                await until(lambda: listeners() == (0, 0), "it listens no more")

    run(main)


def test_a_server_that_stops_answering_is_unavailable_in_bounded_time(private: Private, witness: Witness) -> None:
    server = private.redis()

    async def main() -> None:
        async with opened(with_parameter(server.url, "timeout", "0.3")) as backend:
            await add(backend)
            pid = shell(server.url).info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                started = boot_s()
                with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
                    await claim(backend)
                results = await asyncio.gather(*[add(backend) for _ in range(20)], return_exceptions=True)
                assert all(isinstance(one, Unavailable) for one in results)
                assert witness.since_s(started) < 5
            finally:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: _answers(backend), "it answers again")

    run(main)


async def _answers(backend: RedisBackend) -> bool:
    try:
        await backend.counts()
    except Unavailable:
        return False
    return True


def test_a_server_that_is_started_again_is_used_again(private: Private) -> None:
    server = private.redis({"appendonly": "yes", "appendfsync": "always"})

    async def main() -> None:
        async with opened(server.url) as backend:
            ids = await add(backend, 3)
            (job, *_) = await claim(backend, 1)
            server.stop()
            with pytest.raises(Unavailable):
                await claim(backend)
            with pytest.raises(Unavailable):
                await backend.enqueue(specs(1))
            server.start()
            await until(lambda: _answers(backend), "it answers again")
            assert await settle(backend, job) == [Verdict.APPLIED]
            assert {job.id for job in await claim(backend)} == set(ids) - {job.id}

    run(main)


def test_a_store_that_was_flushed_is_a_new_one(private: Private) -> None:
    server = private.redis()

    async def main() -> None:
        async with opened(server.url) as backend:
            ids = await add(backend, 3)
            jobs = await claim(backend, 2)
            shell(server.url).flushall()
            assert await claim(backend) == []
            assert await settle(backend, *jobs) == [Verdict.STALE, Verdict.STALE]
            assert await beat(backend) == {}
            assert (await backend.tick(100, FOREVER)).lapsed == 0
            assert await backend.counts() == {}
            again = await add(backend, 2)
            assert [job.id for job in await claim(backend)] == again
            assert await backend.get(ids) == [None] * 3
        async with opened(server.url) as backend:  # its schema was noted anew
            assert len(await backend.get(again)) == 2

    run(main)


def test_an_old_token_is_stale_after_a_flush(private: Private) -> None:
    """Tokens are chance, not a counter: one that starts again would let an old run decide."""
    server = private.redis()

    async def main() -> None:
        async with opened(server.url) as backend:
            one = specs(1)
            await backend.enqueue(one)
            (old,) = await claim(backend)
            shell(server.url).flushall()
            await backend.enqueue(one)
            (new,) = await claim(backend, worker="w2")
            assert await settle(backend, old) == [Verdict.STALE]
            assert await settle(backend, new) == [Verdict.APPLIED]

    run(main)


def test_a_server_without_memory_refuses_new_jobs_and_lets_old_ones_end(private: Private) -> None:
    server = private.redis({"maxmemory": "3mb", "maxmemory-policy": "noeviction"})

    async def main() -> None:
        async with opened(server.url) as backend:
            await add(backend, 3)
            with pytest.raises(StoreFull, match="out of memory"):
                await _fill(backend)
            before = (await backend.counts())["default"].states
            with pytest.raises(StoreFull, match="out of memory"):
                await _fill(backend, 1)  # as much as was too much: what the last call took on its way is free again
            assert (await backend.counts())["default"].states == before, "a refused call left something behind"
            jobs = await claim(backend, 3)
            assert await settle(backend, *jobs) == [Verdict.APPLIED] * 3

    run(main)


async def _fill(backend: RedisBackend, times: int = 1_000) -> None:
    for _ in range(times):
        await backend.enqueue(specs(100, payload=b'"' + b"x" * 1_000 + b'"'))


def test_a_failover_loses_no_job(private: Private) -> None:
    sentinels = private.sentinels()

    async def main() -> None:
        async with opened(with_parameter(sentinels.url, "timeout", "2")) as backend:
            ids = await add(backend, 5)
            jobs = await claim(backend, 2)
            old = sentinels.master
            await asyncio.to_thread(sentinels.fail_over)
            assert sentinels.master is not old
            await until(lambda: _answers(backend), "the new master answers")
            assert await settle(backend, *jobs) == [Verdict.APPLIED] * 2
            assert {job.id for job in await claim(backend)} == set(ids) - {job.id for job in jobs}
            with backend.watch([queue_topic("default")]) as bell:
                await until(lambda: _rings_after_an_enqueue(backend, bell), "a ring over the new master")

    run(main)


async def _rings_after_an_enqueue(backend: RedisBackend, bell: Bell) -> bool:
    await bell.wait(200)
    await add(backend)
    return await bell.wait(500)


def test_leases_that_vanished_do_not_hide_their_jobs(redis_url: str) -> None:
    """FAILURES B18 and B29: an operator, or a server that throws keys away, took the rows of the workers."""

    async def main() -> None:
        clock = ManualClock()
        async with opened(redis_url, clock) as backend:
            with shell(redis_url) as client:
                await add(backend, 3)
                await claim(backend)
                client.delete(key(backend, "leases"), key(backend, "workers"))
                assert (await backend.tick(100, FOREVER)).lapsed == 3
                assert len(await claim(backend, worker="w2")) == 3
                client.delete(key(backend, "leases"))
                assert len(await beat(backend, "w2")) == 3, "a heartbeat before the tick saves them"
                assert (await backend.tick(100, FOREVER)).lapsed == 0

    run(main)


def test_an_idle_worker_asks_little(redis_url: str) -> None:
    """FAILURES B39: an empty claim writes nothing and is one command for the connection."""

    async def main() -> None:
        async with opened(redis_url) as backend:
            await add(backend, 1)
            jobs = await claim(backend)
            await settle(backend, *jobs)
            with shell(redis_url) as client:
                before = client.dump(key(backend, "store")), sorted(client.scan_iter(key(backend, "*")))
                for _ in range(10):
                    assert await claim(backend) == []
                assert (client.dump(key(backend, "store")), sorted(client.scan_iter(key(backend, "*")))) == before

    run(main)


def test_an_idle_worker_asks_at_most_five_commands_a_second(private: Private) -> None:
    server = private.redis()
    app = Packhorse(server.url)

    @app.task
    async def work() -> None:
        """Do nothing."""

    def commands() -> int:
        stats = shell(server.url).info("commandstats")
        return sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "ping", "subscribe")
        )

    async def main() -> None:
        async with app.worker():
            await work.aenqueue()
            await asyncio.sleep(1.5)
            before, began = commands(), boot_s()
            await asyncio.sleep(3)
            assert commands() - before <= 5 * (boot_s() - began)

    run(main)


def test_large_jobs_come_in_small_batches(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            payload = b'"' + b"x" * 1_000_000 + b'"'
            for _ in range(10):
                await asyncio.gather(*[backend.enqueue(specs(1, payload=payload)) for _ in range(10)])
            first = await claim(backend, 100)
            assert 1 <= len(first) < 100, "100 MB in one answer"
            rest = [job for _ in range(20) for job in await claim(backend, 100)]
            assert len(first) + len(rest) == 100
            assert all(job.payload == payload for job in [*first, *rest])
            await backend.limits([Limit(type="work", concurrency=500)])
            verdicts = [await settle(backend, job, state=State.PENDING) for job in [*first, *rest]]
            assert verdicts == [[Verdict.APPLIED]] * 100
            assert 1 <= len(await claim(backend, 100)) < 100
            with pytest.raises(InvalidOption, match="bytes in one call"):
                await backend.enqueue(specs(140, payload=payload))

    run(main)


def test_a_claim_whose_caller_was_cancelled_is_given_back(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            ids = await add(backend, 5)
            for _ in range(20):
                task = asyncio.ensure_future(claim(backend, 3))
                await asyncio.sleep(0.0003)
                task.cancel()
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(result, list):
                    await backend.settle(
                        [Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True) for job in result]
                    )
            while backend._claims:
                await asyncio.wait(set(backend._claims))
            found = await backend.get(ids)
            assert [(job.state, job.attempt) for job in found if job] == [(State.PENDING, 0)] * 5

    run(main)


def test_single_calls_are_grouped_and_a_refused_one_harms_no_other(redis_url: str) -> None:
    async def main() -> None:
        async with opened(redis_url) as backend:
            runs: list[str] = []
            real = backend._link.run

            async def counted(verb: str, args: object) -> object:
                runs.append(verb)
                return await real(verb, args)

            backend._link.run = counted  # type: ignore[method-assign]
            held = specs(1, unique=Unique(key="k"))
            await backend.enqueue(held)
            refused = specs(1, unique=Unique(key="k", on_conflict="refuse"))
            plain = [specs(1) for _ in range(200)]
            calls = [backend.enqueue(one) for one in [*plain[:100], refused, *plain[100:]]]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(one, Exception) for one in results) == 1
            assert runs.count("enqueue") <= 3
            jobs = await claim(backend, 500)
            assert len(jobs) == 201
            runs.clear()
            verdicts = await asyncio.gather(*[settle(backend, job) for job in [*jobs, jobs[0]]])
            assert verdicts == [[Verdict.APPLIED]] * 201 + [[Verdict.STALE]]
            assert runs.count("settle") <= 2

    run(main)


def test_nothing_is_left_when_all_is_gone(redis_url: str) -> None:
    """Every index entry goes with its job: no key grows for ever."""
    from packhorse.backends.base import EACH_KEY, Limit, Schedule, ScheduleChange

    harness = RedisHarness(redis_url)

    async def main() -> None:
        async with harness:
            backend, clock = harness.backend, harness.clock
            assert clock is not None
            fresh = harness.keys()
            assert fresh == ["store"]
            await backend.limits([Limit(type="work", rate=5, concurrency=9), Limit(type="work", key=EACH_KEY, rate=2)])
            await backend.schedules(
                [ScheduleChange(name="s", define=Schedule(name="s", every_ms=1_000, spec=specs(1)[0]))]
            )
            for number in range(40):
                parents = specs(3, key=f"k{number % 5}", queue=f"q{number % 3}", workflow="w", schedule="s")
                child = specs(1, after=tuple(one.id for one in parents), unique=Unique(key=f"u{number}", for_ms=50))
                await backend.enqueue([*parents, *child, *specs(1, delay_ms=number), *specs(1, type="free")])
                jobs = await backend.claim(["q0", "q1", "q2", "default"], 5, 30_000, f"worker-{number}")
                await backend.heartbeat(WorkerInfo(id=f"worker-{number}"), 30_000)
                ends = [State.SUCCEEDED, State.FAILED, State.SCHEDULED, State.PENDING]
                await backend.settle(
                    [
                        Settlement(
                            id=job.id,
                            token=job.token,
                            state=ends[place % 4],
                            delay_ms=5 if place % 4 == 2 else 0,
                            result=b"1",
                            error=harness.error(),
                        )
                        for place, job in enumerate(jobs[1:])
                    ]
                )
                clock.advance(300)
                await backend.tick(1_000, FOREVER)
            await backend.limits([Limit(type="work", cleared=True), Limit(type="work", key=EACH_KEY, cleared=True)])
            await backend.schedules([ScheduleChange(name="s", removed=True)])
            clock.advance(10**9)
            assert len(harness.keys()) > 100
            for _ in range(50):
                await backend.tick(1_000, FOREVER)
                ids = [job.id for job in await harness.all()]
                await backend.claim(["q0", "q1", "q2", "default"], 1, 30_000, "last")
                await backend.retire("last", "done")
                if not ids:
                    break
                await backend.delete(ids[:1_000])
            await backend.tick(1_000, FOREVER)
            assert harness.keys() == fresh
            assert await backend.counts() == {}

    run(main)


def test_keys_of_one_store_are_not_those_of_another(redis_url: str) -> None:
    async def main() -> None:
        one, two = with_parameter(redis_url, "prefix", "a.b"), with_parameter(redis_url, "prefix", "a")
        async with opened(one) as first, opened(two) as second:
            try:
                ids = await add(first, queue="b}:store")  # shells refuse such names; here they do no harm
                await add(second, queue="default", unique=Unique(key="x}:*\r\nFLUSHALL"))
                assert [job.id for job in await claim(first, queue="b}:store")] == ids
                assert await claim(first) == []
                assert len(await claim(second)) == 1
            finally:
                with shell(redis_url) as client:
                    for backend in (first, second):
                        for name in client.scan_iter(key(backend, "*")):
                            client.delete(name)

    run(main)


def test_a_call_on_a_backend_that_is_not_open_says_so(redis_url: str) -> None:
    async def main() -> None:
        with pytest.raises(Unavailable, match="not open"):
            await RedisBackend(redis_url).counts()

    run(main)
