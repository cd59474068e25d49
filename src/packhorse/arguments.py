"""Between a payload and a handler's parameters: typed, and checked on both ends by the handler's own signature.

A JSON object fills the parameters by name. Anything else (text, a number, a list) is the one parameter of a
handler that has just one. A handler whose only parameter is called `payload` takes the payload as it is.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from . import codec
from .errors import ConfigurationError, InvalidPayload
from .wording import quantity

_EMPTY = inspect.Parameter.empty


class Arguments:
    """The parameters of one handler that come from the payload; `injected` are those that do not."""

    def __init__(self, handler: Callable[..., Any], injectable: Callable[[object], bool]) -> None:
        self.signature = inspect.signature(handler)
        self.injected: dict[str, object] = {}
        self._hints = _type_hints(handler)
        self.result_type = self._hints.get("return", Any)
        self._parameters: dict[str, inspect.Parameter] = {}
        self._open = False  # takes **kwargs
        for name, parameter in self.signature.parameters.items():
            self._take(handler, name, parameter, injectable)
        self._names = tuple(self._parameters)
        self._by_place = tuple(
            name for name, parameter in self._parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )
        self._whole = self._names == ("payload",) and not self._open
        self._lone = self._names[0] if len(self._names) == 1 and not self._open else None
        self._struct = self._make_struct(handler)
        self._read_object = self._decoder(handler, self._struct)
        self._read_lone = self._decoder(handler, self._hint(self._lone)) if self._lone else None

    def _take(
        self, handler: Callable[..., Any], name: str, parameter: inspect.Parameter, injectable: Callable[[object], bool]
    ) -> None:
        if injectable(self._hints.get(name)):
            self.injected[name] = self._hints[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            self._open = True
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(
                f"{_name(handler)}: arguments travel by name, so {parameter} cannot be filled; name the parameter"
            )
        else:
            self._parameters[name] = parameter

    def _hint(self, name: str) -> Any:
        return self._hints.get(name, Any)

    def _make_struct(self, handler: Callable[..., Any]) -> type[msgspec.Struct]:
        fields: list[Any] = []
        for name, parameter in self._parameters.items():
            hint = self._hint(name)
            if parameter.default is _EMPTY:
                fields.append((name, hint))
            else:
                fields.append((name, hint | msgspec.UnsetType if _unites(hint) else Any, msgspec.UNSET))
        try:
            return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=not self._open, gc=False)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{_name(handler)}: its parameters cannot be read from JSON: {error}") from None

    @staticmethod
    def _decoder(handler: Callable[..., Any], kind: Any) -> Callable[[bytes], Any]:
        try:
            return msgspec.json.Decoder(kind, dec_hook=_load_model).decode
        except TypeError as error:
            raise ConfigurationError(f"{_name(handler)}: its parameters cannot be read from JSON: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the payload fills."""
        return self._names

    # ---- at enqueue ------------------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Write the arguments of a call as a payload. Raises InvalidPayload where the handler would not take them."""
        if args:
            kwargs = self._name_positional(args, kwargs)
        if self._whole:
            if kwargs.keys() != {"payload"}:
                raise InvalidPayload("give one argument, the payload")
            return self.write(kwargs["payload"])
        return self.write(kwargs)

    def _name_positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._by_place):
            taken = f"{len(self._by_place)} taken by place: {', '.join(self._by_place)}"
            raise InvalidPayload(f"{quantity(len(args), 'argument')} given, {taken}")
        named = dict(zip(self._by_place, args, strict=False))
        twice = named.keys() & kwargs.keys()
        if twice:
            raise InvalidPayload(f"{min(twice)} is given twice")
        return named | kwargs

    def write(self, payload: object, *, checked: bool = False) -> bytes:
        """Check a payload against the handler and write it. Raises InvalidPayload with the place.

        `checked`: it is plain JSON as `codec.parse` answers it, so only the handler is left to ask.
        """
        plain = payload if checked else codec.to_plain(payload)
        data = codec.encode(plain, checked=checked)
        try:
            if self._whole:
                convert(plain, self._hint("payload"))
            elif isinstance(plain, dict):
                convert(plain, self._struct)
            elif self._lone is not None:
                convert(plain, self._hint(self._lone))
            else:
                raise InvalidPayload(f"must be an object with {', '.join(self._names) or 'nothing in it'}")
        except msgspec.ValidationError as error:
            raise _misfit(error) from None
        except InvalidPayload:
            raise
        except Exception as error:  # a model of the user's may raise anything while it validates
            raise InvalidPayload(f"{type(error).__name__}: {error}"[:500]) from None
        return data

    # ---- before the handler ----------------------------------------------------------------------------

    def read(self, payload: bytes) -> dict[str, Any]:
        """Read a payload into the handler's arguments. Raises InvalidPayload."""
        if not self._names and payload == b"{}":
            return {}
        try:
            if self._whole:
                assert self._read_lone is not None
                return {"payload": self._read_lone(payload)}
            if payload[:1] != b"{" and self._lone is not None and self._read_lone is not None:
                return {self._lone: self._read_lone(payload)}
            values = self._read_object(payload)
        except msgspec.ValidationError as error:
            raise _misfit(error) from None
        except Exception as error:  # not JSON, or a model of the user's raised while it validated
            raise InvalidPayload(f"{type(error).__name__}: {error}"[:500]) from None
        found = {name: value for name in self._names if (value := getattr(values, name)) is not msgspec.UNSET}
        if self._open:
            found |= {name: value for name, value in codec.decode(payload).items() if name not in self._parameters}
        return found

    def schema(self) -> dict[str, Any]:
        """Answer the JSON Schema of the payload: an object, or what the one parameter takes by itself."""
        if self._whole or self._lone is None:
            kind = self._hint("payload") if self._whole else self._struct
            return msgspec.json.schema(kind, schema_hook=_model_schema)
        kinds = [self._struct, self._hint(self._lone)]
        (whole, alone), parts = msgspec.json.schema_components(kinds, schema_hook=_model_schema)
        if parts.get(alone.get("$ref", "").rpartition("/")[2], alone).get("type") == "object":
            return {**whole, "$defs": parts}  # an object is read by the parameters' names, always
        return {"anyOf": [whole, {**alone, "not": {"type": "object"}}], "$defs": parts}


