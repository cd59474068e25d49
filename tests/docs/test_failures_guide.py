"""The guide about failures: its hooks run, in a real worker, and the chat gets its message."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from packhorse.worker import options, telling

from .test_readme import ROOT, blocks

GUIDE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")


@pytest.fixture
def chat():
    """A receiver of chat messages: its URL, and what it got."""
    got: list[dict[str, str]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_hooks_of_the_guide_run_and_the_chat_hears_of_it_once(tmp_path: Path, chat) -> None:
    url, got = chat
    (tmp_path / "jobs.py").write_text("\n\n".join(blocks(GUIDE, "python")), encoding="utf-8")
    (tmp_path / "send.py").write_text("from jobs import charge\ncharge.enqueue(order=7)\n", encoding="utf-8")
    environ = {**os.environ, "CHAT_WEBHOOK": url, "PYTHONUNBUFFERED": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("send.py")
    printed = ""
    for _ in range(20):  # a burst ends while the second attempt is not due yet
        printed += run("-m", "packhorse", "worker", "jobs:app", "--burst", "-p", "1")
        if got:
            break
    assert "charge failed, attempt 1: ValueError: the bank says no" in printed
    assert "charge failed, attempt 2: ValueError: the bank says no" in printed
    assert printed.count("is in the dead letter queue") == 1
    (message,) = got
    assert "charge failed after 2 attempts: ValueError\nthe bank says no" in message["text"]


def test_the_other_snippets_are_python() -> None:
    for text in blocks(GUIDE, "python no-run"):
        compile(text, "docs/failures.md", "exec")


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    words = re.sub(r"\s+", " ", GUIDE)
    assert f"at most {telling.AT_ONCE_MAX} at once" in words
    assert f"{telling.WAITING_MAX:,} wait" in words
    assert f"may take {telling.CALL_MS_MAX // 1000} seconds" in words
    assert f"with {telling.HUNG_MAX} calls that never come back" in words
    assert f"have {options.HOOKS_MS_MAX // 1000} seconds to end" in words
    assert f"another {options.HOOKS_CLOSE_MS_MAX // 1000} to send off" in words
