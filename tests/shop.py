"""An app on a SQLite file that has a table of the user's own too, and connections to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from packhorse import Packhorse
from packhorse.backends.base import QueueChange


@contextmanager
def open_shop(directory: Path) -> Iterator[Packhorse]:
    """Make the file, and an app with a task to enqueue."""
    with Packhorse(f"sqlite:///{directory / 'jobs.db'}") as app:

        @app.task
        def ship(order: int) -> None: ...

        app.counts()  # makes the file, before anybody connects to it
        with closing(connect(app)) as db:
            db.execute("CREATE TABLE orders (id INTEGER, note TEXT)")
        yield app


def connect(app: Packhorse, **options) -> sqlite3.Connection:
    """Connect as a user would, in autocommit mode unless told otherwise."""
    return sqlite3.connect(app.settings.url.removeprefix("sqlite:///"), **{"isolation_level": None, **options})


def stored(app: Packhorse) -> int:
    """How many jobs there are."""
    return sum(sum(queue.states.values()) for queue in app.counts().values())


def orders(app: Packhorse) -> list[int]:
    with closing(connect(app)) as db:
        return [number for (number,) in db.execute("SELECT id FROM orders ORDER BY id")]


def set_capacity(app: Packhorse, queue: str, capacity: int) -> None:
    async def change() -> None:
        await (await app.backend()).queues([QueueChange(queue=queue, capacity=capacity)])

    app.portal.call(change())
