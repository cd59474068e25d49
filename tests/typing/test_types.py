"""The public types hold what they promise: good.py passes `mypy --strict`, each file of bad/ does not (STYLE 13)."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("mypy")

HERE = Path(__file__).parent
_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[int, set[str]]]:
    """The errors of one run of mypy over all files: file → line → codes."""
    files = [HERE / "good.py", *sorted((HERE / "bad").glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--hide-error-context", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=HERE.parents[1],
        check=False,
    )
    errors: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in done.stdout.splitlines():
        match = _ERROR.match(line)
        if match is not None:
            errors[Path(match["file"]).name][int(match["line"])].add(match["code"])
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    assert done.stdout.strip(), done.stderr
    return errors


def test_what_a_typed_program_may_write_passes(found):
    assert {line: sorted(codes) for line, codes in found["good.py"].items()} == {}


@pytest.mark.parametrize("path", sorted((HERE / "bad").glob("*.py")), ids=lambda path: path.stem)
def test_what_must_not_pass_is_refused_in_the_line_that_says_so(found, path):
    wanted = {
        number: set(re.findall(r"[a-z-]+", line.partition("# error:")[2]))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# error:" in line
    }
    assert wanted, "say in the file where the error is: # error: code"
    assert found[path.name].keys() == wanted.keys()
    for number, codes in wanted.items():
        assert found[path.name][number] & codes, (found[path.name][number], codes)
