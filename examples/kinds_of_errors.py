"""The four ways a run can end badly, and what each means for its job.

python kinds_of_errors.py

any exception        tried again after a growing delay, until max_attempts runs are used up
Retry(delay)         tried again after just that delay; costs a run too
Snooze(delay)        too early: run later, costs nothing
Fail(reason)         no run will help: to the dead letter queue at once (so do the errors in `fail_on`)
"""

from __future__ import annotations

import asyncio

from packhorse import Context, Fail, Packhorse, Retry, Snooze

app = Packhorse("sqlite:///kinds_of_errors.db", max_attempts=3)

snoozed: set[str] = set()


@app.task(backoff="20ms", backoff_max="100ms", fail_on=KeyError)
async def fetch(page: str, ctx: Context) -> str:
    """Fetch a page from a web that exists in this example only."""
    match page:
        case "flaky" if ctx.attempt < ctx.max_attempts:
            raise ConnectionError("the line broke")  # tried again: the next run may work
        case "busy" if ctx.attempt == 1:
            raise Retry("50ms", "429: come back in 50 ms")  # the other side said when
        case "not yet" if ctx.id not in snoozed:
            snoozed.add(ctx.id)
            raise Snooze("50ms", "it is published later")  # no fault of anybody
        case "gone":
            raise Fail("410: gone for good")
        case "broken link":
            return {"home": "welcome"}[page]  # a KeyError, which `fail_on` calls permanent
        case "down":
            raise ConnectionError("no route to host")  # every time: dead after three runs
    return f"the page {page!r}"


async def main() -> None:
    """Run one job of each kind and show how it ended."""
    async with app, app.worker():
        pages = ["fine", "flaky", "busy", "not yet", "gone", "broken link", "down"]
        jobs = await app.aenqueue_many([(fetch, {"page": page}) for page in pages])
        for page, job in zip(pages, jobs, strict=True):
            try:
                how: object = await job.aresult(timeout="10s")
            except Exception as error:
                how = error
            record = await job.arecord()
            print(f"{page:12} {record.state:10} {record.attempt} run(s), {len(record.errors)} error(s): {how}")


if __name__ == "__main__":
    asyncio.run(main())
