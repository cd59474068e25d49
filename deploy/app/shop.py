"""Something to look at: a small shop that gives itself work, now and then slow, now and then failing.

packhorse worker shop:app
"""

from __future__ import annotations

import asyncio
import logging

from packhorse import Context, Packhorse, Retry

app = Packhorse()  # the store is in PACKHORSE_URL
log = logging.getLogger("shop")


@app.task(timeout="30s", max_attempts=4)
async def send_email(ctx: Context, number: int) -> str:
    """Send a mail. One in ten meets a server that is away, and is sent again."""
    await asyncio.sleep(0.02 + number % 7 * 0.01)
    if number % 10 == 0 and ctx.attempt == 1:
        raise Retry("2s", reason="the mail server is away")
    return f"mail {number} sent"


@app.task(timeout="1m", max_attempts=2)
def resize(number: int) -> int:
    """Work for a while, in a thread."""
    return sum(range(200_000 + number % 10 * 100_000))


@app.task(timeout="10s", max_attempts=1)
async def charge(ctx: Context, number: int) -> None:
    """Charge a card, then confirm it by mail. One in fifty is refused for good."""
    if number % 50 == 0:
        raise ValueError("the card was refused")
    ctx.then(send_email, {"number": number})


@app.schedule(every="5s")
@app.task(timeout="5s")
async def customers_come() -> None:
    """Give the shop something to do."""
    minute = int(asyncio.get_running_loop().time() // 5)
    jobs = [charge.job(number=minute * 10 + place) for place in range(10)]
    jobs += [resize.job(number=place) for place in range(minute % 5)]
    await app.aenqueue_many(jobs)
    log.info("%d jobs for the shop", len(jobs))
