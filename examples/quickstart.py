"""The shortest whole program: a task, a job, a worker.

    python quickstart.py

The job is in the file quickstart.db before `enqueue` returns. Here the same program works it off; in earnest a worker
of its own does, started with

    packhorse worker quickstart:app
"""

from __future__ import annotations

import asyncio

from packhorse import Packhorse

app = Packhorse("sqlite:///quickstart.db")


@app.task
def greet(name: str, times: int = 1) -> str:
    """Greet somebody."""
    return " ".join([f"Hello {name}!"] * times)


async def work() -> None:
    """Run jobs until none is left."""
    async with app:
        await app.worker(burst=True).run()


if __name__ == "__main__":
    job = greet.enqueue("Ada", times=2)
    print(f"enqueued {job.id}")
    asyncio.run(work())
    print(f"{job.state}: {job.result(timeout=5)}")
