"""Unique keys made of arguments, how long they hold, and idempotency keys, on every way in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from packhorse import IdempotencyConflict, InvalidOption, Packhorse, State, Unique, UniqueConflict
from packhorse.testing import drain, jobs, stored


@pytest.fixture
def app():
    with stored(Packhorse("memory://unique")) as app:
        yield app
        app.close()


@pytest.fixture
def mail(app):
    @app.task
    def mail(to: str, subject: str = "", body: str = "") -> None: ...

    return mail


def test_all_arguments_make_the_key_in_any_order(app, mail):
    task = mail.using(unique=True)
    first = task.enqueue(to="a", subject="s")
    assert task.enqueue(subject="s", to="a") == first
    assert not task.enqueue("a", "s").created
    assert not app.enqueue("mail", {"subject": "s", "to": "a"}, unique=True).created
    assert task.enqueue(to="a", subject="t").created
    assert task.enqueue(to="a").created


def test_the_type_is_part_of_the_key(app):
    one, other = (app.task(name)(lambda n: None) for name in ("one", "other"))
    assert one.using(unique=True).enqueue(n=1).created
    assert other.using(unique=True).enqueue(n=1).created


def test_some_arguments_make_the_key(mail):
    task = mail.using(unique=["to", "subject"])
    assert task.enqueue(to="a", subject="s", body="1").created
    assert not task.enqueue(to="a", subject="s", body="2").created
    assert task.enqueue(to="b", subject="s").created
    assert task.enqueue(to="a").created  # an argument that was left out counts as left out
    assert mail.using(unique=["subject", "to"]).enqueue(to="a", subject="s").created is False


def test_an_argument_that_does_not_exist_is_refused(app, mail):
    with pytest.raises(InvalidOption, match="no argument 'topic'; there are body, subject, to"):
        mail.using(unique=["topic"]).enqueue(to="a")
    with pytest.raises(InvalidOption, match="no argument 'to'; there are a"):
        app.enqueue("unregistered", {"a": 1}, unique=["to"])
    with pytest.raises(InvalidOption, match="there are none"):
        app.enqueue("unregistered", [1, 2], unique=["to"])
    with pytest.raises(InvalidOption, match="name 1 to 32 arguments"):
        mail.using(unique=[])
    with pytest.raises(InvalidOption, match="name 1 to 32 arguments"):
        mail.using(unique=[7])
    assert jobs(app) == []


def test_a_task_s_own_key_and_a_call_that_wants_none(app):
    task = app.task("t", unique=["n"], unique_for="1h", on_conflict="refuse")(lambda n: None)
    task.enqueue(n=1)
    with pytest.raises(UniqueConflict):
        task.enqueue(n=1)
    with pytest.raises(UniqueConflict):
        app.enqueue("t", {"n": 1})  # by name, too
    assert task.using(unique=False).enqueue(n=1).created
    own = task.using(unique="mine").job(n=1).unique
    assert (own.key, own.for_ms, own.on_conflict) == ("mine", 3_600_000, "refuse")
    whole = task.using(unique=Unique(key="whole")).job(n=1).unique
    assert whole == Unique(key="whole")


def test_a_window_of_a_task_counts_for_the_calls_that_give_a_key(app):
    task = app.task("t", unique_for="1h")(lambda: None)
    assert task.job().unique is None
    assert task.using(unique="k").job().unique.for_ms == 3_600_000


def test_a_key_is_held_for_a_time_after_its_job_ended(app, mail):
    task = mail.using(unique="k", unique_for="1h")
    first = task.enqueue(to="a")
    drain(app)
    assert first.state is State.SUCCEEDED
    assert not task.enqueue(to="a").created
    app.clock.advance(3_600_000)
    assert task.enqueue(to="a").created


def test_a_key_is_held_in_chosen_states(app, mail):
    task = mail.using(unique="k", unique_states=["pending", "succeeded"])
    first = task.enqueue(to="a")
    drain(app)
    assert task.enqueue(to="b") == first
    assert mail.using(unique="k", unique_states="pending, running").job("a").unique.states == (
        State.PENDING,
        State.RUNNING,
    )


def test_a_newer_job_takes_the_place_of_an_older(app, mail):
    old = mail.using(unique="k").enqueue(to="a")
    new = mail.using(unique="k", on_conflict="replace").enqueue(to="b")
    assert (old.state, new.created, new.state) == (State.CANCELLED, True, State.PENDING)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unique_for": "1h"}, "give unique too"),
        ({"on_conflict": "refuse"}, "give unique too"),
        ({"unique": "k", "on_conflict": "panic"}, "existing, replace or refuse"),
        ({"unique": "k", "on_conflict": 7}, "existing, replace or refuse"),
        ({"unique": "k", "unique_for": "soon"}, "not a duration"),
        ({"unique": "k", "unique_for": -1}, "out of bounds"),
        ({"unique": "k", "unique_states": ["nowhere"]}, "must be some of waiting"),
        ({"unique": "k", "unique_states": []}, "give a list of waiting"),
        ({"unique": "k", "unique_states": 7}, "give a list of waiting"),
        ({"unique": 7.5}, "key as text, True"),
        ({"idempotency_key": ""}, "1 to 256 printable"),
        ({"idempotency_key": 7}, "1 to 256 printable"),
    ],
)
def test_what_makes_no_sense_is_refused(app, mail, options, says):
    for way_in in (
        lambda: mail.using(**options).job("a"),
        lambda: app.enqueue("mail", {"to": "a"}, **options),
        lambda: app.enqueue("unregistered", {"to": "a"}, **options),
        lambda: app.enqueue_many([{"type": "mail", "payload": {"to": "a"}, **options}]),
    ):
        with pytest.raises(InvalidOption, match=says):
            way_in()


# ---- idempotency keys --------------------------------------------------------------------------------------


def test_repeating_answers_the_same_job_also_when_it_has_ended(app, mail):
    first = app.enqueue("mail", {"to": "a", "subject": "s"}, idempotency_key="order-7")
    again = app.enqueue("mail", {"subject": "s", "to": "a"}, idempotency_key="order-7")
    assert (first.created, again.created, again) == (True, False, first)
    drain(app)
    assert mail.using(idempotency_key="order-7").enqueue(to="a", subject="s") == first
    assert len(jobs(app)) == 1


def test_another_type_or_payload_is_refused_and_names_the_job(app, mail):
    first = app.enqueue("mail", {"to": "a"}, idempotency_key="order-7")
    for job_type, payload in (("mail", {"to": "b"}), ("post", {"to": "a"})):
        with pytest.raises(IdempotencyConflict, match=f"used for job {first.id}") as caught:
            app.enqueue(job_type, payload, idempotency_key="order-7")
        assert caught.value.job_id == first.id
    assert len(jobs(app)) == 1


def test_many_jobs_of_which_one_conflicts_store_none(app, mail):
    app.enqueue("mail", {"to": "a"}, idempotency_key="k")
    conflicting = {"type": "mail", "payload": {"to": "b"}, "idempotency_key": "k"}
    with pytest.raises(IdempotencyConflict):
        app.enqueue_many([{"type": "mail", "payload": {"to": "c"}}, conflicting])
    twice = [{"type": "mail", "payload": {"to": to}, "idempotency_key": "l"} for to in "ab"]
    with pytest.raises(IdempotencyConflict):
        app.enqueue_many(twice)
    assert len(jobs(app)) == 1
    same = app.enqueue_many([twice[0], twice[0], {**conflicting, "payload": {"to": "a"}}])
    assert [job.created for job in same] == [True, False, False]


def test_a_task_cannot_have_an_idempotency_key_of_its_own(app):
    with pytest.raises(InvalidOption, match="stands for one job"):
        app.task("t", idempotency_key="k")(lambda: None)


@pytest.mark.parametrize("options", [{"idempotency_key": "k"}, {"unique": True}, {"unique": "k", "unique_for": "1h"}])
def test_racers_all_get_the_same_job(tmp_path, options):
    """FAILURES B33: threads with a connection of their own each, on one file."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Packhorse(url) as first:
        first.counts()  # makes the file

    def race(_: int) -> list[tuple[str, bool]]:
        with Packhorse(url) as app:
            jobs = [app.enqueue("mail", {"to": "a"}, **options) for _ in range(5)]
        return [(job.id, job.created) for job in jobs]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for found in pool.map(race, range(8)) for answer in found]
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
