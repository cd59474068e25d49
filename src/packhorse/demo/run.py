"""`packhorse demo`: real jobs, real worker processes, failures on purpose, one process killed, and the promise checked.

In order: a directory of its own → plan → worker processes → enqueue → watch, kill a runner on the way → the second
round (deletions, the report) → stop the workers → check → the account.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..chance import CHANCE, Chance
from ..clock import SYSTEM_CLOCK
from ..errors import PackhorseError
from ..job import TERMINAL, State
from ..wording import quantity
from .checking import check_all
from .display import Display
from .files import DIRECTORY_VARIABLE, standard_library, store_url
from .ledger import Entry, Ledger
from .planning import Plan, Planned, find_documents, make_plan
from .processes import CONCURRENCY, Team
from .textindex import TextIndex
from .workspace import draw_images, workspace

if TYPE_CHECKING:
    from ..app import Packhorse
    from ..backends.base import Backend

DONE, BROKEN, INTERRUPTED = 0, 1, 130

#: No demo goes on longer. The default one takes seconds.
LIMIT_MS = 300_000
_ENQUEUE_BATCH = 250
_LOOK_MS = 200


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo was asked to do. `tasks` None: a job for each file of the standard library, and the others."""

    directory: Path
    workers: int = 3
    tasks: int | None = None
    max_attempts: int = 3
    seed: int | None = None
    kill: bool = True


class Interrupted(Exception):
    """Somebody pressed Ctrl+C, or told this process to end."""


class GivenUp(Exception):
    """The demo cannot go on; the text says why."""


def run_demo(options: DemoOptions) -> int:
    """Run the demo; answers the exit code: 0 if the promise held, 1 if not or if it could not be finished, 130.

    Raises ConfigurationError for a directory that is not the demo's to use.
    """
    with workspace(options.directory.absolute()) as directory:
        os.environ[DIRECTORY_VARIABLE] = str(directory)
        os.environ["PACKHORSE_URL"] = store_url(directory)
        try:
            return asyncio.run(_run(options, directory))
        except KeyboardInterrupt:  # before the loop listened
            Display().say("Stopped before anything was started.")
            return INTERRUPTED


async def _run(options: DemoOptions, directory: Path) -> int:
    from .jobs import app  # not at the head: it reads the directory and the URL from the environment

    with Display() as display:
        show = Show(app, await app.backend(), options, directory, display)
        try:
            return await show.play()
        finally:
            await app.aclose()


