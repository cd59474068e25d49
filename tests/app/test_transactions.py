"""`app.transaction(connection)` and `using(connection=...)`: the commit stores the jobs, a rollback none."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from packhorse import (
    InvalidOption,
    NotFound,
    Packhorse,
    QueueFull,
    UniqueConflict,
    UnknownParent,
    Unsupported,
    chain,
)
from packhorse.errors import IdempotencyConflict
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


# ---- what belongs to the transaction -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_every_enqueue_in_the_block_belongs_to_it(app, db, end):
    ship = app.tasks["ship"]
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db) as tx:
        db.execute("INSERT INTO orders VALUES (7, 'seven')")
        jobs = [
            tx.enqueue("ship", {"order": 1}, priority="high"),
            tx.enqueue(ship, {"order": 2}),
            *tx.enqueue_many([(ship, {"order": 3}), {"type": "ship", "payload": {"order": 4}}, ship.job(5)]),
            app.enqueue("ship", {"order": 6}),
            ship.enqueue(7),
            ship.using(tags=["late"]).enqueue(8),
            *app.enqueue_many([ship.job(9)]),
        ]
        run = app.workflow(chain(ship.job(10), ship.job(11))).enqueue()
    assert all(job.created for job in jobs)
    assert stored(app) == 0
    with pytest.raises(NotFound):
        _ = jobs[0].state
    db.execute(end)
    assert stored(app) == (11 if end == "COMMIT" else 0)
    assert orders(app) == ([7] if end == "COMMIT" else [])
    if end == "COMMIT":
        assert {job.state for job in jobs} == {State.PENDING}
        assert sorted(run.state.items()) == [(State.PENDING, 1), (State.WAITING, 1)]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_connection_for_one_enqueue(app, db, end):
    db.execute("BEGIN IMMEDIATE")
    jobs = [
        app.tasks["ship"].using(connection=db, delay="1h").enqueue(1),
        app.enqueue("ship", {"order": 2}, connection=db),
    ]
    assert stored(app) == 0
    db.execute(end)
    assert stored(app) == (2 if end == "COMMIT" else 0)
    if end == "COMMIT":
        assert [job.state for job in jobs] == [State.SCHEDULED, State.PENDING]


def test_in_async_code_a_blocking_connection_works_the_same(app, db):
    ship = app.tasks["ship"]

    async def main() -> None:
        db.execute("BEGIN IMMEDIATE")
        async with app.transaction(db) as tx:
            await tx.aenqueue("ship", {"order": 1})
            tx.enqueue("ship", {"order": 2})
            await tx.aenqueue_many([ship.job(3)])
            await ship.aenqueue(order=4)
            ship.enqueue(order=5)
            await asyncio.gather(*(ship.aenqueue(order=n) for n in range(6, 9)))
            await app.aenqueue_many([ship.job(9)])
            await app.workflow(chain(ship.job(10), ship.job(11))).aenqueue()
        await ship.using(connection=db).aenqueue(order=12)
        assert await app.acounts() == {}
        db.execute("COMMIT")
        assert (await app.acounts())["default"].states == {State.PENDING: 11, State.WAITING: 1}
        await app.aclose()

    asyncio.run(main())


def test_the_end_of_the_block_is_the_end_of_it_whatever_ended_it(app, db):
    db.execute("BEGIN IMMEDIATE")
    tx = app.transaction(db)
    with pytest.raises(ZeroDivisionError), tx:
        raise ZeroDivisionError(app.tasks["ship"].enqueue(1).id)
    assert db.in_transaction  # the caller's to end
    db.execute("ROLLBACK")
    app.tasks["ship"].enqueue(2)
    assert stored(app) == 1
    db.execute("BEGIN")
    tx.enqueue("ship", {"order": 3})  # it is still the same connection
    db.execute("ROLLBACK")
    assert stored(app) == 1


def test_blocks_within_blocks(app, tmp_path, db):
    with Packhorse(f"sqlite:///{tmp_path / 'other.db'}") as other:
        other.counts()
        with closing(connect(other)) as other_db, closing(connect(app)):
            db.execute("BEGIN IMMEDIATE")
            with app.transaction(db):
                other.enqueue("ship", {"order": 1})  # no transaction of that app
                other_db.execute("BEGIN IMMEDIATE")
                with other.transaction(other_db):
                    other.enqueue("ship", {"order": 1})
                    app.enqueue("ship", {"order": 1})
                app.enqueue("ship", {"order": 1})
            db.execute("ROLLBACK")
            assert stored(app) == 0
            assert stored(other) == 1
            other_db.execute("COMMIT")
            assert stored(other) == 2


def test_other_threads_are_not_in_it(app, db):
    """In a transaction without the write lock, else the other thread would wait for it."""
    entered, done = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(connect(app)) as mine:
            mine.execute("BEGIN")
            with app.transaction(mine):
                entered.set()
                assert done.wait(60)
            mine.execute("ROLLBACK")

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(60)
    app.enqueue("ship", {"order": 1})
    done.set()
    holder.join()
    assert stored(app) == 1

    async def main() -> None:
        db.execute("BEGIN")
        async with app.transaction(db):
            await asyncio.to_thread(
                app.enqueue, "ship", {"order": 1}
            )  # it has a copy of the context, and another thread
        db.execute("ROLLBACK")
        await app.aclose()

    asyncio.run(main())
    assert stored(app) == 2


def test_a_task_that_outlives_the_block_is_not_in_it(app, db):
    async def main() -> None:
        go = asyncio.Event()

        async def later() -> None:
            await go.wait()
            await app.aenqueue("ship", {"order": 1})

        db.execute("BEGIN")
        async with app.transaction(db):
            task = asyncio.create_task(later())
        db.execute("ROLLBACK")
        go.set()
        await task
        assert sum((await app.acounts())["default"].states.values()) == 1
        await app.aclose()

    asyncio.run(main())


def test_a_block_in_a_generator_that_is_ended_in_another_context(app, db):
    def dependency() -> Iterator[None]:
        with app.transaction(db):
            yield

    db.execute("BEGIN")
    generator = dependency()
    contextvars.copy_context().run(next, generator)
    contextvars.copy_context().run(lambda: next(generator, None))
    db.execute("ROLLBACK")
    app.enqueue("ship", {"order": 1})
    assert stored(app) == 1


def test_the_object_is_for_one_block_at_a_time(app, db):
    tx = app.transaction(db)
    with pytest.raises(RuntimeError, match="in its block"):
        tx.enqueue("ship")
    db.execute("BEGIN")
    with tx, pytest.raises(RuntimeError, match="again"):
        tx.__enter__()


# ---- refusals ----------------------------------------------------------------------------------------------


def test_a_refusal_leaves_the_transaction_usable(app, db):
    ship = app.tasks["ship"]
    held = ship.using(unique="k").enqueue(0)
    set_capacity(app, "full", 1)
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db):
        db.execute("INSERT INTO orders VALUES (1, '')")
        with pytest.raises(UniqueConflict) as conflict:
            ship.using(unique="k", on_conflict="refuse").enqueue(1)
        with pytest.raises(UnknownParent):
            ship.using(after=["nobody"]).enqueue(1)
        ship.using(queue="full").enqueue(1)
        started = time.monotonic()
        with pytest.raises(QueueFull):
            ship.using(queue="full", full_timeout="1h").enqueue(2)
        assert time.monotonic() - started < 60  # never with the caller's transaction in its hands
        again = ship.using(unique="k").enqueue(3)
    db.execute("COMMIT")
    assert conflict.value.holder == held.id
    assert (again.id, again.created) == (held.id, False)
    assert stored(app) == 2
    assert orders(app) == [1]


def test_idempotency_keys_are_compared_within_the_transaction_too(app, db):
    ship = app.tasks["ship"]
    first = ship.using(idempotency_key="a").enqueue(1)
    db.execute("BEGIN IMMEDIATE")
    with app.transaction(db) as tx:
        assert ship.using(idempotency_key="a").enqueue(1).id == first.id
        new = ship.using(idempotency_key="b").enqueue(2)
        assert not ship.using(idempotency_key="b").enqueue(2).created
        for key, order in (("a", 9), ("b", 9)):
            with pytest.raises(IdempotencyConflict):
                ship.using(idempotency_key=key).enqueue(order)
            with pytest.raises(IdempotencyConflict):
                tx.enqueue_many([ship.job(5), ship.using(idempotency_key=key).job(order)])
    db.execute("COMMIT")
    assert new.state == State.PENDING
    assert stored(app) == 2


@pytest.mark.parametrize("connection", [object(), None, "sqlite:///jobs.db", 7], ids=lambda each: type(each).__name__)
def test_what_is_no_connection_is_refused(app, connection):
    with pytest.raises(InvalidOption, match=r"sqlite3\.Connection"), app.transaction(connection):
        pass


def test_a_connection_to_another_file_is_refused(app, tmp_path):
    for path in (tmp_path / "other.db", ":memory:", ""):
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            with app.transaction(other) as tx, pytest.raises(InvalidOption, match="keep your tables in the file"):
                tx.enqueue("ship", {"order": 1})
            assert other.in_transaction


def test_another_path_to_the_same_file_is_taken(app, tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
    with closing(sqlite3.connect(tmp_path / "link.db", isolation_level=None)) as db:
        db.execute("BEGIN")
        app.enqueue("ship", {"order": 1}, connection=db)
        db.execute("COMMIT")
    assert stored(app) == 1


def test_a_closed_connection_is_an_error_of_sqlite3(app):
    db = connect(app)
    db.close()
    with app.transaction(db) as tx, pytest.raises(sqlite3.ProgrammingError):
        tx.enqueue("ship", {"order": 1})


def test_a_backend_without_transactions_says_so(db):
    with (
        Packhorse("memory://transactions") as app,
        pytest.raises(Unsupported, match="bind") as error,
        app.transaction(db),
    ):
        pass
    assert error.value.flag == "bind"


def test_where_a_connection_makes_no_sense(app, db):
    ship = app.tasks["ship"]
    with pytest.raises(InvalidOption, match="transaction"):
        ship.using(connection=db).job(1)
    db.execute("BEGIN")
    with app.transaction(db) as tx:
        with pytest.raises(InvalidOption, match="full_timeout"):
            tx.enqueue("ship", {"order": 1}, full_timeout="1s")
        with pytest.raises(InvalidOption, match="nonsense"):
            tx.enqueue("ship", {"order": 1}, nonsense=1)
