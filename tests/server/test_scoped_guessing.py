"""A caller for some queues who knows the id of another's job and guesses its token, a number (FAILURES C19)."""

from __future__ import annotations

from typing import Any

from packhorse.backends.base import Note, Settlement, Verdict, WorkerInfo
from packhorse.job import State

from . import test_scoped
from .test_scoped import spec

on_world = test_scoped.on_world


def test_a_guessed_token_settles_no_job_of_another_queue(on_world: Any) -> None:
    async def scenario(w: Any) -> None:
        theirs, mine = await w.add("theirs"), await w.add("mine")
        (running,) = await w.all.claim(["theirs"], 1, 30_000, "w1")
        (held,) = await w.one.claim(["mine"], 1, 30_000, "w1")
        ends = [Settlement(id=each.id, token=each.token, state=State.SUCCEEDED) for each in (running, held)]
        assert await w.one.settle(ends) == [Verdict.STALE, Verdict.APPLIED]
        assert (await w.all.get([theirs]))[0].state is State.RUNNING
        assert (await w.all.get([mine]))[0].state is State.SUCCEEDED

    on_world(scenario)


def test_a_guessed_token_writes_no_note_to_a_job_that_the_worker_does_not_hold(on_world: Any) -> None:
    async def scenario(w: Any) -> None:
        await w.all.enqueue([spec("theirs"), spec("mine")])
        (running,) = await w.all.claim(["theirs"], 1, 30_000, "w1")
        (held,) = await w.one.claim(["mine"], 1, 30_000, "w1")
        notes = [Note(id=each.id, token=each.token, progress=0.5, text="guessed") for each in (running, held)]
        pulse = await w.one.heartbeat(WorkerInfo(id="w1", started_at_ms=0), 30_000, notes)
        assert pulse.held == {held.id: held.token}
        theirs, mine = await w.all.get([running.id, held.id])
        assert (theirs.progress, theirs.progress_note) == (None, None)
        assert (mine.progress, mine.progress_note) == (0.5, "guessed")

    on_world(scenario)
