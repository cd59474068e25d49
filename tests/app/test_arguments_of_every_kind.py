"""What a handler's parameters may be, and that they arrive as what the annotation says."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from argument_kinds import Address, Colour, Customer, Level, Model, Opaque, Order, Point, Row

from packhorse import ConfigurationError, Context, Packhorse
from packhorse.testing import drain, stored

NOON = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)
SOME_ID = uuid.UUID("0192c0de-0000-7000-8000-000000000001")

#: (annotation, value given to enqueue, what is stored)
KINDS: list[tuple[Any, Any, bytes]] = [
    (str, "text with ünïcode 🐎", '"text with ünïcode 🐎"'.encode()),
    (str, "", b'""'),
    (int, 2**63 - 1, b"9223372036854775807"),
    (int, -(2**63), b"-9223372036854775808"),
    (float, 0.1, b"0.1"),
    (float, 3, b"3"),
    (bool, True, b"true"),
    (None, None, b"null"),
    (list, [1, "a", None, [2.5]], b'[1,"a",null,[2.5]]'),
    (list[int], [1, 2], b"[1,2]"),
    (tuple[int, str], (1, "a"), b'[1,"a"]'),
    (set[int], {7}, b"[7]"),
    (frozenset[str], frozenset({"a"}), b'["a"]'),
    (dict, {"a": {"b": []}}, b'{"a":{"b":[]}}'),
    (dict[str, list[int]], {"a": [1]}, b'{"a":[1]}'),
    (dict[int, str], {1: "one"}, b'{"1":"one"}'),
    (dict[uuid.UUID, int], {SOME_ID: 1}, f'{{"{SOME_ID}":1}}'.encode()),
    (dict[Colour, int], {Colour.RED: 1}, b'{"red":1}'),
    (str | None, None, b"null"),
    (int | str, "7", b'"7"'),
    (int | list[int] | None, [1], b"[1]"),
    (Literal["a", "b"], "b", b'"b"'),
    (Literal[1, 2] | None, None, b"null"),
    (Colour, Colour.BLUE, b'"blue"'),
    (Level, Level.HIGH, b"2"),
    (datetime, NOON, b'"2030-01-31T12:00:00Z"'),
    (date, date(2030, 1, 31), b'"2030-01-31"'),
    (time, time(9, 30), b'"09:30:00"'),
    (timedelta, timedelta(minutes=5), b'"PT300S"'),
    (uuid.UUID, SOME_ID, f'"{SOME_ID}"'.encode()),
    (Decimal, Decimal("10.10"), b'"10.10"'),
    (bytes, b"\x00\xff", b'"AP8="'),
    (Address, Address("High Street", "1"), b'{"street":"High Street","zip":"1"}'),
    (Customer, Customer("Ada", [Address("x")]), b'{"name":"Ada","addresses":[{"street":"x","zip":""}]}'),
    (list[Customer], [Customer("Bo")], b'[{"name":"Bo","addresses":[]}]'),
    (Order, Order(1, {"a": 2}), b'{"id":1,"lines":{"a":2}}'),
    (Order | None, Order(1), b'{"id":1,"lines":{}}'),
    (Row, {"id": 1, "label": "a"}, b'{"id":1,"label":"a"}'),
    (Point, Point(1, 2), b"[1,2]"),
    (Model, Model(size=3), b'{"size":3}'),
    (list[Model], [Model(size=3)], b'[{"size":3}]'),
    (dict[str, Model], {"a": Model(size=3)}, b'{"a":{"size":3}}'),
    (Annotated[int, msgspec.Meta(ge=0)], 0, b"0"),
    (Any, {"anything": [1, None]}, b'{"anything":[1,null]}'),
    (object, "x", b'"x"'),
]


def _named(kind: object) -> str:
    return str(getattr(kind, "__name__", kind)).replace("typing.", "")


def _task_taking(app: Packhorse, kind: Any, seen: list[Any]) -> Any:
    def take(value, other=None):
        seen.append(value)

    take.__annotations__ = {"value": kind}
    return app.task(take)


@pytest.mark.parametrize(("kind", "value", "stored"), KINDS, ids=lambda item: _named(item)[:40])
def test_a_value_arrives_as_its_annotation_says(app, kind, value, stored):
    seen: list[Any] = []
    task = _task_taking(app, kind, seen)
    job = task.enqueue(value)
    assert job.record().payload == b'{"value":' + stored + b"}"
    app.enqueue("take", {"value": value})  # by name, with the same objects
    app.enqueue("take", {"value": msgspec.json.decode(stored)})  # as a program in another language sends it
    drain(app)
    assert seen == [value] * 3
    assert [type(item) for item in seen] == [type(seen[0])] * 3
    assert type(seen[0]) is type(value) or kind is float


def test_annotations_written_as_text_are_resolved(app):
    seen = []

    def take(order: Order, when: datetime | None = None) -> None:
        seen.append((order, when))

    app.task(take).enqueue(Order(1), NOON)
    drain(app)
    assert seen == [(Order(1), NOON)]


def test_without_annotations_everything_that_is_json_goes(app):
    seen = []

    @app.task
    def take(a, b=2, *, c=3):
        seen.append((a, b, c))

    take.enqueue({"x": [1]}, c="c")
    drain(app)
    assert seen == [({"x": [1]}, 2, "c")]


def test_attrs_classes_travel_too(app):
    attrs = pytest.importorskip("attrs")

    @attrs.define
    class Item:
        name: str
        count: int = 1

    seen: list[Any] = []
    task = _task_taking(app, Item, seen)
    task.enqueue(Item("a", 2))
    drain(app)
    assert seen == [Item("a", 2)]


# ---- shapes of signatures ------------------------------------------------------------------------------------


def test_defaults_are_the_handler_s_own_and_not_stored(app):
    seen = []

    @app.task
    def send(to: str, subject: str = "Hi", urgent: bool = False, at: Address = Address("nowhere")) -> None:  # noqa: B008
        seen.append((to, subject, urgent, at.street))

    assert send.enqueue("a").record().payload == b'{"to":"a"}'
    send.enqueue("b", urgent=True)
    drain(app)
    assert seen == [("a", "Hi", False, "nowhere"), ("b", "Hi", True, "nowhere")]


def test_a_model_with_a_default(app):
    seen: list[Any] = []

    def take(value: Model = Model(size=1), other: Model | None = None) -> None:  # noqa: B008
        seen.append((value.fields["size"], other))

    task = app.task(take)
    task.enqueue()
    task.enqueue(Model(size=2), other=Model(size=3))
    drain(app)
    assert seen == [(1, None), (2, Model(size=3))]


def test_keyword_only_parameters(app):
    seen = []

    @app.task
    def send(to: str, *, subject: str) -> None:
        seen.append((to, subject))

    send.enqueue("a", subject="b")
    app.enqueue(send, {"to": "c", "subject": "d"})
    drain(app)
    assert seen == [("a", "b"), ("c", "d")]


def test_keyword_arguments_of_any_name(app):
    seen = []

    @app.task
    def collect(first: int, **rest: Any) -> None:
        seen.append((first, rest))

    collect.enqueue(1, a="x", b=[2])
    collect.enqueue(first=2)
    drain(app)
    assert seen == [(1, {"a": "x", "b": [2]}), (2, {})]


def test_the_context_may_stand_anywhere_and_is_never_in_the_payload(app):
    seen = []

    @app.task
    def first(ctx: Context, n: int) -> None:
        seen.append((ctx.type, n))

    @app.task
    async def last(n: int, *, run: Context) -> None:
        seen.append((run.type, n))

    assert first.enqueue(1).record().payload == b'{"n":1}'
    last.enqueue(n=2)
    drain(app)
    assert seen == [("first", 1), ("last", 2)]


def test_a_handler_without_parameters(app):
    ran = []

    @app.task
    def tick() -> None:
        ran.append(1)

    assert tick.enqueue().record().payload == b"{}"
    app.enqueue("tick")
    drain(app)
    assert ran == [1, 1]


@pytest.mark.parametrize("payload", ["send welcome email to user@example.com", 7, [1, 2], True, 2.5])
def test_a_payload_that_is_no_object_is_the_one_parameter(app, payload):
    """REQUIREMENTS row 4: payloads that are strings and payloads that are objects."""
    seen = []

    @app.task
    def email(text) -> None:
        seen.append(text)

    app.enqueue("email", payload)
    app.enqueue_many([("email", payload), {"type": "email", "payload": payload}])
    email.enqueue(payload)
    drain(app)
    assert seen == [payload] * 4


@pytest.mark.parametrize("payload", ["text", {"any": "object"}, {}, [1], None, {"payload": 1}])
def test_a_parameter_called_payload_takes_it_as_it_is(app, payload):
    seen = []

    @app.task
    def anything(payload: Any) -> None:
        seen.append(payload)

    anything.enqueue(payload)
    anything.enqueue(payload=payload)
    if payload is not None:  # by name, None is "no payload", which is an empty object
        app.enqueue("anything", payload)
    drain(app)
    assert seen == [payload] * (3 if payload is not None else 2)


def test_changing_an_argument_after_the_enqueue_changes_nothing(app):
    """FAILURES A, memory: payloads are written at once, as the other backends do."""
    seen = []

    @app.task
    def take(rows: list[int], ctx: Context) -> None:
        rows.append(99)
        seen.append(rows)
        if ctx.attempt == 1:
            raise ValueError("again")

    rows = [1]
    with stored(app):
        take.enqueue(rows)
        rows.append(2)
        drain(app)
    assert seen == [[1, 99], [1, 99]]


# ---- what cannot be registered -------------------------------------------------------------------------------


def test_arguments_by_place_are_refused_with_the_remedy(app):
    def many(*values: int) -> None: ...

    def only(a: int, /) -> None: ...

    for handler in (many, only):
        with pytest.raises(ConfigurationError, match=rf"{handler.__name__}.*travel by name.*name the parameter"):
            app.task(handler)
    assert app.tasks == {}


def test_annotations_that_name_nothing_are_refused(app):
    def broken(value: NoSuchThing) -> None: ...  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"broken.*NoSuchThing.*module level"):
        app.task(broken)


def test_annotations_that_json_cannot_tell_apart_are_refused(app):
    def broken(value: Order | Address) -> None: ...

    with pytest.raises(ConfigurationError, match=r"broken.*cannot be read from JSON"):
        app.task(broken)


def test_two_tasks_of_one_type_are_refused(app):
    @app.task("a")
    def one() -> None: ...

    with pytest.raises(ConfigurationError, match="has a task already"):
        app.task("a")(lambda: None)


def test_a_callable_without_a_name_is_told_to_give_one(app):
    import functools

    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ConfigurationError, match="give it one"):
        app.task(functools.partial(add, 1))


def test_a_handler_must_fit_its_executor(app):
    async def on_loop() -> None: ...

    def blocking() -> None: ...

    with pytest.raises(ConfigurationError, match="async def"):
        app.task(executor="async")(blocking)
    with pytest.raises(ConfigurationError, match="event loop"):
        app.task(executor="thread")(on_loop)
    with pytest.raises(ConfigurationError, match="async, thread or process"):
        app.task(executor="greenlet")(blocking)  # type: ignore[call-overload]


def test_a_class_that_json_cannot_fill_says_so_at_enqueue(app):
    from packhorse import InvalidPayload

    @app.task
    def take(thing: Opaque) -> None: ...

    with pytest.raises(InvalidPayload, match=r"Opaque cannot be written as JSON"):
        take.enqueue(Opaque())
    with pytest.raises(InvalidPayload, match=r"Opaque.*model_validate"):
        app.enqueue("take", {"thing": {}})


def test_the_description_is_the_docstring_s_first_line(app):
    @app.task
    def documented() -> None:
        """Send mail.

        And more.
        """

    @app.task(description="Given")
    def described() -> None: ...

    @app.task
    def bare() -> None: ...

    assert [app.tasks[name].description for name in ("documented", "described", "bare")] == ["Send mail.", "Given", ""]
    assert documented.__doc__ is not None
    assert documented.__name__ == "documented"
    assert repr(documented) == "<Task documented>"


def test_the_schema_of_a_payload_can_be_shown(app):
    @app.task
    def send(to: str, colour: Colour = Colour.RED, model: Model | None = None) -> None: ...

    schema = send.arguments.schema()
    shown = schema.get("$defs", {}).get("Arguments", schema)
    assert shown["required"] == ["to"]
