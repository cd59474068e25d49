"""Docs fail when they lie: links lead somewhere, snippets run, commands exist."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_architecture_exist() -> None:
    source = ROOT / "src" / "packhorse"
    for name in set(re.findall(r"`((?:\w+/)?\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())):
        assert list(source.glob(f"**/{name}")), f"ARCHITECTURE names {name}"


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?:^\$ |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} names make {target}"


@pytest.mark.parametrize("job", [None, '{"type": "report", "payload": {"a": [1, 2], "b": "c, d"}}'])
def test_make_enqueue_hands_the_job_on_whole(job: str | None) -> None:
    """A comma once ended the JSON: make reads it as the end of an argument."""
    command = ["make", "--no-print-directory", "-n", "enqueue", *([f"JOB={job}"] if job else [])]
    line = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    words = shlex.split(line)
    assert words[1] == "enqueue"
    assert json.loads(words[2]) == json.loads(job or '{"type":"math","payload":{"operation":"fibonacci","value":10}}')


def test_the_readme_programs_run(tmp_path: Path) -> None:
    """The two Python snippets and the commands after them, as a newcomer would type them."""
    jobs, producer = blocks(README, "python")[:2]
    (tmp_path / "jobs.py").write_text(jobs)
    (tmp_path / "producer.py").write_text(producer)
    run(tmp_path, [sys.executable, "producer.py"])
    environ = {**os.environ, "PACKHORSE_URL": "sqlite:///jobs.db"}
    commands = [line[2:].partition("#")[0].strip() for line in blocks(README, "console")[1].splitlines()]
    worker: subprocess.Popen[bytes] | None = None
    try:
        for command in commands:
            if command.startswith("packhorse worker"):
                worker = subprocess.Popen(
                    [sys.executable, "-m", *shlex.split(command)], cwd=tmp_path, stderr=subprocess.PIPE, env=environ
                )
            else:
                run(tmp_path, [sys.executable, "-m", *shlex.split(command)], environ)
        limit = time.monotonic() + 100
        while time.monotonic() < limit:
            out = run(tmp_path, [sys.executable, "-m", "packhorse", "stats", "--json"], environ)
            if '"succeeded": 5' in out or '"succeeded":5' in out:
                break
            time.sleep(0.2)  # between two looks, with a stated limit
        else:
            pytest.fail(f"not all jobs of the README ran: {out}")
    finally:
        if worker is not None:  # also when a later command fails: nothing is left running
            worker.terminate()
            worker.communicate(timeout=60)
    assert worker is not None
    assert worker.returncode == 0


def test_the_guide_runs(tmp_path: Path) -> None:
    """Its blocks are one program."""
    (tmp_path / "guide.py").write_text("\n\n".join(blocks((ROOT / "docs" / "guide.md").read_text(), "python")))
    run(tmp_path, [sys.executable, "-X", "dev", "-W", "error", "guide.py"])


def run(directory: Path, command: list[str], environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
