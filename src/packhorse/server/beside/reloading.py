"""`packhorse dev`: a server and its worker that start anew when the code changes.

This process never imports the app, so no mistake in it can end it: it looks at the files, and a child does the rest.
What was saved is first imported by a process of its own; only what can be imported takes the place of what runs.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from .child import Child
from .trying import trouble_of

#: How often files are looked at, and how long they must be still before they count as saved.
_LOOK_S = 0.3
_STILL_S = 0.1
#: Entries of directories that one look goes through; in a larger tree the rest is not watched.
ENTRIES_MAX = 50_000
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})

Stamp = tuple[int, int]


class Sources:
    """Some Python files, those below some directories, and what became of them since the last look."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [root for root in roots if not any(other in root.parents for other in roots)]
        self.cut = False  # there was more than one look goes through
        self._seen = self._look()

    def __len__(self) -> int:
        return len(self._seen)

    def changed(self) -> list[Path]:
        """Answer the files that are new, gone or other than at the last call."""
        before, self._seen = self._seen, self._look()
        paths = {path for path, _ in before.items() ^ self._seen.items()}
        return sorted(Path(path) for path in paths)

    def _look(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        left = ENTRIES_MAX
        waiting = [str(root) for root in self.roots if not root.is_file()]
        for file in self.roots:
            with suppress(OSError):
                if file.is_file():
                    stat = file.stat()
                    found[str(file)] = (stat.st_mtime_ns, stat.st_size)
        while waiting:
            for entry in _entries(waiting.pop()):
                left -= 1
                if left < 0:
                    self.cut = True
                    return found
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and entry.name not in _SKIPPED:
                            waiting.append(entry.path)
                    elif entry.name.endswith(".py"):
                        stat = entry.stat()
                        found[entry.path] = (stat.st_mtime_ns, stat.st_size)
                except OSError:  # gone meanwhile, or a link to nowhere
                    continue
        return found


def _entries(directory: str) -> list[os.DirEntry[str]]:
    """Answer what is in a directory; nothing, where it is gone, closed to us, or a virtual environment."""
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except OSError:
        return []
    return [] if any(entry.name == "pyvenv.cfg" for entry in found) else found


def roots_of(app: str) -> list[Path]:
    """Answer where the code of `module:attribute` is: below this directory, and where its package is."""
    roots = [Path.cwd()]
    top = app.partition(":")[0].partition(".")[0]
    sys.path.insert(0, str(roots[0]))
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: nothing is imported
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.pop(0)
    if spec is not None and spec.submodule_search_locations:
        roots += [Path(place).resolve() for place in spec.submodule_search_locations]
    elif spec is not None and spec.origin and spec.origin.endswith(".py"):
        roots.append(Path(spec.origin).resolve())  # a single module: not all that happens to lie beside it
    return list(dict.fromkeys(roots))


def broken(paths: Iterable[Path]) -> str | None:
    """Answer where the first of these files is no Python, in one line; None where all are, or are gone."""
    for path in paths:
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            return f"{path.name}:{error.lineno}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{path.name}: {error}"
        except OSError:
            continue
    return None


class Reloader:
    """Keeps one child at work, and starts it anew when a file changes."""

    def __init__(
        self,
        app: str,
        arguments: Sequence[str],
        sources: Sources,
        patience_ms: int,
        say: Callable[[str], None],
        url: str | None = None,
    ) -> None:
        """Take the app as `module:attribute`, and the child's arguments.

        Apart from them stands its `--url`, which may have a password in it.
        """
        self._app = app
        self._arguments = list(arguments)
        self._url = url
        self._sources = sources
        self._patience_ms = patience_ms
        self._say = say
        self._told = asyncio.Event()  # to stop
        self._child: Child | None = None

    async def run(self) -> int:
        """Work until told to stop; answers the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        while not self._told.is_set():
            self._child = Child(self._arguments, self._url)
            changed = await self._next_change()
            if changed:
                self._say(f"{_names(changed)} changed; starting anew")
            await self._child.stop(self._patience_ms)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return 0

    def _on_signal(self) -> None:
        if self._told.is_set() and self._child is not None:
            self._child.tell()  # a second time: hurry
        self._told.set()

    async def _next_change(self) -> list[Path]:
        """Wait until files were saved that can be run, or for the end; then answers none."""
        assert self._child is not None
        ended = False
        saved: set[Path] = set()
        while not await self._pause(_LOOK_S):
            if not ended and self._child.ended:
                ended = True
                self._say("the server has ended; save a file to start it again")
            if not await self._saved(saved):
                continue
            trouble = await self._trouble(saved)
            if self._told.is_set():
                break
            if not trouble:
                return sorted(saved)
            for line in trouble[:-1]:
                self._say(line)
            stays = "save again to start" if self._child.ended else "what runs stays as it was; save again"
            self._say(f"{trouble[-1]}; {stays}")
        return []

    async def _trouble(self, saved: set[Path]) -> list[str]:
        """Answer in lines what keeps the app from running; none if nothing does.

        What is saved meanwhile joins `saved`, and the question is asked anew. Ends soon when told to stop.
        """
        while True:
            found = await asyncio.to_thread(broken, sorted(saved))
            if found is not None:
                return [found]
            trial = asyncio.create_task(trouble_of(self._app, self._sources.roots))
            try:
                while not await self._saved(saved):
                    await asyncio.wait([trial], timeout=_LOOK_S)
                    if trial.done():
                        return await trial
                    if self._told.is_set():
                        return []
            finally:
                trial.cancel()
                await asyncio.wait([trial])

    async def _saved(self, saved: set[Path]) -> bool:
        """Add what has changed since the last look to `saved`; answers whether anything has."""
        changed = await asyncio.to_thread(self._sources.changed)
        if not changed:
            return False
        saved.update(changed)
        while more := await self._still():
            saved.update(more)
        return True

    async def _still(self) -> list[Path]:
        """Answer what has changed since a moment ago: editors write a file in several steps."""
        await self._pause(_STILL_S)
        return await asyncio.to_thread(self._sources.changed)

    async def _pause(self, seconds: float) -> bool:
        """Wait; answers whether we were told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return False
        return True


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more
