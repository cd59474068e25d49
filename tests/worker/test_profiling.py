"""Profiles: what is sampled, what it is put down to, and the files that come of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from types import CodeType
from xml.etree import ElementTree as ET

import msgspec
import pytest
from working import new_app, until, work

from packhorse import Packhorse
from packhorse.clock import SYSTEM_CLOCK
from packhorse.observe.flamegraph import flame_graph
from packhorse.observe.profiling import (
    STACKS_MAX,
    Function,
    Profile,
    Sampler,
    Seen,
    Weighed,
    by_function,
    by_job_type,
    folded,
    join,
    speedscope,
)
from packhorse.observe.stacks import Stack, read_dump
from packhorse.worker.inspector import RunnerView

HOSTILE = '</title><script>alert(1)</script>\x1b]0;\n\u202e"&;\x00\ud800'


def example() -> Profile:
    return Profile(
        mode="cpu",
        rate=100,
        duration_ms=2_000,
        samples=200,
        functions=[
            Function("resize", "/app/shop.py", 31, "yours"),
            Function("encode", "/lib/site-packages/png.py", 7, "library"),
            Function(HOSTILE, "/app/" + HOSTILE, 1, "yours"),
        ],
        stacks=[
            Weighed("thumbnail", (0, 1), 600_000, 60),
            Weighed("thumbnail", (0,), 300_000, 30),
            Weighed(HOSTILE, (2,), 100_000, 10),
        ],
    )


# ---- files ---------------------------------------------------------------------------------------------------


def test_folded_stacks_have_the_type_first_and_the_time_last() -> None:
    lines = folded(example()).splitlines()
    assert "thumbnail;resize (shop.py:31);encode (png.py:7) 600000" in lines
    assert "thumbnail;resize (shop.py:31) 300000" in lines
    assert len(lines) == 3  # no name makes a line or a frame of its own
    assert all(line.isprintable() for line in lines)
    assert sorted(line.count(";") for line in lines) == [1, 1, 2]


def test_a_speedscope_file_has_a_profile_for_each_type() -> None:
    document = msgspec.json.decode(speedscope(example(), "worker"))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    first = document["profiles"][document["activeProfileIndex"]]
    assert first["name"] == "thumbnail"
    assert first["unit"] == "microseconds"
    assert first["endValue"] == sum(first["weights"]) == 900_000
    frames = document["shared"]["frames"]
    assert [[frames[at]["name"] for at in sample] for sample in first["samples"]] == [
        ["thumbnail", "resize"],
        ["thumbnail", "resize", "encode"],
    ]
    assert {"name": "resize", "file": "/app/shop.py", "line": 31} in frames


def test_a_flame_graph_is_xml_without_scripts_whatever_names_hold() -> None:
    """C22: functions, files and types may be named by anybody."""
    text = flame_graph(example(), "worker " + HOSTILE)
    text.encode()
    root = ET.fromstring(text)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "all: 1.000 s, 100 %" in titles
    assert "job type thumbnail: 0.900 s, 90.0 %" in titles
    assert "resize  /app/shop.py:31: 0.900 s, 90.0 %" in titles
    assert not [element for element in root.iter() if "script" in element.tag]
    assert "<script" not in text
    assert "\x1b" not in text


def test_a_flame_graph_is_as_wide_as_its_time() -> None:
    root = ET.fromstring(flame_graph(example(), "w"))
    widths = {}
    for box in root.iter("{http://www.w3.org/2000/svg}g"):
        title, rect = box[0].text or "", box[1]
        widths[title.split(":")[0].split("  ")[0]] = float(rect.get("width") or 0)
    assert widths["all"] == pytest.approx(1180, abs=1)
    assert widths["resize"] == pytest.approx(1180 * 0.9, abs=1)
    assert widths["encode"] == pytest.approx(1180 * 0.6, abs=1)


def test_a_deep_and_an_empty_profile_can_be_drawn() -> None:
    deep = Profile(mode="wall", rate=1, duration_ms=1, functions=[Function("f", "f.py", 1, "yours")])
    deep.stacks = [Weighed("t", (0,) * 5_000, 1, 1)]
    empty = Profile(mode="cpu", rate=1, duration_ms=1)
    for profile in (deep, empty):
        ET.fromstring(flame_graph(profile, "w"))
        assert msgspec.json.decode(speedscope(profile, "w"))["profiles"]
        folded(profile)


def test_a_function_that_calls_itself_counts_once() -> None:
    profile = Profile(mode="cpu", rate=1, duration_ms=1, functions=[Function("f"), Function("g")])
    profile.stacks = [Weighed("t", (0, 1, 0), 10, 1)]
    assert [(row.name, row.self_us, row.total_us) for row in by_function(profile)] == [("f", 10, 10), ("g", 0, 10)]


def test_profiles_of_processes_are_joined_by_function() -> None:
    other = Profile(
        mode="cpu", rate=100, duration_ms=2_000, samples=5, functions=[example().functions[1], example().functions[0]]
    )
    other.stacks = [Weighed("thumbnail", (1, 0), 100_000, 5)]
    whole = join([example(), other])
    assert whole.processes == 2
    assert len(whole.functions) == 3
    assert Weighed("thumbnail", (0, 1), 700_000, 65) in whole.stacks


# ---- samples -------------------------------------------------------------------------------------------------


def codes(count: int) -> list[CodeType]:
    return [compile(f"def f{number}(): pass", f"/app/f{number}.py", "exec") for number in range(count)]


def test_different_stacks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.observe.profiling.STACKS_MAX", 50)
    assert STACKS_MAX == 20_000
    many = iter(codes(500))
    sampler = Sampler(lambda mode: [Seen(None, "t", [next(many)]) for _ in range(100)], SYSTEM_CLOCK, "wall", 100)
    sampler.each_second = lambda: None
    for _ in range(5):
        sampler._take(10_000_000)
    profile = sampler._finish(5, 0, 50)
    assert len(profile.stacks) == 51
    assert "(too many different stacks)" in [function.name for function in profile.functions]
    assert profile.total_us == pytest.approx(5_000_000, rel=0.01)  # nothing is lost


#: Filled when all was looked at, so that nothing burns for longer. No event: asking one is a call, which profiles show.
OVER: list[bool] = []


def burn(until_s: float) -> int:
    total = 0
    while time.monotonic() < until_s and not OVER:
        total += sum(range(500))
    return total


async def deep(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def stream() -> AsyncIterator[int]:
    await deep(60)
    yield 1


def busy_app() -> Packhorse:
    app = new_app(blocked=0)

    @app.task
    async def on_loop(seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not OVER:
            burn(time.monotonic() + 0.02)
            await asyncio.sleep(0)

    @app.task
    def in_thread(seconds: float) -> None:
        burn(time.monotonic() + seconds)

    @app.task
    async def gathers() -> None:
        await asyncio.gather(deep(60), deep(60))

    @app.task
    async def awaits_a_task() -> None:
        async with asyncio.timeout(100):
            await asyncio.create_task(deep(60))

    @app.task
    async def streams() -> None:
        async for _ in stream():
            pass

    return app


@contextlib.asynccontextmanager
async def looked_at(app: Packhorse) -> AsyncIterator[RunnerView]:
    OVER.clear()
    async with app.worker(shutdown_timeout=0) as worker:
        assert worker.engine is not None
        yield RunnerView(worker.engine, asyncio.get_running_loop(), threading.get_ident())
        OVER.append(True)


async def sampled(view: RunnerView, mode: str, ms: int = 600) -> Profile:
    for _ in range(20):
        sampler = Sampler(view.seen, SYSTEM_CLOCK, mode, 200)
        profile = await asyncio.get_running_loop().run_in_executor(None, sampler.run, ms)
        # One of a machine that stood still meanwhile, and took few samples, shows nothing: take another.
        if profile.samples > 0.9 * ms * 200 / 1_000 and profile.duration_ms < 1.2 * ms:
            break
    return profile


def test_processor_time_is_put_down_to_types_and_functions() -> None:
    app = busy_app()

    async def scenario() -> Profile:
        async with looked_at(app) as view:
            await app.tasks["on_loop"].aenqueue(seconds=60)
            await app.tasks["in_thread"].aenqueue(seconds=60)
            await app.tasks["gathers"].aenqueue()
            await until(lambda: len(view._runs()) == 3)
            return await sampled(view, "cpu")

    profile = work(scenario)
    shares = {row.name: row.total_us for row in by_job_type(profile)}
    assert shares["on_loop"] > 0
    assert shares["in_thread"] > 0
    assert "gathers" not in shares  # it waits
    of_jobs = [stack for stack in profile.stacks if stack.job_type in {"on_loop", "in_thread"}]
    names = [profile.functions[place].label for stack in of_jobs for place in stack.functions]
    assert any(name.startswith("burn (test_profiling.py") for name in names)
    assert not any("runner.py" in name or "asyncio" in name for name in names)
    assert profile.total_us < 1_500_000  # what the threads used, not what passed


def test_the_time_of_jobs_that_wait_is_put_down_to_where_they_wait() -> None:
    app = busy_app()

    async def scenario() -> Profile:
        async with looked_at(app) as view:
            for name in ("gathers", "awaits_a_task", "streams"):
                await app.tasks[name].aenqueue()
            await until(lambda: len(view._runs()) == 3)
            return await sampled(view, "wall", 300)

    profile = work(scenario)
    shares = {row.name: row.total_us for row in by_job_type(profile)}
    assert set(shares) == {"gathers", "awaits_a_task", "streams"}
    for share in shares.values():
        assert share == pytest.approx(profile.duration_ms * 1000, rel=0.2)
    for line in folded(profile).splitlines():
        if line.startswith(("gathers", "awaits")):
            assert ";deep (test_profiling.py:" in line


def test_many_waiting_jobs_cost_no_more_and_count_all() -> None:
    app = busy_app()

    async def scenario() -> Profile:
        async with looked_at(app) as view:
            await app.aenqueue_many([{"type": "gathers", "payload": {}}] * 90)
            await until(lambda: len(view._runs()) == 90)
            return await sampled(view, "wall", 300)

    profile = work(scenario)
    assert profile.total_us == pytest.approx(90 * profile.duration_ms * 1000, rel=0.2)


def test_a_profile_that_is_stopped_answers_what_it_has() -> None:
    sampler = Sampler(lambda mode: [Seen(None, "t", [])], SYSTEM_CLOCK, "wall", 100)
    threading.Timer(0.1, sampler.stopped.set).start()
    profile = sampler.run(60_000)
    assert 50 <= profile.duration_ms < 10_000
    assert by_job_type(profile)[0].name == "t"


# ---- stacks --------------------------------------------------------------------------------------------------


def test_stacks_show_threads_and_waiting_runs_with_their_jobs() -> None:
    app = busy_app()

    async def scenario() -> tuple[list[Stack], str, str]:
        async with looked_at(app) as view:
            waiting = await app.tasks["gathers"].aenqueue()
            running = await app.tasks["in_thread"].aenqueue(seconds=60)
            await until(lambda: len(view._runs()) == 2)
            seen: list[list[Stack]] = []

            async def both_are_at_it() -> bool:
                seen.append(await asyncio.get_running_loop().run_in_executor(None, view.stacks))
                return {"burn", "deep"} <= {frame.function for stack in seen[-1] for frame in stack.frames}

            await until(both_are_at_it)
            return seen[-1], waiting.id, running.id

    stacks, waiting, running = work(scenario)
    assert stacks[0].is_loop
    by_job = {stack.job_id: stack for stack in stacks if stack.job_id}
    assert by_job[waiting].doing == "waits"
    assert by_job[waiting].job_type == "gathers"
    functions = [frame.function for frame in by_job[waiting].frames]
    assert functions[-2:] == ["deep", "gathers"]
    assert by_job[running].thread.startswith("packhorse-job")
    assert [frame.function for frame in by_job[running].frames] == ["burn", "in_thread"]
    assert len(by_job) == 2


def test_a_dump_is_read_even_if_it_was_cut_short() -> None:
    text = (
        "Thread 0x00007f01 (most recent call first):\n"
        '  File "/usr/lib/python3.11/threading.py", line 982 in run\n\n'
        "Current thread 0x00007f02 [python] (most recent call first):\n"
        '  File "/usr/lib/python3.11/re/__init__.py", line 171 in fullmatch\n'
        '  File "/app/sh\\xf6p.py", line ??? in check\n'
        "  ...\n"
        '  File "/app/shop.py", li'
    )
    loop, other = read_dump(text)
    assert loop.is_loop
    assert [(frame.function, frame.line) for frame in loop.frames] == [("fullmatch", 171), ("check", 0)]
    assert other.thread == "0x00007f01"
    assert read_dump("garbage\n\x00") == []