class Show:
    """One run of the demo."""

    def __init__(
        self, app: Packhorse, backend: Backend, options: DemoOptions, directory: Path, display: Display
    ) -> None:
        self._app = app
        self._backend = backend
        self._options = options
        self._directory = directory
        self._display = display
        self._ledger = Ledger(backend)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started_ms = SYSTEM_CLOCK.boot_ms()
        self._ended_ms = 0
        self._total = 0
        self._team: Team | None = None
        self._killed: str | None = None

    # ---- the play --------------------------------------------------------------------------------------

    async def play(self) -> int:
        """Run all acts, stop the workers whatever happens, and tell how it went."""
        self._listen_to_signals()
        try:
            code = await self._acts_until_stopped()
        finally:
            self._ended_ms = self._elapsed_ms()
            trouble = await self._stop_team()
        return self._tell_end(trouble) if code == DONE else await self._tell_stopped(code, trouble)

    async def _acts_until_stopped(self) -> int:
        try:
            await self._acts()
        except Interrupted:
            self._display.say("Stopping: running jobs are let finish (Ctrl+C again: at once) ...")
            return INTERRUPTED
        except (GivenUp, PackhorseError) as reason:
            self._display.say(f"The demo gives up: {reason}")
            return BROKEN
        return DONE

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _acts(self) -> None:
        options = self._options
        seed = options.seed if options.seed is not None else CHANCE.below(1_000_000)
        chance = Chance(seed)
        documents = await asyncio.to_thread(find_documents, standard_library())
        if not documents:
            raise GivenUp(f"{standard_library()} holds no sources of the standard library to index")
        plan = make_plan(documents, options.tasks, options.max_attempts, chance, kill=options.kill)
        self._total = plan.total
        draw_images(self._directory, chance)
        TextIndex(self._directory / "index.db").close()
        self._team = Team(options.workers, self._directory, store_url(self._directory))
        self._display.say(
            f"{quantity(plan.total, 'job')}, seed {seed}, at most {quantity(options.max_attempts, 'run')} each. "
            f"Worker {self._team.pid}: {quantity(options.workers, 'runner process', 'runner processes')}, "
            f"{CONCURRENCY} jobs at once in each."
        )
        await self._enqueue(plan.first)
        await self._watch(plan.victim)
        await self._enqueue(self._second_round(plan))
        await self._watch(None)

    async def _enqueue(self, planned: list[Planned]) -> None:
        for start in range(0, len(planned), _ENQUEUE_BATCH):
            batch = planned[start : start + _ENQUEUE_BATCH]
            jobs = await self._app.aenqueue_many([job.item(self._options.max_attempts) for job in batch])
            self._ledger.add(batch, [job.id for job in jobs])
            self._look_out()

    def _second_round(self, plan: Plan) -> list[Planned]:
        """Delete some of the documents, and report on the rest."""
        succeeded = self._ledger.of("index_document", State.SUCCEEDED)
        failed = self._ledger.of("index_document", State.FAILED)
        # One is kept to be found by the search. Deleting what never came in is no error, so failed ones may help out.
        paths = [entry.planned.path for entry in succeeded[1:] + failed]
        jobs = [Planned(type="delete_document", payload={"path": path}) for path in paths[: plan.deletions]]
        if plan.final_report:
            jobs.append(Planned(type="report", payload={"name": "final"}))
        self._total = len(self._ledger.entries) + len(jobs)
        return jobs

    async def _watch(self, victim: Planned | None) -> None:
        """Wait until all jobs have ended; kill the runner that holds the victim when it has done its work."""
        while True:
            began_ms = SYSTEM_CLOCK.boot_ms()
            snapshot = await self._ledger.refresh()
            self._display.update(snapshot, self._total, self._elapsed_ms())
            if snapshot.done == snapshot.acknowledged:
                return
            if self._team is not None:
                self._team.look()
            if victim is not None and await self._kill_holder(victim):
                victim = None
            # With very many jobs a look takes long: never more than a tenth of the time goes into looking.
            await self._pause(max(_LOOK_MS, 9 * (SYSTEM_CLOCK.boot_ms() - began_ms)))

    async def _kill_holder(self, victim: Planned) -> bool:
        """Kill the runner between a job's work and its end; answers whether there is nothing left to do about it."""
        entry = next((entry for entry in self._ledger.entries.values() if entry.planned is victim), None)
        if entry is None or entry.record is None or entry.state is not State.RUNNING:
            return entry is not None and entry.state in TERMINAL
        if not await asyncio.to_thread(self._is_indexed, victim.path):
            return False
        holder = next((worker for worker in await self._backend.workers() if worker.id == entry.record.worker), None)
        if holder is None or self._team is None or not self._team.kill_runner(holder.pid):
            return False
        self._killed = entry.id
        self._display.say(
            f"kill -9 {holder.pid}: a runner dies after a job indexed {victim.path} and before it could say so"
        )
        return True

    def _is_indexed(self, path: str) -> bool:
        index = TextIndex(self._directory / "index.db")
        try:
            return index.has(path)
        finally:
            index.close()

    async def _pause(self, ms: int) -> None:
        self._look_out()
        try:
            async with asyncio.timeout(ms / 1000):
                await self._stop.wait()
        except TimeoutError:
            pass
        self._look_out()

    def _look_out(self) -> None:
        """Raise if the demo cannot or must not go on."""
        if self._stop.is_set():
            raise Interrupted
        code = self._team.exit_code() if self._team is not None else None
        if self._team is not None and code is not None:
            raise GivenUp(f"the worker ended with exit code {code}: {self._team.last_words()}")
        if self._elapsed_ms() > LIMIT_MS:
            raise GivenUp(f"{LIMIT_MS // 1000} s are over; give fewer --tasks or more --workers")

    def _elapsed_ms(self) -> int:
        return SYSTEM_CLOCK.boot_ms() - self._started_ms

    # ---- the end ---------------------------------------------------------------------------------------

    async def _stop_team(self) -> list[str]:
        if self._team is None:
            return []
        trouble = await self._team.stop(self._hurry)
        for line in trouble:
            self._display.say(line)
        return trouble

    async def _tell_stopped(self, code: int, trouble: list[str]) -> int:
        snapshot = await self._ledger.refresh()
        self._display.close()
        self._display.say(
            f"Stopped after {self._ended_ms / 1000:.1f} s: {snapshot.done:,} of {quantity(self._total, 'job')} done "
            f"({snapshot.states[State.SUCCEEDED]:,} succeeded, {snapshot.states[State.FAILED]:,} failed), "
            f"{snapshot.acknowledged - snapshot.done:,} wait in the queue. "
            + ("No process is left." if not trouble else "")
        )
        self._display.show_next(self._directory, store_url(self._directory))
        return code

    def _tell_end(self, trouble: list[str]) -> int:
        display, ledger = self._display, self._ledger
        snapshot = ledger.snapshot()
        display.update(snapshot, self._total, self._ended_ms, last=True)
        display.close()
        findings = check_all(ledger, self._directory, self._options.max_attempts)
        display.show_counts(ledger)
        display.say(
            f"{quantity(snapshot.done, 'job')} in {self._ended_ms / 1000:.1f} s, start of the worker included: "
            f"{snapshot.done * 1000 / max(1, self._ended_ms):,.0f} jobs/s. "
            f"Runs beyond a job's first: {snapshot.runs_again:,}. Jobs whose runner died: {snapshot.lost:,}."
        )
        display.show_recovered(ledger)
        display.show_dead_letters(ledger)
        display.show_findings(findings)
        self._tell_surprises()
        display.show_next(self._directory, store_url(self._directory))
        return DONE if findings.held and not trouble else BROKEN

    def _tell_surprises(self) -> None:
        """Say what did not break the promise and still was not planned."""
        if self._options.kill and self._killed is None:
            self._display.say("note: no runner could be killed; the job that waits for it was never caught running")
        surprises = [entry for entry in self._ledger.in_state(State.FAILED) if not _was_doomed(entry)]
        if surprises:
            self._display.say(f"note: {quantity(len(surprises), 'job')} failed that should not; the errors are above")


def _was_doomed(entry: Entry) -> bool:
    record = entry.record
    return bool(entry.planned.doomed) or (
        entry.lapses > 0 and record is not None and record.attempt >= record.max_attempts
    )
