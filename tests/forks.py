"""A program that forks while its app is connected: parent and children go on, however the children end."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, os, sys
from packhorse import Packhorse

app = Packhorse(sys.argv[1])
app.enqueue("t")
app.counts()
for end in (os._exit, sys.exit):
    pid = os.fork()
    if pid == 0:
        app.enqueue("t")
        app.counts()
        gc.collect()
        end(0)  # sys.exit frees all that the interpreter can
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    app.enqueue("t")
print(app.counts()["default"].states["pending"])
app.close()
"""


def check_forks(url: str) -> None:
    """Raise AssertionError unless parent and children can both enqueue, and hear nothing of each other."""
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
