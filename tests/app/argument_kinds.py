"""Models that handlers in the tests of arguments are annotated with."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import msgspec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Address:
    street: str
    zip: str = ""


@dataclass
class Customer:
    name: str
    addresses: list[Address] = field(default_factory=list)


class Order(msgspec.Struct):
    id: int
    lines: dict[str, int] = {}


class Row(TypedDict):
    id: int
    label: str


class Point(NamedTuple):
    x: int
    y: int


class Model:
    """Looks like a pydantic model: `model_validate` and `model_dump` are all that packhorse asks for."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def __repr__(self) -> str:  # no address in it: processes that share the tests must agree on their names
        return f"Model({self.fields})"

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value, dict) or not isinstance(value.get("size"), int):
            raise ValueError("size: a whole number is required")  # noqa: TRY004  # as pydantic does
        return cls(**value)

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        assert mode == "json"
        return dict(self.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.fields == self.fields

    __hash__ = None  # type: ignore[assignment]


class Opaque:
    """A class that JSON cannot fill."""
