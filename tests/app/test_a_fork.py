"""After `os.fork` the child has the app but none of its threads: it connects anew and never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from packhorse import Packhorse

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Newer Pythons warn where threads exist at a fork: that they do is the point here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def in_child(work) -> int:
    """Run `work` in a forked child; answers its exit code, or kills it after 20 s."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    timer = threading.Timer(20, os.kill, (pid, signal.SIGKILL))
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
