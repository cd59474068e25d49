"""A wrong argument is refused where it is given, with the place, on every way in; nothing is stored."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from argument_kinds import Customer, Model, Order

from packhorse import InvalidPayload, PayloadTooLarge
from packhorse.testing import jobs


@pytest.fixture
def signup(app):
    @app.task
    def signup(
        name: str, age: int = 0, plan: Literal["free", "paid"] = "free", customer: Customer | None = None
    ) -> None: ...

    return signup


#: (arguments, where, what)
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": 7}, "/name", "Expected `str`, got `int`"),
    ({"name": None}, "/name", "Expected `str`, got `null`"),
    ({"name": "a", "age": "7"}, "/age", "Expected `int`, got `str`"),
    ({"name": "a", "age": 1.5}, "/age", "Expected `int`, got `float`"),
    ({"name": "a", "plan": "gold"}, "/plan", "Invalid enum value 'gold'"),
    (
        {"name": "a", "customer": {"name": "b", "addresses": [{"street": 1}]}},
        "/customer/addresses/0/street",
        "Expected",
    ),
    ({"name": "a", "customer": {"addresses": []}}, "/customer", "missing required field `name`"),
    ({}, "", "missing required field `name`"),
    ({"name": "a", "nmae": "b"}, "", "unknown field `nmae`"),
    ({"name": "a\0b"}, "/name", "NUL"),
    ({"name": "a\ud800"}, "/name", "Unicode"),
    ({"name": "a", "age": 2**63}, "/age", "signed 64 bits"),
    ({"name": "a", "age": float("nan")}, "/age", "NaN"),
]


@pytest.mark.parametrize(("arguments", "place", "what"), WRONG, ids=[f"{place}-{what}" for _, place, what in WRONG])
def test_a_wrong_argument_is_refused_on_every_way_in(app, signup, arguments, place, what):
    """C13: one verdict on all ways in."""
    ways = {
        "enqueue": lambda: signup.enqueue(**arguments),
        "job": lambda: signup.job(**arguments),
        "using": lambda: signup.using(priority="low").enqueue(**arguments),
        "aenqueue": lambda: asyncio.run(signup.aenqueue(**arguments)),
        "by name": lambda: app.enqueue("signup", arguments),
        "by task": lambda: app.enqueue(signup, arguments),
        "async by name": lambda: asyncio.run(app.aenqueue("signup", arguments)),
        "many, tuple": lambda: app.enqueue_many([("signup", {"name": "good"}), (signup, arguments)]),
        "many, mapping": lambda: app.enqueue_many([{"type": "signup", "payload": arguments}]),
        "many, async": lambda: asyncio.run(app.aenqueue_many([("signup", arguments)])),
    }
    for way, enqueue in ways.items():
        with pytest.raises(InvalidPayload, match=what) as caught:
            enqueue()
        assert caught.value.pointer == place, way
        assert f"(at {place or 'the top level'})" in str(caught.value)
    assert jobs(app) == []


def test_places_in_lists_and_models(app):
    @app.task
    def take(rows: list[Model], table: dict[str, int] | None = None) -> None: ...

    with pytest.raises(InvalidPayload, match="a whole number is required") as caught:
        take.job([{"size": 1}, {"size": "big"}])
    assert caught.value.pointer == "/rows/1"
    with pytest.raises(InvalidPayload) as caught:
        take.job([], {"a": "x"})
    assert caught.value.pointer == "/table/-"  # which key, msgspec does not say


def test_a_call_the_function_would_not_take_is_refused(app):
    @app.task
    def send(to: str, *, subject: str = "") -> None: ...

    for call, what in [
        (lambda: send.job("a", "b", "c"), "3 arguments given, 1 taken by place: to"),
        (lambda: send.job("a", "b"), "2 arguments given, 1 taken by place: to"),
        (lambda: send.job("a", to="b"), "to is given twice"),
        (send.job, "missing required field `to`"),
    ]:
        with pytest.raises(InvalidPayload, match=what):
            call()


def test_a_payload_that_is_no_object_needs_one_parameter(app):
    @app.task
    def two(a: int, b: int) -> None: ...

    @app.task
    def none() -> None: ...

    @app.task
    def lone(number: int) -> None: ...

    with pytest.raises(InvalidPayload, match="must be an object with a, b"):
        app.enqueue("two", "text")
    with pytest.raises(InvalidPayload, match="must be an object with nothing in it"):
        app.enqueue("none", "text")
    with pytest.raises(InvalidPayload, match="Expected `int`, got `str`"):
        app.enqueue("lone", "text")


def test_a_task_that_wants_the_payload_takes_one_argument(app):
    @app.task
    def whole(payload: dict) -> None: ...

    for call in (whole.job, lambda: whole.job(a=1), lambda: whole.job(payload={}, a=1)):
        with pytest.raises(InvalidPayload, match="give one argument, the payload"):
            call()
    with pytest.raises(InvalidPayload, match="Expected `object`, got `str`"):
        whole.job("text")


def test_objects_that_are_no_json_are_refused_by_name(app):
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = "x"
    for _ in range(65):
        deep = [deep]
    for payload, what in [
        ({"a": object()}, "object cannot be written"),
        ({"a": lambda: 1}, "function cannot be written"),
        ({"a": cycle}, "nested deeper"),
        ({"a": deep}, "nested deeper"),
        ({("a", "b"): 1}, "Only dicts with str-like"),
        ({"a": float("inf")}, "infinity"),
        ({"a": complex(1, 2)}, "complex cannot be written"),
    ]:
        with pytest.raises(InvalidPayload, match=what):
            app.enqueue("unregistered", payload)


def test_a_payload_of_more_than_a_mebibyte_is_too_large(app):
    app.enqueue("big", "x" * ((1 << 20) - 2))
    with pytest.raises(PayloadTooLarge, match="Store it elsewhere"):
        app.enqueue("big", "x" * ((1 << 20) - 1))


def test_a_model_that_raises_while_it_is_written_is_an_invalid_payload(app):
    class Exploding:
        def model_dump(self, mode: str = "") -> Any:
            raise RuntimeError("no")

    with pytest.raises(InvalidPayload, match="RuntimeError: no"):
        app.enqueue("any", {"a": Exploding()})


def test_the_error_of_a_validator_does_not_lose_its_place(app):
    @app.task
    def take(order: Order) -> None: ...

    with pytest.raises(InvalidPayload) as caught:
        app.enqueue("take", {"order": {"id": 1, "lines": {"a": 1, "b": "x"}}})
    assert caught.value.pointer == "/order/lines/-"
