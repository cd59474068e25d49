"""Names, ranks and the table of moves."""

from __future__ import annotations

import msgspec
import pytest

from packhorse.errors import InvalidName
from packhorse.job import (
    AGEING_MS,
    LIVE,
    PRIORITIES,
    TERMINAL,
    TRANSITIONS,
    JobError,
    JobRecord,
    JobSpec,
    State,
    Unique,
    check_name,
    rank,
)


@pytest.mark.parametrize("name", ["a", "default", "image.resize", "A-Z_0.9", "0", ".", "-", "x" * 128])
def test_names(name):
    assert check_name(name, "queue") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\n",
        "\na",
        "a\0",
        "*",
        ">",
        "a:b",
        "a/b",
        "../x",
        "{a}",
        "a\r\nQUIT",
        "ü",
        "٣",
        "x" * 129,
        "x" * 10**6,
        "'; DROP TABLE jobs; --",
        "<img src=x>",
        "\x1b]0;",
        "\ud800",
        None,
        5,
        b"a",
        ["a"],
    ],
    ids=lambda each: ascii(each)[:20],
)
def test_what_names_nothing(name):
    """C10, C22: one rule on all backends, and a message that is safe to print."""
    with pytest.raises(InvalidName, match="cannot name a queue") as refused:
        check_name(name, "queue")
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()
    str(refused.value).encode()


def test_the_table_of_moves_is_whole():
    assert set(TRANSITIONS) == set(State)
    assert set(State) == TERMINAL | LIVE
    assert not TERMINAL & LIVE
    for state, targets in TRANSITIONS.items():
        assert state not in targets
    for state in LIVE:
        assert State.WAITING not in TRANSITIONS[state], "nothing that lives goes back to waiting"
        assert State.CANCELLED in TRANSITIONS[state], "everything that lives can be cancelled"
    for state in TERMINAL:
        assert TRANSITIONS[state] == {State.PENDING, State.SCHEDULED, State.WAITING}, "only a rerun leaves the end"
    assert [state for state in State if State.RUNNING in TRANSITIONS[state]] == [State.PENDING]


def test_a_step_of_priority_is_worth_so_much_waiting():
    assert rank(0, 0) < rank(1, 0) < rank(0, 1)
    assert rank(1_000, 5) == rank(1_000 + AGEING_MS, 4)
    assert PRIORITIES["high"] < PRIORITIES["normal"] < PRIORITIES["low"]
    assert all(0 <= priority <= 9 for priority in PRIORITIES.values())


@pytest.mark.parametrize(
    "value",
    [
        JobSpec(id="1", type="t", unique=Unique(key="k"), tags=("a",), meta={"m": "1"}),
        JobError(attempt=1, at_ms=2, kind="E", message="m"),
        JobRecord(
            id="1",
            type="t",
            queue="q",
            state=State.FAILED,
            payload=b"{}",
            priority=1,
            attempt=1,
            max_attempts=2,
            timeout_ms=3,
            created_at_ms=4,
            due_at_ms=5,
            errors=(JobError(attempt=1, at_ms=2, kind="E", message="m"),),
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_records_survive_being_written_down(value):
    for encode, decode in (
        (msgspec.json.encode, msgspec.json.decode),
        (msgspec.msgpack.encode, msgspec.msgpack.decode),
    ):
        assert decode(encode(value), type=type(value)) == value


def test_specs_cannot_be_changed():
    with pytest.raises(AttributeError):
        JobSpec(id="1", type="t").id = "2"
