"""A look at other threads' stacks is safe while garbage is collected, whatever finalizers of the user do.

Before Python 3.12 making a frame object may collect garbage; a finalizer gives the interpreter lock up, the thread that
is looked at goes on, and what is read next is memory of frames that are gone: a crash, or a walk without an end.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from packhorse.observe.stacks import uncollected

SCRIPT = """
import faulthandler, gc, random, threading, time
from packhorse.clock import SYSTEM_CLOCK
from packhorse.observe.profiling import Sampler, Seen
from packhorse.worker.inspector import threads

faulthandler.enable()
DONE = threading.Event()


def sized(variables):
    # A function whose frame has its own size, so that one frame never takes the exact place of another.
    names = {}
    lines = "".join(f"    v{at} = depth\\n" for at in range(variables))
    exec("def call(depth, calls, path):\\n" + lines + "    return calls[path[depth]](depth - 1, calls, path) "
         "if depth else sum(range(20))", names)
    return names["call"]


CALLS = [sized(3 * at) for at in range(12)]


class Finalized:
    def __init__(self):
        self.me = self

    def __del__(self):
        for _ in range(20 * (threading.current_thread() is threading.main_thread())):
            time.sleep(0)


def work():
    while not DONE.is_set():
        CALLS[0](20, CALLS, random.choices(range(12), k=25))


def look(mode):
    for _ in range(3):
        Finalized()
    for ident, frames in threads(0, {}):
        yield Seen(ident, "deep", [frame.f_code for frame in frames])


worker = threading.Thread(target=work)
worker.start()
gc.set_threshold(5)
profile = Sampler(look, SYSTEM_CLOCK, "cpu", 1000).run(4_000)
DONE.set()
worker.join()
print("samples", profile.samples)
"""


def test_a_profile_is_taken_while_finalizers_give_the_interpreter_lock_up(tmp_path: Path) -> None:
    script = tmp_path / "collecting.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.startswith("samples ")


@pytest.mark.parametrize("is_on", [True, False])
def test_what_the_user_set_is_kept(is_on: bool) -> None:
    assert gc.isenabled()
    try:
        if not is_on:
            gc.disable()
        with uncollected():
            assert gc.isenabled() is (is_on and sys.version_info >= (3, 12))
        assert gc.isenabled() is is_on
        with pytest.raises(ZeroDivisionError), uncollected():
            raise ZeroDivisionError
        assert gc.isenabled() is is_on
    finally:
        gc.enable()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="nothing is collected then")
def test_of_two_looks_the_first_to_end_leaves_the_other_uncollected() -> None:
    looks, ends, ended = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with uncollected():
            looks.set()
            ends.wait()
        ended.set()

    def second() -> None:
        with uncollected():
            ends.set()
            ended.wait(0.2)  # as long as the first one could take to end, if it did not have to before this began
            seen.append(gc.isenabled())

    seen: list[bool] = []
    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    looks.wait()
    threading.Timer(0.1, ends.set).start()
    other.start()
    one.join()
    other.join()
    assert seen == [False]
    assert gc.isenabled()
