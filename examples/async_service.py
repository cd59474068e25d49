"""An asyncio program that enqueues jobs and works them off beside its other tasks, with one store for all.

    python async_service.py

Many requests come in at once; each becomes a job and waits for its result without a thread. The handlers share a
resource that is opened once for the worker (the lifespan) and given to them by its type.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from packhorse import Context, Packhorse

app = Packhorse("sqlite:///async_service.db")


class Stock:
    """What the handlers share: here a dictionary, in your program a pool of connections."""

    def __init__(self) -> None:
        self.left = {"apple": 7, "pear": 2}

    async def take(self, fruit: str, count: int) -> bool:
        """Take `count` of a fruit, if there are as many."""
        await asyncio.sleep(0.01)  # as if it was far away
        if self.left.get(fruit, 0) < count:
            return False
        self.left[fruit] -= count
        return True


@app.lifespan
async def open_stock(app: Packhorse) -> AsyncIterator[Stock]:
    """Open what all handlers of this worker share."""
    yield Stock()


def shared_stock(ctx: Context) -> Stock:
    """Answer what the lifespan opened."""
    stock: Stock = ctx.state
    return stock


app.provide(Stock, shared_stock)


@app.task(timeout="5s")
async def order(fruit: str, count: int, stock: Stock) -> str:
    """Take fruit from the stock."""
    return f"{count} {fruit}: {'sold' if await stock.take(fruit, count) else 'sold out'}"


async def request(fruit: str, count: int) -> str:
    """Answer one request: a job, and its result."""
    job = await app.aenqueue(order, {"fruit": fruit, "count": count})
    answer: str = await job.aresult(timeout="10s")
    return answer


async def main() -> None:
    """Serve some requests at once."""
    async with app, app.worker(concurrency=10):
        wishes = [("apple", 3), ("pear", 1), ("apple", 2), ("pear", 5), ("plum", 1)]
        for answer in await asyncio.gather(*[request(fruit, count) for fruit, count in wishes]):
            print(answer)


if __name__ == "__main__":
    asyncio.run(main())
