"""Whether an app can be imported, tried in a process of its own: what it does there touches nothing that runs.

That process is `python -m packhorse.server.beside.trying FD APP ROOT...`. It says what it found as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

#: Frames of the user's code that are shown, the innermost ones, and characters of the error.
_FRAMES_MAX = 3
_TEXT_CHARS_MAX = 500


async def trouble_of(app: str, roots: Sequence[Path]) -> list[str]:
    """Answer in short lines why `module:attribute` cannot be imported, the error last; none if it can.

    The lines before the error are frames of code below `roots`. It takes as long as the import; cancelled, it ends it.
    """
    theirs, leash = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(theirs), app, *map(str, roots)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what the app prints is seen where it runs
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except BaseException:
        os.close(leash)
        raise
    finally:
        os.close(theirs)
    assert process.stdout is not None
    try:
        found = await process.stdout.readline()
        if found:
            return list(json.loads(found))
        code = await process.wait()
        return [f"{app} ends the program when it is imported (exit code {code})"]
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and what the import started
            await process.wait()
        os.close(leash)


def _main(leash: int, app: str, roots: Sequence[str]) -> None:
    from ...leash import hold

    verdict = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    hold(leash)
    sys.argv[:] = ["packhorse"]
    sys.path.insert(0, str(Path.cwd()))
    verdict.write(json.dumps(_trouble(app, [Path(root) for root in roots])) + "\n")
    verdict.flush()
    os._exit(0)  # threads that the app started are not waited for


def _trouble(app: str, roots: Sequence[Path]) -> list[str]:
    from ...errors import ConfigurationError
    from ...worker.importing import import_app, own_traceback

    try:
        import_app(app)
    except BaseException as error:  # user code: importing it may raise anything
        said = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
        return [*_frames(own_traceback(error), roots), said[:_TEXT_CHARS_MAX]]
    return []


def _frames(trace: TracebackType | None, roots: Sequence[Path]) -> list[str]:
    """Answer the innermost frames of the user's own code: `jobs.py:3: import shop`."""
    import traceback

    own = [frame for frame in traceback.extract_tb(trace) if _is_own(Path(frame.filename), roots)]
    return [
        f"{Path(frame.filename).name}:{frame.lineno}: {(frame.line or '')[:_TEXT_CHARS_MAX]}"
        for frame in own[-_FRAMES_MAX:]
    ]


def _is_own(file: Path, roots: Sequence[Path]) -> bool:
    installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return not installed and any(file == root or root in file.parents for root in roots)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
