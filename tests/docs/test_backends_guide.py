"""The guide "write your own backend" runs, and a package that is installed brings its scheme."""

import subprocess
import sys
from pathlib import Path

from .test_readme import ROOT, blocks, run

GUIDE = (ROOT / "docs" / "backends.md").read_text()


def test_the_guide_runs(tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text("\n\n".join(blocks(GUIDE, "python")))
    printed = run(tmp_path, [sys.executable, "-W", "error", "guide.py"])
    assert " 0 failed" in printed


def test_the_backend_of_the_guide_is_short() -> None:
    backend = blocks(GUIDE, "python")[0]
    code = [line for line in backend.splitlines() if line.strip() and "import" not in line]
    assert len(code) <= 20


def install(directory: Path, name: str, target: str, code: str) -> None:
    """Make what installing a package leaves behind: its module, and the entry point in its metadata."""
    (directory / f"{name}.py").write_text(code)
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (entry_point,) = blocks(GUIDE, "toml")
    assert entry_point.startswith('[project.entry-points."packhorse.backends"]')
    (info / "entry_points.txt").write_text(f"[packhorse.backends]\n{name} = {target}\n")


def python(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(directory)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_an_installed_package_brings_its_scheme_and_is_imported_only_then(tmp_path: Path) -> None:
    install(
        tmp_path, "counting", "counting:open_counting", blocks(GUIDE, "python")[0].replace("register_backend(", "# ")
    )
    done = python(
        tmp_path,
        "from packhorse.backends.opening import open_backend\n"
        "open_backend('memory://'); assert 'counting' not in sys.modules\n"
        "print(type(open_backend('counting://orders')).__name__)",
    )
    assert done.stdout == "CountingBackend\n", done.stderr


def test_an_installed_backend_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    install(tmp_path, "damaged", "damaged:open_it", "import a_module_that_is_not_there")
    done = python(
        tmp_path,
        "from packhorse.backends.opening import open_backend\n"
        "from packhorse.errors import ConfigurationError\n"
        "try: open_backend('damaged://u:secret@host/')\n"
        "except ConfigurationError as error: print(error)",
    )
    assert "damaged:open_it" in done.stdout, done.stderr
    assert "a_module_that_is_not_there" in done.stdout
    assert "secret" not in done.stdout
