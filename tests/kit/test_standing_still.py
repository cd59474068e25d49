"""A process that is stopped holds no lock of the file that it works on, however much it writes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.standing_still import stop_between_writes

WRITES_HALF_OF_THE_TIME = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
while True:
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (1)")
    print("writes", flush=True)
    time.sleep(0.01)
    db.execute("COMMIT")
    time.sleep(0.01)
"""


def test_a_process_is_stopped_only_while_it_does_not_write(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
        command = [sys.executable, "-c", WRITES_HALF_OF_THE_TIME, file]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"writes\n"
                for _ in range(3):
                    stop_between_writes(writer.pid, file)
                    assert Path(f"/proc/{writer.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
                    db.execute("INSERT INTO t VALUES (2)")
                    os.kill(writer.pid, signal.SIGCONT)
            finally:
                writer.kill()
