"""What is particular to `app.transaction` on SQLite: the ways of sqlite3 and SQLAlchemy, locks, and waking."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from packhorse import (
    InvalidOption,
    Packhorse,
    QueueFull,
    Unavailable,
    UnknownParent,
    chain,
)
from packhorse.job import State
from tests.shop import connect, open_shop, orders, set_capacity, stored


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Packhorse]:
    with open_shop(tmp_path) as app:
        yield app


@pytest.fixture
def db(app: Packhorse) -> Iterator[sqlite3.Connection]:
    with closing(connect(app)) as connection:
        yield connection


# ---- the ways of sqlite3 -----------------------------------------------------------------------------------


def test_without_a_transaction_that_the_caller_could_commit_it_is_refused(app, db):
    with app.transaction(db) as tx, pytest.raises(InvalidOption, match="BEGIN IMMEDIATE"):
        tx.enqueue("ship", {"order": 1})
    assert stored(app) == 0


@pytest.mark.parametrize("level", ["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
@pytest.mark.parametrize("commits", [True, False])
def test_a_connection_that_begins_by_itself_begins_here_too(app, level, commits):
    with closing(connect(app, isolation_level=level)) as db:
        with app.transaction(db) as tx:
            tx.enqueue("ship", {"order": 1})
        assert db.in_transaction
        db.execute("INSERT INTO orders VALUES (1, '')")
        (db.commit if commits else db.rollback)()
    assert stored(app) == commits
    assert orders(app) == [1] * commits


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute autocommit is new in Python 3.12")
def test_the_attribute_autocommit(app):
    with closing(connect(app, autocommit=True)) as db, app.transaction(db) as tx:
        with pytest.raises(InvalidOption):
            tx.enqueue("ship", {"order": 1})
        db.execute("BEGIN")
        tx.enqueue("ship", {"order": 1})
        db.execute("COMMIT")
    with closing(connect(app, autocommit=False)) as db, app.transaction(db) as tx:
        tx.enqueue("ship", {"order": 2})
        db.rollback()
        tx.enqueue("ship", {"order": 3})
        db.commit()
    assert stored(app) == 2


def test_the_attribute_autocommit_goes_before_the_isolation_level(app):
    class Modern(sqlite3.Connection):
        autocommit = True  # as Python 3.12 has it

    with closing(connect(app, isolation_level="", factory=Modern)) as db, app.transaction(db) as tx:
        with pytest.raises(InvalidOption):
            tx.enqueue("ship", {"order": 1})
        assert not db.in_transaction


def test_factories_of_the_connection_stay_the_callers(app, db):
    ship = app.tasks["ship"]
    ship.using(unique="k").enqueue(0)

    def as_dict(cursor: sqlite3.Cursor, row: tuple) -> dict:
        return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    for row_factory in (sqlite3.Row, as_dict):
        db.row_factory, db.text_factory = row_factory, bytes
        db.execute("BEGIN IMMEDIATE")
        with app.transaction(db):
            assert not ship.using(unique="k", meta={"a": "ö"}).enqueue(1).created
            app.workflow(chain(ship.using(key="ü").job(1), ship.job(2))).enqueue()
            with pytest.raises(UnknownParent):
                ship.using(after=["nobody"]).enqueue(1)
        assert (db.row_factory, db.text_factory) == (row_factory, bytes)
        assert db.execute("SELECT 'x' AS x").fetchone()["x"] == b"x"
        db.execute("COMMIT")
    assert stored(app) == 5


def test_a_transaction_that_only_read_is_told_what_to_do(app, db):
    """Another one wrote since it began to read, so it can never write: SQLite says so at once, whatever the timeout."""
    db.execute("BEGIN")
    db.execute("SELECT count(*) FROM orders").fetchone()
    app.enqueue("ship", {"order": 1})
    with app.transaction(db) as tx, pytest.raises(Unavailable, match="BEGIN IMMEDIATE"):
        tx.enqueue("ship", {"order": 2})
    assert db.in_transaction
    db.execute("ROLLBACK")
    assert stored(app) == 1


def test_a_lock_that_is_held_is_waited_for_as_the_connection_says(app, db):
    db.execute("BEGIN IMMEDIATE")
    with closing(connect(app, timeout=0.05)) as other:
        other.execute("BEGIN")
        with app.transaction(other) as tx, pytest.raises(Unavailable, match="another transaction writes"):
            tx.enqueue("ship", {"order": 1})
        db.execute("COMMIT")
        with app.transaction(other) as tx:
            tx.enqueue("ship", {"order": 1})
        other.execute("COMMIT")
    assert stored(app) == 1


def test_savepoints_of_the_caller_are_the_callers(app, db):
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db) as tx:
        db.execute("SAVEPOINT packhorse")  # of the same name as ours, even
        tx.enqueue("ship", {"order": 1})
        db.execute("ROLLBACK TO packhorse")
        db.execute("RELEASE packhorse")
        kept = tx.enqueue("ship", {"order": 2})
    db.execute("COMMIT")
    assert stored(app) == 1
    assert kept.state == State.PENDING


def test_large_workflows_go_in_as_one(app, db):
    ship = app.tasks["ship"]
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db):
        workflow = app.workflow()
        for number in range(1_500):
            workflow.add(f"n{number}", ship.job(number), after=[f"n{number - 1}"] if number else [])
        workflow.enqueue()
    assert stored(app) == 0
    db.execute("COMMIT")
    assert stored(app) == 1_500


def test_a_large_workflow_that_fails_says_to_roll_back(app, db):
    ship = app.tasks["ship"]
    set_capacity(app, "full", 1)
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db), pytest.raises(QueueFull) as error:
        app.batch([ship.using(queue="full" if n > 1_400 else "default").job(n) for n in range(1_500)]).enqueue()
    assert "roll the transaction back" in "".join(error.value.__notes__)
    db.execute("ROLLBACK")
    assert stored(app) == 0


def test_a_fork_while_a_transaction_is_watched_harms_nobody(app, db):

    db.execute("BEGIN IMMEDIATE")
    app.enqueue("ship", {"order": 1}, connection=db)
    child = os.fork()
    if child == 0:
        import gc

        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    db.execute("COMMIT")
    assert stored(app) == 1


# ---- SQLAlchemy --------------------------------------------------------------------------------------------


@pytest.fixture
def engine(app: Packhorse):
    import sqlalchemy

    engine = sqlalchemy.create_engine(app.settings.url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("commits", [True, False])
def test_a_connection_of_sqlalchemy(app, engine, commits):
    from sqlalchemy import text

    with engine.connect() as connection:
        with app.transaction(connection) as tx:
            tx.enqueue("ship", {"order": 1})  # before anything else was done on it
        connection.execute(text("INSERT INTO orders VALUES (1, '')"))
        (connection.commit if commits else connection.rollback)()
    with engine.begin() as connection:
        app.tasks["ship"].using(connection=connection).enqueue(2)
    assert stored(app) == 1 + commits
    assert orders(app) == [1] * commits


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("scoped", [True, False])
def test_a_session_of_sqlalchemy(app, engine, commits, scoped):
    from sqlalchemy import text
    from sqlalchemy.orm import scoped_session, sessionmaker

    make = sessionmaker(engine)
    session = scoped_session(make) if scoped else make()
    with app.transaction(session):
        app.tasks["ship"].enqueue(1)
    session.execute(text("INSERT INTO orders VALUES (1, '')"))
    (session.commit if commits else session.rollback)()
    session.close()
    assert stored(app) == commits
    assert orders(app) == [1] * commits


def test_sqlalchemy_in_autocommit_is_refused(app, engine):
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        app.transaction(connection) as tx,
        pytest.raises(InvalidOption, match="BEGIN"),
    ):
        tx.enqueue("ship", {"order": 1})
    assert stored(app) == 0


# ---- waking ------------------------------------------------------------------------------------------------


def test_a_worker_starts_the_job_soon_after_the_commit(app, db):
    """Not at its next poll: nobody but this program knows of the job until then."""
    started: list[float] = []

    @app.task
    async def note() -> None:
        started.append(time.monotonic())

    async def main() -> list[float]:
        took = []
        async with app.worker(poll_interval_ms=30_000):
            for _ in range(9):
                db.execute("BEGIN IMMEDIATE")
                job = note.using(connection=db).enqueue()
                await asyncio.sleep(0.01)
                assert not started
                db.execute("COMMIT")
                committed = time.monotonic()
                await job.aresult(60)
                took.append(started.pop() - committed)
        await app.aclose()
        return sorted(took)

    took = asyncio.run(main())
    print(f"\ncommit → start: median {took[4] * 1000:.1f} ms, longest {took[-1] * 1000:.1f} ms")
    assert took[4] < 1


def test_a_transaction_that_is_rolled_back_ends_the_watch(app, db):
    db.execute("BEGIN IMMEDIATE")
    app.enqueue("ship", {"order": 1}, connection=db)
    db.execute("ROLLBACK")
    app.enqueue("ship", {"order": 2})
    _until(lambda: "packhorse-sqlite-committing" not in {thread.name for thread in threading.enumerate()})
    db.execute("BEGIN IMMEDIATE")
    app.enqueue("ship", {"order": 3}, connection=db)
    db.execute("COMMIT")
    assert stored(app) == 2


def _until(condition: Callable[[], bool], limit_s: float = 60) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
