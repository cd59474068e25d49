"""What the keeper says of a runner that it kills, where the runner has no time left to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from packhorse.clock import SYSTEM_CLOCK
from packhorse.observe.meters import Number
from packhorse.observe.stacks import Frame, Stack
from packhorse.worker.inspection import Looked
from packhorse.worker.trouble import Trouble


class Runner:
    """A runner whose loop is blocked, as its keeper has it; it answers once."""

    pid = 4711
    held: tuple[str, ...] = ()
    page_open = True
    beat_ms = 0.0

    def __init__(self) -> None:
        self.page = SimpleNamespace(pulse_ms=SYSTEM_CLOCK.boot_ms() - 60_000, holding=1, allowed_ms=1_000)
        self.inspection = self
        self.handlers: dict[tuple[str, str], str] = {}
        self.answers: list[Looked | None] = []
        self.killed = ""

    async def look(self) -> Looked | None:
        return self.answers.pop(0) if self.answers else None

    async def dump(self, *, whole: bool) -> str:
        return ""

    def stopped(self) -> bool:
        return False

    def kill(self, why: str) -> None:
        self.killed = why


def test_a_runner_that_cannot_answer_any_more_is_killed_with_the_stack_it_was_found_with() -> None:
    runner = Runner()
    stack = Stack(is_loop=True, job_id="7", job_type="match", frames=[Frame("/app/shop.py", 31, "match")])
    runner.answers = [Looked(1, [stack], [])]
    asked: list[Coroutine[Any, Any, None]] = []
    double: Any = runner
    trouble = Trouble(double, Number(), asked.append, 10)

    async def scenario() -> None:
        while not asked:
            trouble.look()
            await asyncio.sleep(0.02)
        await asked.pop()
        assert trouble.text().endswith(" in shop.py:31 match (job 7, match)")
        trouble.condemn()
        await asked.pop()

    asyncio.run(scenario())
    assert runner.killed.endswith("s in shop.py:31 match"), runner.killed