def _type_hints(handler: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(handler, include_extras=True)
    except Exception as error:  # an annotation may name anything
        raise ConfigurationError(
            f"{_name(handler)}: its annotations cannot be resolved ({error}); import what they name at module level"
        ) from None


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", repr(handler))


def _unites(hint: Any) -> bool:
    try:
        hint | msgspec.UnsetType  # only whether it can be written
    except TypeError:
        return False
    return True


def convert(plain: Any, kind: Any) -> Any:
    """Turn plain JSON values into what an annotation asks for, as `Arguments.read` does with bytes."""
    return msgspec.convert(plain, kind, str_keys=True, dec_hook=_load_model)


def _load_model(kind: Any, value: Any) -> Any:
    if kind is object:
        return value
    validate = getattr(kind, "model_validate", None)  # pydantic's name for it
    if validate is not None:
        return validate(value)
    raise TypeError(f"{kind.__name__} cannot be read from JSON: use a dataclass, or give it a model_validate method")


def _model_schema(kind: Any) -> dict[str, Any]:
    schema = getattr(kind, "model_json_schema", None)
    return schema() if schema is not None else {"title": kind.__name__}


def _misfit(error: msgspec.ValidationError) -> InvalidPayload:
    """Rewrite msgspec's `... - at `$.a[0].b`` as a message and a JSON pointer."""
    message, _, place = str(error).partition(" - at `$")
    pointer = place.rstrip("`").replace("[...]", "/-").replace("[", "/").replace("]", "").replace(".", "/")
    return InvalidPayload(message, pointer)
