"""Parameters for psycopg in binary form: whole lists packed at once, where its own dumpers go item by item."""

from __future__ import annotations

import struct
from typing import Any

from psycopg import pq
from psycopg.abc import Buffer, DumperKey
from psycopg.adapt import AdaptersMap, Dumper, PyFormat
from psycopg.types.bool import BoolBinaryDumper
from psycopg.types.numeric import FloatBinaryDumper
from psycopg.types.string import BytesBinaryDumper

_BOOL, _BYTEA, _INT8, _TEXT, _FLOAT8 = 16, 17, 20, 25, 701
_BOOLS, _BYTEAS, _INT8S, _TEXTS, _FLOAT8S = 1000, 1001, 1016, 1009, 1022

_HEAD = struct.Struct("!IIIII")  # dimensions, whether there are NULLs, type, length, first index
_NULL = b"\xff\xff\xff\xff"
_SIZE = struct.Struct("!i")


class IntDumper(Dumper):
    """A whole number, always as bigint: one statement then has one type, whatever the value."""

    format = pq.Format.BINARY
    oid = _INT8

    def dump(self, obj: int) -> Buffer:
        """Pack one value. OverflowError from 2^63 on."""
        return obj.to_bytes(8, signed=True)


class TextDumper(Dumper):
    """A text."""

    format = pq.Format.BINARY
    oid = _TEXT

    def dump(self, obj: str) -> Buffer:
        """Pack one value, as UTF-8."""
        return obj.encode()


class ListDumper(Dumper):
    """A list of whole numbers, texts, bytes, truth values or floats, with or without None."""

    format = pq.Format.BINARY

    def __init__(self, cls: type, context: Any = None, kind: type | None = None) -> None:
        super().__init__(cls, context)
        self._kind = kind
        self.oid = _ARRAYS.get(kind, 0) if kind is not None else 0
        if kind is None:
            self.format = pq.Format.TEXT  # only of a text can the server make whatever the statement wants

    def get_key(self, obj: list[Any], format: PyFormat) -> DumperKey:  # noqa: A002  # psycopg's name
        """Tell psycopg which dumper fits: one for each kind of item."""
        return (list, _kind_of(obj))  # type: ignore[return-value]  # psycopg wants types; None stands for "nothing but NULL"

    def upgrade(self, obj: list[Any], format: PyFormat) -> Dumper:  # noqa: A002
        """Answer the dumper for this kind of item."""
        return ListDumper(self.cls, None, _kind_of(obj))

    def dump(self, obj: list[Any]) -> Buffer:
        """Pack a list. One of nothing but None goes as text, whose type the server works out."""
        kind = self._kind
        if kind is None:
            return f"{{{','.join(['NULL'] * len(obj))}}}".encode()
        count, nulls = len(obj), None in obj
        if kind is int:
            return _pack_fixed(obj, nulls, _INT8, "q", 8)
        if kind is bool:
            return _pack_fixed(obj, nulls, _BOOL, "?", 1)
        if kind is float:
            return _pack_fixed(obj, nulls, _FLOAT8, "d", 8)
        parts = [_HEAD.pack(1, nulls, _TEXT if kind is str else _BYTEA, count, 1)]
        size = _SIZE.pack
        for item in obj:
            if item is None:
                parts.append(_NULL)
            else:
                data = item.encode() if kind is str else item
                parts.append(size(len(data)))
                parts.append(data)
        return b"".join(parts)


def _pack_fixed(obj: list[Any], nulls: bool, oid: int, code: str, size: int) -> bytes:
    count = len(obj)
    head = _HEAD.pack(1, nulls, oid, count, 1)
    if not nulls:
        values: list[Any] = [size] * (2 * count)
        values[1::2] = obj
        return head + struct.pack("!" + f"i{code}" * count, *values)
    pack = struct.Struct(f"!i{code}").pack
    return head + b"".join(_NULL if item is None else pack(size, item) for item in obj)


_ARRAYS: dict[type, int] = {int: _INT8S, str: _TEXTS, bytes: _BYTEAS, bool: _BOOLS, float: _FLOAT8S}


def _kind_of(items: list[Any]) -> type | None:
    for item in items:
        if item is not None:
            kind = type(item)
            return kind if kind in _ARRAYS else str if isinstance(item, str) else int
    return None


def use_packing(adapters: AdaptersMap) -> None:
    """Send parameters of a connection in binary form."""
    adapters.register_dumper(bool, BoolBinaryDumper)
    adapters.register_dumper(int, IntDumper)
    adapters.register_dumper(float, FloatBinaryDumper)
    adapters.register_dumper(str, TextDumper)
    adapters.register_dumper(bytes, BytesBinaryDumper)
    adapters.register_dumper(list, ListDumper)
