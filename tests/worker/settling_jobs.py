"""Tasks that settle in transactions of their own, in child processes: at module level, so that a child finds them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from pathlib import Path

from packhorse import Context, Packhorse

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.owning import connect, own  # a child has no pytest to find it

app = Packhorse("memory://settling-jobs")


@app.task(executor="process", max_attempts=2, backoff=0)
def in_process(ctx: Context, kind: str, how: str) -> str:
    with closing(connect(kind, app.settings.url)) as connection:
        connection.execute("INSERT INTO effects VALUES (1)")
        ctx.then("follow_up", {})
        ctx.blocking.settle_in(connection, {"how": how})
        if how == "killed before the commit" and ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how != "left open":
            connection.commit()
        if how == "killed after the commit":
            os.kill(os.getpid(), signal.SIGKILL)
    return "ignored"


@app.task(executor="process", max_attempts=2, backoff=0)
async def in_process_async(ctx: Context, kind: str) -> None:
    async with own(kind, app.settings.url) as one:
        await one.execute("INSERT INTO effects VALUES (1)")
        await ctx.settle_in(one.raw, "async")
        await one.commit()


@app.task
async def follow_up() -> None: ...
