"""A `packhorse serve` in a process of its own, to be killed and started again on the same port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from scripts.servers import free_port

#: How long a server may take to say that it serves, on a busy machine.
START_S = 60.0


class ServerProcess:
    """Serves the store at `store_url`. Only what was started here is ever signalled."""

    def __init__(self, directory: Path, store_url: str, **environ: str) -> None:
        self._directory = directory
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PACKHORSE_")},
            "PACKHORSE_URL": store_url,
            "PYTHONUNBUFFERED": "1",
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / f"serve-{time.monotonic_ns()}.log"
        self.port = free_port()  # one that nobody else gets while the server is away
        self.url = ""

    def start(self) -> Self:
        """Start it, on the same port as before, and wait until it serves."""
        began = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packhorse", "serve", "--port", str(self.port)],
                cwd=self._directory,
                env=self._environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        limit = time.monotonic() + START_S
        while time.monotonic() < limit:
            for word in self._log.read_bytes()[began:].decode(errors="replace").split():
                if word.startswith("http://"):
                    self.url = word.rstrip("/,.")
                    self.port = urlsplit(self.url).port or 0
                    return self
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"the server did not start: {self._log.read_text()}")

    def kill(self) -> None:
        """End it as a power cut would: no handler runs."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it politely."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
