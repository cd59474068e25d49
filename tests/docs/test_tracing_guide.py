"""The guide about traces: its program and a worker of it make the trace that the guide draws."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packhorse.observe import exporting, run_spans
from packhorse.outcome import Kind

from ..cli.kit import clean_environ
from ..tracing.receiver import receiving
from .test_readme import ROOT, blocks

GUIDE = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")


def test_the_program_of_the_guide_makes_the_trace_that_it_draws(tmp_path: Path) -> None:
    (program,) = blocks(GUIDE, "python")
    with receiving() as receiver:
        assert "http://127.0.0.1:4318" in program
        (tmp_path / "jobs.py").write_text(program.replace("http://127.0.0.1:4318", receiver.url), encoding="utf-8")

        def run(*words: str) -> None:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env=clean_environ(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr

        run("jobs.py")
        run("-m", "packhorse", "worker", "jobs:app", "--burst", "-p", "1")
        send = receiver.one("send default")
        assert send.parent == receiver.one("checkout").span
        assert receiver.one("checkout").service == "shop"
        first = next(span for span in receiver.named("process default") if span.parent == send.span)
        assert first.service == "packhorse-worker"
        assert receiver.one("ask the bank").parent == first.span
        create = receiver.one("create default")
        assert create.parent == first.span
        (second,) = [span for span in receiver.named("process default") if span is not first]
        assert second.parent == create.span
        assert {span.trace for span in receiver.seen if span.name != "receive default"} == {send.trace}


def test_the_words_and_numbers_of_the_guide_are_those_of_the_code() -> None:
    words = re.sub(r"\s+", " ", GUIDE)
    assert f"{run_spans.LINKS_MAX} links at most" in words
    assert f"up to {exporting.FLUSH_S:g} s" in words
    kinds = " ".join(str(kind) for kind in Kind if kind is not Kind.SUCCEEDED)
    assert f"`{kinds}`" in words
