"""After `os.fork` the child has the app but none of its threads: it connects anew and never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import count
from typing import Any

import pytest

from packhorse import Packhorse
from packhorse.clock import SYSTEM_CLOCK, ManualClock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Newer Pythons warn where threads exist at a fork: that they do is the point here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def in_child(work) -> int:
    """Run `work` in a forked child; answers its exit code, or kills it after a minute."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    timer = threading.Timer(60, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        timer.cancel()
        timer.join()


def test_a_forked_child_enqueues_on_its_own(app):
    @app.task
    def add(a: int) -> int:
        return a

    first = add.enqueue(1)

    def work():
        assert add.enqueue(2).created
        assert app.job(first.id).record().payload == b'{"a":1}'  # memory: its copy of the parent's jobs

    assert in_child(work) == 0
    assert add.enqueue(3).created
    assert app.counts()["default"].states == {"pending": 2}


def test_a_child_forked_while_threads_enqueue_does_not_hang(app):
    """The lock of the background thread may be held at the moment of the fork, by a thread the child does not have."""
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            app.portal.call(_nothing())

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert [in_child(lambda: app.portal.call(_nothing())) for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def _nothing() -> None:
    """Do nothing, on the background loop."""


class SlowInAMove(ManualClock):
    """A clock that takes long for whoever asks it in the middle of a move: with the lock of the store."""

    def __init__(self, thread: str) -> None:
        super().__init__(SYSTEM_CLOCK.now_ms())
        self.thread = thread
        self.in_a_move = lambda: False
        self.asked = threading.Event()

    def now_ms(self) -> int:
        if threading.current_thread().name == self.thread and not self.asked.is_set() and self.in_a_move():
            self.asked.set()
            time.sleep(0.3)
        return super().now_ms()


_numbers = count()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_child_forked_in_the_middle_of_a_move_enqueues_all_the_same(kind, tmp_path):
    """Another thread of the parent holds the store's lock then, and nobody in the child would let it go."""
    clock = SlowInAMove("packhorse-portal" if kind == "memory" else "packhorse-sqlite-writer")
    url = f"memory://fork-{next(_numbers)}" if kind == "memory" else f"sqlite:///{tmp_path}/jobs.db?busy_timeout=20s"
    with Packhorse(url, clock=clock) as app:
        app.enqueue("a")
        (backend,) = app._backends.values()
        store: Any = backend.inner
        clock.in_a_move = store.store.lock.locked if kind == "memory" else lambda: store._engine._db.in_transaction
        thread = threading.Thread(target=app.enqueue, args=("b",))
        thread.start()
        assert clock.asked.wait(60)
        exit_code = in_child(lambda: app.enqueue("c").record())
        thread.join()
        assert exit_code == 0
        assert app.counts()["default"].states == {"pending": 2 if kind == "memory" else 3}


@pytest.mark.parametrize("first", ["parent", "child"])
def test_what_one_enqueues_after_the_other_has_closed_is_in_the_store(first, tmp_path):
    """SQLite in a child that inherits a connection takes no locks, and the WAL goes with who closes first."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    app = Packhorse(url)
    app.enqueue("a")
    app.counts()  # the reader has a connection of its own
    (to_read, to_write), (told_read, told_write) = os.pipe(), os.pipe()

    def close() -> None:
        app.close()
        os.write(told_write, b"x")

    def go_on() -> None:
        os.read(told_read, 1)
        for _ in range(5):
            app.enqueue("c")

    def work():
        app.enqueue("b")
        os.write(to_write, b"x")
        go_on() if first == "parent" else close()

    thread = threading.Thread(target=lambda: (os.read(to_read, 1), close() if first == "parent" else go_on()))
    thread.start()
    assert in_child(work) == 0
    thread.join()
    app.close()
    for end in (to_read, to_write, told_read, told_write):
        os.close(end)
    looks = f"from packhorse import Packhorse; print(Packhorse({url!r}).counts()['default'].states['pending'])"
    looked = subprocess.run([sys.executable, "-c", looks], capture_output=True, text=True, check=True)
    assert looked.stdout == "7\n"


def test_ids_made_in_a_child_are_its_own(app):
    reader, writer = os.pipe()

    def work():
        os.write(writer, "".join(app.chance.ids(0, 3)).encode())

    assert in_child(work) == 0
    ours = app.chance.ids(0, 3)
    theirs = os.read(reader, 1_000).decode()
    os.close(reader)
    os.close(writer)
    assert not any(job_id in theirs for job_id in ours)


def test_a_child_runs_a_worker_of_its_own_even_if_the_parent_ran_one(app):
    """The copy of a runner that a handler made by a fork ends; a program that forks and then works does not."""

    @app.task
    def add(a: int) -> int:
        return a + 1

    @app.task
    async def add_on_loop(a: int) -> int:
        return a + 1

    from packhorse.testing import drain

    add.enqueue(1)
    drain(app)  # from here on the worker's code is loaded

    def work():
        jobs = [add.enqueue(2), add_on_loop.enqueue(2)]
        drain(app)
        assert [job.result(timeout=60) for job in jobs] == [3, 3]
        os.write(writer, b"all of it ran")

    reader, writer = os.pipe()
    assert in_child(work) == 0
    os.close(writer)
    assert os.read(reader, 100) == b"all of it ran"
    os.close(reader)


def test_a_child_of_a_sqlite_program_enqueues_into_the_same_file(tmp_path):
    with Packhorse(f"sqlite:///{tmp_path}/jobs.db") as app:
        first = app.enqueue("a")
        assert in_child(lambda: app.enqueue("b").record()) == 0
        assert app.counts()["default"].states == {"pending": 2}
        assert first.record().type == "a"


def test_a_child_that_exits_as_programs_do_leaves_the_parent_alone(tmp_path):
    """FAILURES A, SQLite: the exit of a child must not close what it inherited, and must not wait for it either."""
    program = textwrap.dedent(
        f"""
        import os, sys
        from packhorse import Packhorse
        app = Packhorse("sqlite:///{tmp_path}/jobs.db")
        app.enqueue("a")
        pid = os.fork()
        if pid == 0:
            app.enqueue("b")
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for _ in range(20):
            app.enqueue("c")
        print(app.counts()["default"].states)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "22" in done.stdout
