"""One verdict on every way in (FAILURES C13): as JSON text through `parse`, as Python values through `encode`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse import codec
from packhorse.errors import InvalidPayload, PayloadTooLarge

#: Text and the value it means. Each is accepted both ways and comes back as it was.
GOOD: list[tuple[str, object]] = [
    ("{}", {}),
    ("[]", []),
    ("null", None),
    ("true", True),
    ("false", False),
    ("0", 0),
    ("-1", -1),
    ("9223372036854775807", 2**63 - 1),
    ("-9223372036854775808", -(2**63)),
    ("0.5", 0.5),
    ("-0.0", -0.0),
    ("1e2", 100.0),
    ("5e-324", 5e-324),
    ("1.7976931348623157e308", 1.7976931348623157e308),
    ("1e-400", 0.0),
    ("0.1", 0.1),
    ('""', ""),
    ('"text"', "text"),
    ('"ü"', "ü"),
    ('"\\u00fc"', "ü"),
    ('"🐴"', "🐴"),
    ('"\\ud83d\\udc34"', "🐴"),
    ('"\\n\\t\\\\\\"\\/"', '\n\t\\"/'),
    ('"\\u0001\\u001f"', "\x01\x1f"),
    ('"\x7f\u2028\u2029\ufeff\u202e"', "\x7f\u2028\u2029\ufeff\u202e"),
    ('"\\uffff"', "\uffff"),
    ('"</script><img onerror=x>"', "</script><img onerror=x>"),
    (' \t\r\n{ "a" : [ 1 , 2 ] }\n', {"a": [1, 2]}),
    ('{"a":1,"A":2}', {"a": 1, "A": 2}),
    ('{"":0}', {"": 0}),
    ('{"b":1,"a":2}', {"b": 1, "a": 2}),
    ('{"__class__":"os.system","$ref":"#"}', {"__class__": "os.system", "$ref": "#"}),
    ('{"a":{"b":{"c":[[[]]]}}}', {"a": {"b": {"c": [[[]]]}}}),
    ("[1,1.0,true,null]", [1, 1.0, True, None]),
    ("[" * 64 + "]" * 64, None),
    ('{"a":' * 64 + "1" + "}" * 64, None),
]

#: Text that is refused, the value that means the same (`...`: Python cannot say it), and the place of the fault.
BAD: list[tuple[str, object, str]] = [
    ("NaN", math.nan, ""),
    ("Infinity", math.inf, ""),
    ("-Infinity", -math.inf, ""),
    ("1e999", math.inf, ""),
    ("-1e999", -math.inf, ""),
    ('{"a":[0,NaN]}', {"a": [0, math.nan]}, "/a/1"),
    ("9223372036854775808", 2**63, ""),
    ("-9223372036854775809", -(2**63) - 1, ""),
    ('{"n":[123456789012345678901234567890]}', {"n": [123456789012345678901234567890]}, "/n/0"),
    ("1" * 5_000, 10**4_000, ""),
    ('"\\ud800"', "\ud800", ""),
    ('"\\udfff!"', "\udfff!", ""),
    ('["ok","\\udc00\\ud800"]', ["ok", "\udc00\ud800"], "/1"),
    ('{"\\ud800":1}', {"\ud800": 1}, ""),
    ('"\\u0000"', "\0", ""),
    ('{"a":{"b":"x\\u0000y"}}', {"a": {"b": "x\0y"}}, "/a/b"),
    ('{"a\\u0000":1}', {"a\0": 1}, ""),
    ('{"x":{"\\u0000":1}}', {"x": {"\0": 1}}, "/x"),
    ('"ü\\u0000"', "ü\0", ""),
    ('{"a":1,"a":1}', ..., ""),
    ('{"x":[{"a":1,"b":2,"a":3}]}', ..., "/x/0"),
    ('{"a":1,"\\u0061":2}', ..., ""),
    ("[" * 65 + "]" * 65, None, "/0" * 64),
    ('{"a":' * 65 + "1" + "}" * 65, None, "/a" * 64),
    ("[" * 200_000 + "]" * 200_000, ..., ""),
    ('{"a~b/c":"\\u0000"}', {"a~b/c": "\0"}, "/a~0b~1c"),
    ('[[],[[],["\\u0000"]]]', [[], [[], ["\0"]]], "/1/1/0"),
    ("", ..., ""),
    (" ", ..., ""),
    ("{", ..., ""),
    ("[1,]", ..., ""),
    ('{"a":1,}', ..., ""),
    ("{'a':1}", ..., ""),
    ("{a:1}", ..., ""),
    ("01", ..., ""),
    ("+1", ..., ""),
    (".5", ..., ""),
    ("1.", ..., ""),
    ("0x10", ..., ""),
    ("1 2", ..., ""),
    ("{}{}", ..., ""),
    ("nul", ..., ""),
    ("True", ..., ""),
    ("undefined", ..., ""),
    ('"\n"', ..., ""),
    ('"\x00"', ..., ""),
    ('"\\x41"', ..., ""),
    ('"\\u12"', ..., ""),
    ('"open', ..., ""),
    ("// no\n1", ..., ""),
    ("\ufeff1", ..., ""),
    ("\u00a01", ..., ""),
    ("-", ..., ""),
    ("1e", ..., ""),
    ("٣", ..., ""),
]

#: Python values that no text means: refused, at this place.
NOT_JSON: list[tuple[object, str]] = [
    ({1: "a"}, ""),
    ({"a": {None: 1}}, "/a"),
    ({("a", "b"): 1}, ""),
    ({"a": b"bytes"}, "/a"),
    ([object()], "/0"),
    ({1, 2}, ""),
    ([1 + 2j], "/0"),
    (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), ""),
    (uuid.UUID(int=0), ""),
    (range(3), ""),
    ({"f": print}, "/f"),
]


def test_the_corpus_is_large_enough():
    assert len(GOOD) + len(BAD) + len(NOT_JSON) >= 60


@pytest.mark.parametrize(("text", "value"), GOOD, ids=lambda each: str(each)[:30])
def test_what_is_plain_json_is_kept_exactly(text, value):
    parsed = codec.parse(text)
    if value is not None:
        assert parsed == value
        assert type(parsed) is type(value)
    assert codec.parse(text.encode()) == parsed, "bytes and text"
    data = codec.encode(parsed)
    assert codec.decode(data) == parsed
    assert repr(codec.decode(data)) == repr(parsed), "types and the sign of zero too"
    assert codec.encode(codec.decode(data)) == data
    assert codec.parse(data) == parsed
    assert json.loads(data) == parsed, "anybody can read it"


@pytest.mark.parametrize(("text", "value", "pointer"), BAD, ids=lambda each: ascii(each)[:30])
def test_what_is_not_is_refused_at_its_place_both_ways(text, value, pointer):
    with pytest.raises(InvalidPayload) as refused:
        codec.parse(text)
    assert refused.value.pointer == pointer
    if value is None:
        value = json.loads(text)
    if value is not ...:
        with pytest.raises(InvalidPayload) as refused:
            codec.encode(value)
        assert refused.value.pointer == pointer
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    with pytest.raises(InvalidPayload):
        codec.parse(data)


@pytest.mark.parametrize(("value", "pointer"), NOT_JSON, ids=lambda each: ascii(each)[:30].partition(" object at")[0])
def test_values_that_are_not_json_are_refused_at_their_place(value, pointer):
    with pytest.raises(InvalidPayload) as refused:
        codec.encode(value)
    assert refused.value.pointer == pointer
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"\xff", b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'\xff\xfe"\x00a\x00"\x00'])
def test_bytes_that_are_not_utf8_are_refused(data):
    with pytest.raises(InvalidPayload, match="UTF-8"):
        codec.parse(data)


def test_a_huge_depth_is_refused_however_it_is_made():
    value: object = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidPayload, match="deeper"):
        codec.encode(value)
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidPayload, match="deeper"):
        codec.encode(loop)
    with pytest.raises(InvalidPayload):
        codec.to_plain(value)
    del value  # the interpreter takes such a list apart without recursion


@pytest.mark.parametrize("fill", ["x", "ü", "🐴"])
def test_size_is_counted_in_bytes_at_the_limit_and_one_past_it(fill):
    size = len(fill.encode())
    at_limit = fill * ((100 - 2) // size) + "x" * ((100 - 2) % size)
    assert len(codec.encode(at_limit, 100)) == 100
    text = json.dumps(at_limit, ensure_ascii=False)
    assert codec.parse(text.encode(), 100) == at_limit
    assert codec.parse(text, 100) == at_limit
    for refuse in (
        lambda: codec.encode(at_limit + "x", 100),
        lambda: codec.parse(json.dumps(at_limit + "x", ensure_ascii=False).encode(), 100),
        lambda: codec.parse(json.dumps(at_limit + "x", ensure_ascii=False), 100),
    ):
        with pytest.raises(PayloadTooLarge):
            refuse()


def test_the_default_limit_is_one_mebibyte():
    at_limit = "x" * ((1 << 20) - 2)
    assert len(codec.encode(at_limit)) == 1 << 20 == len(codec.encode(codec.parse(f'"{at_limit}"')))
    with pytest.raises(PayloadTooLarge):
        codec.encode(at_limit + "x")
    with pytest.raises(PayloadTooLarge):
        codec.parse(f'"{at_limit}x"')


def test_tuples_are_lists_and_subclasses_are_not_taken_for_what_they_extend():
    assert codec.encode((1, (2,))) == b"[1,[2]]"

    class Word(str):
        __slots__ = ()

    class Number(enum.IntEnum):
        ONE = 1

    for value in (Word("a"), Number.ONE):
        with pytest.raises(InvalidPayload):
            codec.encode(value)
    assert codec.encode(codec.to_plain(Number.ONE)) == b"1"


def test_to_plain_writes_what_people_pass():
    @dataclasses.dataclass
    class Point:
        x: int
        when: dt.datetime

    class Shape(msgspec.Struct):
        kind: str

    class Model:
        def model_dump(self, mode: str) -> dict[str, str]:
            return {"mode": mode}

    value = {
        "point": Point(1, dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        "shape": Shape("round"),
        "model": Model(),
        "id": uuid.UUID(int=5),
        3: {"a"},
    }
    plain = codec.to_plain(value)
    codec.check(plain)
    assert plain["point"] == {"x": 1, "when": "2026-01-02T00:00:00Z"}
    assert (plain["shape"], plain["model"]) == ({"kind": "round"}, {"mode": "json"})
    assert (plain["id"], plain["3"]) == (str(uuid.UUID(int=5)), ["a"])
    with pytest.raises(InvalidPayload):
        codec.to_plain(object())


@pytest.mark.parametrize("data", [b"", b"{", b"\x80\x04K\x01.", b"nope", b'"\xff"', b"[" * 100_000])
def test_stored_garbage_is_an_error_of_its_own(data):
    with pytest.raises(InvalidPayload):
        codec.decode(data)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"),
        ("ü🐴", "ü🐴"),
        ("a\0b", "a\\0b"),
        ("a\ud800b", "a\\ud800b"),
        ("", ""),
        ("x" * 100, "x" * 100),
    ],
)
def test_clean_text_is_storable(text, clean):
    assert codec.clean_text(text, 100) == clean


def test_clean_text_cuts_out_the_middle():
    text = codec.clean_text("a" * 60 + "b" * 1_000 + "c" * 60, 100)
    assert text.startswith("a" * 50 + "\n…")
    assert text.endswith("…\n" + "c" * 50)
    assert "1,020 characters left out" in text


def test_a_pointer_shows_neither_long_keys_nor_control_characters():
    with pytest.raises(InvalidPayload) as refused:
        codec.encode({"k" * 500: {"\x1b[31m\n": "\0"}})
    assert len(refused.value.pointer) < 120
    assert refused.value.pointer.isprintable()


_TEXTS = st.one_of(st.text(max_size=3), st.sampled_from(["\0", "a\0", "é\0", "\ud800", "é", ""]))
_LEAVES = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    st.binary(max_size=1),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda items: st.one_of(
        st.lists(items, max_size=3),
        st.tuples(items),
        st.dictionaries(st.one_of(_TEXTS, st.integers()), items, max_size=3),
    ),
    max_leaves=8,
)


@given(_VALUES, st.integers(codec.DEPTH_MAX - 3, codec.DEPTH_MAX + 1))
def test_the_quick_look_and_the_search_for_the_place_agree(value, depth):
    """C13: a value is refused if and only if there is a place in it to blame."""
    blamed = _blame(lambda: codec._find_fault(value, depth, ()))
    assert _blame(lambda: codec.check(value, depth)) == blamed
    assert codec._is_sound(value, depth) == (blamed is None)


def _blame(look):
    try:
        look()
    except InvalidPayload as fault:
        return str(fault), fault.pointer
    return None
