"""Every curl in the pages runs, against a real server, and its answer has the shape of the JSON that follows it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.server.access import LOCAL
from packhorse.server.app import make_application
from packhorse.server.net.running import serving
from packhorse.server.service import Service

from ..server.kit import admitting
from ..servers import missing
from ..worker.working import new_app, work

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/http.md", "docs/workers-over-http.md"]

#: What the pages call the server.
_ADDRESS = "localhost:8080"
_PLAIN_WORD = re.compile(r"[^0-9…]+")


def examples(text: str) -> Iterator[tuple[str, str | None]]:
    """Answer each shell block with curl in it, and the block of JSON that follows, if the next block is one."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    for (language, block), (next_language, next_block) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "sh" and "curl" in block:
            yield block, next_block if next_language == "json" else None


def differences(shown: Any, found: Any, place: str = "$") -> Iterator[str]:
    """Answer where an answer is not of the shape that a page shows.

    Keys are the same, unless the page shows "…" among them; texts without digits are the same; else the types are, and
    null stands for anything.
    """
    if shown is None or found is None:
        return
    if isinstance(shown, dict) and isinstance(found, dict):
        missed = shown.keys() - found.keys() - {"…"}
        if missed or ("…" not in shown and found.keys() - shown.keys()):
            yield f"{place} has {sorted(found)}, the page shows {sorted(shown)}"
        for key in shown.keys() & found.keys():
            yield from differences(shown[key], found[key], f"{place}.{key}")
    elif isinstance(shown, list) and isinstance(found, list):
        if shown and not found:
            yield f"{place} is empty"
        for number, item in enumerate(found if shown else []):
            yield from differences(shown[min(number, len(shown) - 1)], item, f"{place}[{number}]")
    elif isinstance(shown, str) and isinstance(found, str):
        if _PLAIN_WORD.fullmatch(shown) and shown != found:
            yield f"{place} is {found!r}, the page shows {shown!r}"
    elif isinstance(shown, bool) != isinstance(found, bool) or not (
        isinstance(shown, int | float) and isinstance(found, int | float)
    ):
        yield f"{place} is {found!r}, the page shows {shown!r}"


def names_of(answer: Any) -> dict[str, str]:
    """Answer what the pages call $ID and $TOKEN after this answer: of its first job."""
    if isinstance(answer, dict) and (held := answer.get("jobs") or answer.get("items")):
        answer = held[0]
    if not isinstance(answer, dict):
        return {}
    found = {"ID": answer.get("job_id") or answer.get("id"), "TOKEN": answer.get("token")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


@pytest.mark.parametrize("page", PAGES)
def test_the_curl_examples_of_a_page_work(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    found = list(examples(text))
    assert found, f"{page} has no example with curl"
    if shutil.which("curl") is None:
        missing("curl is needed for this test; make setup installs it on Debian")

    async def scenario() -> None:
        app = new_app()

        @app.task
        def report(month: str) -> int:
            """Sum a month up."""
            return 42

        service = Service(app)
        service.start()
        names = {"ID": "none", "TOKEN": "none"}
        async with serving(make_application(service, admitting(LOCAL)), stopping=service.stopping) as url:
            for block, shown in found:
                answer = await _run(block.replace(_ADDRESS, url.removeprefix("http://")), names, tmp_path)
                try:
                    value = json.loads(answer) if answer else None
                except ValueError:
                    pytest.fail(f"{block}\nanswered {answer!r}")
                if shown is not None:
                    assert not list(differences(json.loads(shown), value)), f"{block}\nanswered\n{answer}"
                names |= names_of(value)
        await service.close()

    work(scenario, limit_s=100)


async def _run(block: str, names: dict[str, str], directory: Path) -> str:
    """Run a block as a newcomer would type it; answers what its last command printed."""
    shell = await asyncio.create_subprocess_exec(
        "sh",
        "-eu",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env={"PATH": os.environ["PATH"], **names},
    )
    out, complaints = await asyncio.wait_for(shell.communicate(block.encode()), 60)
    assert shell.returncode == 0, f"{block}\n{complaints.decode()}"
    return out.decode().strip()


@pytest.mark.parametrize(
    ("shown", "found", "is_alike"),
    [
        ({"a": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, True),
        ({"a": 1, "…": "…"}, {"b": 2}, False),
        ({"status": "PENDING"}, {"status": "DONE"}, False),
        ({"id": "01a2…"}, {"id": "ffff"}, True),
        ([{"a": 1}], [], False),
        ([], [], True),
        ([{"a": 1}], [{"a": "x"}], False),
        ({"a": True}, {"a": 1}, False),
        ({"a": None}, {"a": "x"}, True),
    ],
)
def test_the_comparison_sees_what_differs(shown: Any, found: Any, is_alike: bool) -> None:
    assert (not list(differences(shown, found))) is is_alike
