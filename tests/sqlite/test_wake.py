"""Hints between processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from packhorse.backends.base import job_topic, queue_topic
from packhorse.backends.sqlite.wake import Wake
from packhorse.clock import process_cpu_ms

from .helpers import new, opened, run, succeeded

_WAIT = """
import asyncio, sys
from packhorse.backends.base import queue_topic
from packhorse.backends.sqlite import SQLiteBackend

async def main():
    backend = SQLiteBackend("sqlite:///" + sys.argv[1])
    await backend.open()
    with backend.watch([queue_topic("default")]) as bell:
        print("waiting", flush=True)
        rang = await bell.wait(20_000)
        print(rang, len(await backend.claim(["default"], 10, 30_000, "w")), flush=True)
    await backend.close()

asyncio.run(main())
"""


def test_a_ring_reaches_another_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _WAIT, str(tmp_path / "a.db"), stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            assert await child.stdout.readline() == b"waiting\n"
            await backend.enqueue(new())
            assert await child.stdout.readline() == b"True 1\n"
            assert await child.wait() == 0

    run(main())


@pytest.mark.parametrize("inotify", [True, False])
def test_every_kind_of_news_rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inotify: bool) -> None:
    """Two backends are as foreign to each other as two processes."""
    if not inotify:

        def unavailable(_self: Wake) -> int:
            raise OSError("the limit of watches is reached")

        monkeypatch.setattr(Wake, "inotify", unavailable)

    async def main() -> None:
        async with opened(tmp_path / "a.db") as here, opened(tmp_path / "a.db") as there:
            [spec] = new()
            with here.watch([queue_topic("default")]) as bell:
                await there.enqueue([spec])
                assert await bell.wait(10_000), "enqueue"
            [job] = await there.claim(["default"], 1, 30_000, "w")
            with here.watch([job_topic(spec.id)]) as bell:
                await there.settle([succeeded(job)])
                assert await bell.wait(10_000), "settle"

    run(main())


def test_own_commits_ring_their_own_topics_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with backend.watch([queue_topic("default")]) as mine, backend.watch([queue_topic("other")]) as other:
                for _ in range(5):
                    await backend.enqueue(new())
                assert await mine.wait(10_000)
                assert not await other.wait(50)

    run(main())


def test_nothing_is_watched_without_a_bell(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            wake = backend._engine.wake
            assert wake._watch is None
            directory = Path("/proc/self/fd")
            descriptors = len(list(directory.iterdir())) if directory.is_dir() else 0
            for _ in range(10):
                with backend.watch(["a"]), backend.watch(["b"]):
                    assert wake._watch is not None
                assert wake._watch is None
            if descriptors:
                assert len(list(directory.iterdir())) == descriptors

    run(main())


def test_a_bell_hung_up_before_open_rings(tmp_path: Path) -> None:
    async def main() -> None:
        from packhorse.backends.sqlite import SQLiteBackend

        async with opened(tmp_path / "a.db") as there:
            here = SQLiteBackend(f"sqlite:///{tmp_path}/a.db")
            with here.watch(["queue:default"]) as bell:
                await here.open()
                await there.enqueue(new())
                assert await bell.wait(10_000)
            await here.close()

    run(main())


def test_waiting_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            with backend.watch(["queue:default"]) as bell:
                await bell.wait(10)
                before_ms = process_cpu_ms()
                assert not await bell.wait(1_000)
                assert process_cpu_ms() - before_ms < 10

    run(main())


def test_many_commits_ring_at_most_about_once_a_ms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as here, opened(tmp_path / "a.db", "?synchronous=normal") as there:
            rings = 0
            with here.watch(["queue:default"]):
                ring_all = here._engine.wake.bells.ring_all

                def counted() -> None:
                    nonlocal rings
                    rings += 1
                    ring_all()

                monkeypatch.setattr(here._engine.wake.bells, "ring_all", counted)
                loop = asyncio.get_running_loop()
                started_at_s = loop.time()
                for _ in range(100):
                    await there.enqueue(new())
                elapsed_ms = (loop.time() - started_at_s) * 1000
            assert 1 <= rings <= elapsed_ms + 2

    run(main())
