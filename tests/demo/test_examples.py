"""The programs in examples/ run as they are, from any directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

SAYS = {
    "quickstart.py": ["enqueued ", "succeeded: Hello Ada! Hello Ada!"],
    "async_service.py": ["3 apple: sold\n", "5 pear: sold out", "1 plum: sold out"],
    "kinds_of_errors.py": [
        "flaky        succeeded  3 run(s), 2 error(s)",
        "busy         succeeded  2 run(s), 1 error(s)",
        "not yet      succeeded  1 run(s), 0 error(s)",
        "gone         failed     1 run(s), 1 error(s)",
        "broken link  failed     1 run(s), 1 error(s)",
        "down         failed     3 run(s), 3 error(s)",
    ],
}


def test_every_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example(name: str, tmp_path: Path) -> None:
    for _ in range(2):  # a second time, on the file the first has left
        ran = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / name)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
        assert not [line for line in SAYS[name] if line not in ran.stdout], ran.stdout
