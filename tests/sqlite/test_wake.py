"""Hints between processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
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


def test_an_own_write_is_not_taken_for_one_of_others_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop looks at the slots while the writer writes to its own."""

    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            wake = backend._engine.wake
            wake.tell_others()
            before = wake.glance()
            write, looks = os.pwrite, []

            def while_somebody_looks(fd: int, data: bytes, at: int) -> int:
                looks.append(pool.submit(wake.glance))
                wait(looks, 0.2)
                return write(fd, data, at)

            with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", while_somebody_looks)
                wake.tell_others()
            assert [look.result() for look in looks] == [before]

    run(main())


def test_nothing_is_watched_without_a_bell(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as backend:
            wake = backend._engine.wake
            assert wake._watch is None
            before = _watches()
            for _ in range(10):
                with backend.watch(["a"]), backend.watch(["b"]):
                    assert wake._watch is not None
                assert wake._watch is None
            assert _watches() <= before

    run(main())


def _watches() -> set[Path]:
    """Answer the open files of this process that watch others; all others come and go with what runs beside this."""
    found = set()
    directory = Path("/proc/self/fd")
    for entry in directory.iterdir() if directory.is_dir() else ():
        with suppress(OSError):  # closed meanwhile
            if "inotify" in str(entry.readlink()):
                found.add(entry)
    return found


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
                cost_ms = []
                while len(cost_ms) < 5 and min(cost_ms, default=10) >= 10:  # a collection of garbage may fall into one
                    before_ms = process_cpu_ms()
                    assert not await bell.wait(1_000)
                    cost_ms.append(process_cpu_ms() - before_ms)
                assert min(cost_ms) < 10

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


def test_nobody_writes_to_the_side_file_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor may be that of the next file by then, such as the database."""

    async def version() -> int:
        return 0

    (tmp_path / "a.db").touch()
    wake = Wake(lambda: asyncio.ensure_future(version()))
    wake.open(str(tmp_path / "a.db"))
    close = os.close
    database = tmp_path / "b.db"
    others = []

    def close_and_open(fd: int) -> None:
        close(fd)
        monkeypatch.setattr(os, "close", close)
        assert os.open(database, os.O_RDWR | os.O_CREAT) == fd
        others.append(threading.Thread(target=wake.tell_others))
        others[0].start()
        others[0].join(0.3)  # what it does, if it need not wait for this

    monkeypatch.setattr(os, "close", close_and_open)
    descriptor = wake._fd
    wake.close()
    others[0].join()
    assert database.read_bytes() == b""
    close(descriptor)


def test_a_loop_that_was_closed_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    """A program may run one loop after the other and never let its bell go."""
    (tmp_path / "a.db").touch()

    async def version() -> int:
        return 0

    wake = Wake(lambda: asyncio.ensure_future(version()))
    wake.open(str(tmp_path / "a.db"))

    async def hang_up() -> None:
        wake.start()

    open_files = []
    for _ in range(4):
        asyncio.run(hang_up())
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(open_files)) == 1
    wake.stop()
    wake.close()
