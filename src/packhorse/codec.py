"""What a payload or a result may be: plain JSON, strictly. One verdict on every way in.

Python objects and JSON text take different roads to `check`, and there meet the same rules (RFC 8259 leaves
them open; FAILURES C13 tells what happens without): finite numbers, whole numbers of signed 64 bits, valid Unicode
without NUL, no key twice, at most `DEPTH_MAX` levels and `PAYLOAD_BYTES_MAX` bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from .errors import InvalidPayload, PayloadTooLarge
from .wording import quantity

PAYLOAD_BYTES_MAX = 1 << 20
RESULT_BYTES_MAX = 1 << 20
DEPTH_MAX = 64
INT_MAX = (1 << 63) - 1

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Duplicate:
    def __init__(self, key: str) -> None:
        self.key = key


class _HugeInt:
    pass


def check(value: object, depth: int = 1) -> None:
    """Raise InvalidPayload, with the place, if `value` is not JSON that every backend keeps alike."""
    if not _is_sound(value, depth):
        _find_fault(value, depth, ())


def _is_sound(value: object, depth: int) -> bool:
    """Tell whether `_find_fault` would find nothing, without keeping account of places: that is half of the work."""
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        if depth > DEPTH_MAX:
            return False
        items: Iterable[object]
        if kind is dict:
            items = value.values()  # type: ignore[attr-defined]  # it is a dict
            for key in value:  # type: ignore[attr-defined]
                if type(key) is not str or not ((key.isascii() and "\0" not in key) or _is_text(key)):
                    return False
        else:
            items = value  # type: ignore[assignment]  # it is a list or a tuple
        for item in items:
            kind = type(item)
            if kind is str:
                if not ((item.isascii() and "\0" not in item) or _is_text(item)):  # type: ignore[attr-defined, operator, arg-type]
                    return False
            elif not (item is None or kind is bool or _is_sound(item, depth + 1)):
                return False
        return True
    if kind is str:
        return _is_text(value)  # type: ignore[arg-type]  # it is a str
    if kind is int:
        return -INT_MAX - 1 <= value <= INT_MAX  # type: ignore[operator]  # it is an int
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]  # it is a float
    return value is None or kind is bool


def _is_text(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False


def _find_fault(value: object, depth: int, path: tuple[str | int, ...]) -> None:
    """Raise InvalidPayload for the first place where `value` is not as it should be."""
    kind = type(value)
    if kind is str:
        _check_text(value, path)  # type: ignore[arg-type]  # it is a str
    elif value is None or kind is bool:
        return
    elif kind is int:
        if not -INT_MAX - 1 <= value <= INT_MAX:  # type: ignore[operator]  # it is an int
            raise InvalidPayload("a whole number must fit in signed 64 bits; send it as text", _pointer(path))
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]  # it is a float
            raise InvalidPayload("NaN and infinity are not JSON; send null or text", _pointer(path))
    elif kind is dict:
        if depth > DEPTH_MAX:
            raise InvalidPayload(f"nested deeper than {DEPTH_MAX} levels", _pointer(path))
        for key, item in value.items():  # type: ignore[attr-defined]  # it is a dict
            if type(key) is not str:
                raise InvalidPayload(f"keys must be text, not {type(key).__name__}", _pointer(path))
            _check_text(key, path)
            _find_fault(item, depth + 1, (*path, key))
    elif kind is list or kind is tuple:
        if depth > DEPTH_MAX:
            raise InvalidPayload(f"nested deeper than {DEPTH_MAX} levels", _pointer(path))
        for index, item in enumerate(value):  # type: ignore[arg-type]  # it is a list or a tuple
            _find_fault(item, depth + 1, (*path, index))
    elif kind is _Duplicate:
        raise InvalidPayload(f"the key {_short(value.key)} is there twice", _pointer(path))  # type: ignore[attr-defined]
    elif kind is _HugeInt:
        raise InvalidPayload("a whole number must fit in signed 64 bits; send it as text", _pointer(path))
    else:
        raise InvalidPayload(f"{kind.__name__} is not plain JSON", _pointer(path))


def _check_text(text: str, path: tuple[str | int, ...]) -> None:
    if text.isascii():
        if "\0" in text:
            raise InvalidPayload("text must not contain NUL (U+0000)", _pointer(path))
        return
    if "\0" in text:
        raise InvalidPayload("text must not contain NUL (U+0000)", _pointer(path))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidPayload("text must be valid Unicode, without lone surrogates", _pointer(path)) from None


def _pointer(path: tuple[str | int, ...]) -> str:
    steps = [_short(str(step))[1:-1].replace("~", "~0").replace("/", "~1") for step in path]
    return "".join(f"/{step}" for step in steps)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "…")


def encode(value: object, bytes_max: int = PAYLOAD_BYTES_MAX, *, checked: bool = False) -> bytes:
    """Write `value`, which must be plain JSON, as bytes. Raises InvalidPayload, PayloadTooLarge.

    `checked`: it is a part of what `parse` answered, at its depth.
    """
    if not checked:
        check(value)
    data = _encode(value)
    if len(data) > bytes_max:
        raise PayloadTooLarge(
            f"{quantity(len(data), 'byte')}; at most {bytes_max:,} are allowed. Store it elsewhere, send its name"
        )
    return data


def to_plain(value: object) -> Any:
    """Turn dataclasses, msgspec structs, dates, UUIDs, enums, sets and pydantic models into plain JSON values."""
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_dump_model)
    except (TypeError, ValueError) as error:
        raise InvalidPayload(clean_text(str(error), 500)) from None
    except RecursionError:
        raise InvalidPayload(f"nested deeper than {DEPTH_MAX} levels") from None
    except Exception as error:  # a model of the user's may raise anything while it is written
        raise InvalidPayload(f"{type(error).__name__}: {error}"[:500]) from error


def _dump_model(value: object) -> object:
    dump = getattr(value, "model_dump", None)  # pydantic's name for it; packhorse does not import pydantic
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def parse(text: str | bytes, bytes_max: int = PAYLOAD_BYTES_MAX, *, depth: int = 1) -> Any:
    """Read JSON text from outside, strictly. Raises InvalidPayload, PayloadTooLarge.

    `depth` is where its top level counts: below 1 for a document with payloads in it.
    """
    size = len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode(errors="surrogatepass"))
    if size > bytes_max:
        raise PayloadTooLarge(
            f"{quantity(size, 'byte')}; at most {bytes_max:,} are allowed. Store it elsewhere, send its name"
        )
    try:
        document = text.decode() if isinstance(text, bytes) else text
        value = _read_strictly(document)
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidPayload(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise InvalidPayload(f"nested deeper than {DEPTH_MAX} levels") from None
    check(value, depth)
    return value


def _unique_pairs(pairs: list[tuple[str, object]]) -> object:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    seen: set[str] = set()
    return next(_Duplicate(key) for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _small_int(digits: str) -> int | _HugeInt:
    return int(digits) if len(digits) <= 20 else _HugeInt()


def _not_finite(name: str) -> float:
    return math.nan if name == "NaN" else math.inf


#: Made once: `json.loads` would make one a call.
_read_strictly = json.JSONDecoder(
    object_pairs_hook=_unique_pairs, parse_int=_small_int, parse_constant=_not_finite
).decode


def decode(data: bytes) -> Any:
    """Read what `encode` wrote. Raises InvalidPayload for bytes that are not JSON."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidPayload(f"stored bytes that are not JSON: {error}") from None
    except RecursionError:
        raise InvalidPayload("stored bytes that are not JSON: nested too deep to be read") from None


def clean_text(text: str, chars_max: int) -> str:
    """Make text from outside storable everywhere: valid Unicode, no NUL, the middle cut out past `chars_max`."""
    if len(text) > chars_max:
        half = chars_max // 2
        text = f"{text[:half]}\n… {quantity(len(text) - chars_max, 'character')} left out …\n{text[-half:]}"
    clean = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    # Escapes are longer than what they stand for: cut again, now that nothing is left to escape.
    return clean if len(clean) <= len(text) or len(clean) <= chars_max else clean_text(clean, chars_max)
