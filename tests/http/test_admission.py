"""A worker that may not work says so and ends; it does not try for ever."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from packhorse import Packhorse
from packhorse.errors import ConfigurationError

from .kit import served

READ = "read-0123456789abcdefghij"
MAIL = "mail-0123456789abcdefghij"
TOKENS = [f"read:{READ}", f"work@mail:{MAIL}"]
APP = """
from packhorse import Packhorse

app = Packhorse()

@app.task("nap")
async def nap() -> None: ...
"""


def with_token(url: str, token: str) -> str:
    return url.replace("http://", f"http://:{token}@")


async def run_worker(directory: Path, url: str, *options: str) -> tuple[int, str]:
    """Run `packhorse worker` until it ends by itself; answers its exit code and what it wrote."""
    (directory / "naps.py").write_text(APP)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "packhorse", "worker", "naps", "--url", url, *options),
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith("PACKHORSE_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize(
    ("token", "options", "says"),
    [
        (READ, (), "use a token of role work"),
        (READ, ("--burst", "-p", "2"), "use a token of role work"),
        (MAIL, ("-q", "mail,default"), "a token of role work that is for all its queues"),
        ("wrong-0123456789abcdefghij", (), "refuses the token"),
    ],
    ids=["read", "read-burst", "another-queue", "wrong"],
)
def test_a_worker_whose_token_may_not_work_ends_with_one_line_that_says_what_to_do(
    tmp_path: Path, token: str, options: tuple[str, ...], says: str
) -> None:
    async def main() -> None:
        async with served(tokens=TOKENS) as url:
            code, output = await run_worker(tmp_path, with_token(url, token), *options)
        assert code == 2, output
        [line] = [line for line in output.splitlines() if "cannot" in line]
        assert "the worker cannot start" in line
        assert says in line
        assert token not in output
        assert "trying again" not in output

    asyncio.run(main())


def test_a_worker_whose_token_is_for_its_queue_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tokens=TOKENS) as url:
            app = Packhorse(with_token(url, MAIL))
            job = await app.aenqueue("nap", {}, queue="mail")
            code, output = await run_worker(tmp_path, with_token(url, MAIL), "-q", "mail", "--burst")
            assert code == 0, output
            assert (await job.arecord()).state == "succeeded"
            await app.aclose()

    asyncio.run(main())


def test_a_worker_inside_a_program_does_not_start_either() -> None:
    async def main() -> None:
        async with served(tokens=TOKENS) as url:
            for token, says in ((READ, "right to work"), (MAIL, "role work that is for all its queues")):
                app = Packhorse(with_token(url, token))
                with pytest.raises(ConfigurationError, match=says):
                    await app.worker().start()
                await app.aclose()

    asyncio.run(main())
