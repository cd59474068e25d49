"""Interrupts of the main thread never end the process, and a fork takes nothing of a profile along."""

from __future__ import annotations

import subprocess
import sys

import pytest

INTERRUPTED = """
import asyncio, builtins, faulthandler, gc, os, signal, sys, threading, time
from packhorse.observe import interrupts

faulthandler.enable()
interrupts.accept()
CAME = []


def spin(times):
    # Until so many interrupts came, or would have come.
    end = time.thread_time() + 0.02 * times
    while time.thread_time() < end:
        pass


asked = interrupts.Interrupts(lambda frame: CAME.append(frame.f_lineno), 200)
asked.start()
spin(10)
assert CAME
"""

#: Code of a handler, while its profile is taken.
TAKEN_BACK = """
signal.signal(interrupts.SIGNAL, signal.SIG_DFL)
spin(10)
"""

TAKEN_BACK_BY_A_LOOP = """
async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(interrupts.SIGNAL, print)
    loop.remove_signal_handler(interrupts.SIGNAL)
    spin(10)

asyncio.run(main())
"""

PYTHON_ENDS = """
class Last:
    def __del__(self, spin=spin, time=time):  # after the handlers were taken back
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass

builtins.last = [Last()]  # goes when nearly all else has gone
"""


@pytest.mark.parametrize("script", [TAKEN_BACK, TAKEN_BACK_BY_A_LOOP, PYTHON_ENDS], ids=["signal", "loop", "end"])
def test_a_timer_whose_handler_is_gone_ends_no_process(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED + script + "\nprint('lives', flush=True)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


DEEP = """
import sys, time
from packhorse.observe import interrupts
from packhorse.observe.stacks import cut, place_of, walk

interrupts.accept()
sys.setrecursionlimit(1_000)


def look(frame):
    cut(walk(frame), place_of)


def deep(depth, spent):
    if depth:
        return deep(depth - 1, spent)
    end = time.thread_time() + spent
    while time.thread_time() < end:
        pass


def stands(depth, spent):
    try:
        deep(depth, spent)
    except RecursionError:
        return False
    return True


deepest = max(depth for depth in range(900, 1_000) if stands(depth, 0))
asked = interrupts.Interrupts(look, 1_000)
asked.start()
# With no room at all there is none for the signal's handler either: that is Python's.
print([room for room in range(1, 16) if not stands(deepest - room, 0.04)])
asked.stop()
"""

FORKS = """
import gc, os, sys, threading, time
from packhorse.clock import SYSTEM_CLOCK
from packhorse.observe.profiling import Sampler, Seen
from packhorse.worker.inspector import threads

BEFORE = sys.getswitchinterval(), True
looking = threading.Event()


def look(mode):
    for ident, frames in threads(0, {}):
        yield Seen(ident, "deep", [frame.f_code for frame in frames])
    looking.set()
    time.sleep(0.01)  # the others go on within a look


sampler = Sampler(look, SYSTEM_CLOCK, "wall", 100)
profiling = threading.Thread(target=sampler.run, args=(60_000,))
profiling.start()
looking.wait()
found = set()
for _ in range(50):
    reads, writes = os.pipe()
    if os.fork() == 0:
        with __import__("packhorse.observe.stacks").observe.stacks.uncollected():
            pass  # waits for nobody
        os.write(writes, repr((sys.getswitchinterval(), gc.isenabled())).encode())
        os._exit(0)
    os.close(writes)
    found.add(os.read(reads, 100).decode())
    os.close(reads)
    os.wait()
    time.sleep(0.003)
sampler.stopped.set()
profiling.join()
assert (sys.getswitchinterval(), gc.isenabled()) == BEFORE
print(found == {repr(BEFORE)}, found)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_process_has_its_collection_and_its_interval_back() -> None:
    assert run(FORKS).startswith("True"), run(FORKS)


def test_code_near_the_bottom_of_its_stack_gets_no_error_of_an_interrupt() -> None:
    assert run(DEEP) == "[]\n"
