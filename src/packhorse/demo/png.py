"""PNG pictures in pure Python: read, scale, write. 8 bits a channel, not interlaced, of bounded size.

Format: W3C "Portable Network Graphics (PNG) Specification (Third Edition)", sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import msgspec

from ..wording import quantity

SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Pixels of one picture. Pure Python scales about a million a second, so a job stays far below its time-out.
PIXELS_MAX = 2_000_000
FILE_BYTES_MAX = 16 << 20

#: Colour type → bytes a pixel, at 8 bits a channel. Palettes (3) are left out.
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_COLOUR_TYPES = {channels: colour_type for colour_type, channels in _CHANNELS.items()}

#: One row or column of the result: where its source samples start, and the weight of each. They add up to 1.
Share = tuple[int, list[float]]


class InvalidImage(ValueError):
    """Bytes that are no PNG, a damaged one, or one of a kind this module does not read."""


class Image(msgspec.Struct, frozen=True):
    """A picture: `pixels` are rows from the top, each pixel `channels` bytes (gray, gray+alpha, RGB, RGBA)."""

    width: int
    height: int
    channels: int
    pixels: bytes


def check_size(width: int, height: int) -> None:
    """Refuse a picture without pixels or with more than `PIXELS_MAX`."""
    if width < 1 or height < 1 or width * height > PIXELS_MAX:
        raise InvalidImage(f"a picture of {width} x {height}; it must have 1 to {PIXELS_MAX:,} pixels")


# ---- reading ---------------------------------------------------------------------------------------------


def decode(data: bytes) -> Image:
    """Read a PNG file. Raises InvalidImage for whatever is not one, however it is damaged."""
    if len(data) > FILE_BYTES_MAX:
        raise InvalidImage(f"{quantity(len(data), 'byte')}; at most {FILE_BYTES_MAX:,} are read")
    if data[:8] != SIGNATURE:
        raise InvalidImage("not a PNG file: its signature is missing")
    header: tuple[int, int, int] | None = None
    packed: list[bytes] = []
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            header = _read_header(body)
        elif kind == b"IDAT":
            packed.append(body)
        elif kind[0] < 0x61 and kind not in {b"IEND", b"PLTE"}:  # a capital letter: cannot be left out
            raise InvalidImage(f"has a chunk {kind!r} this reader does not know")
    if header is None or not packed:
        raise InvalidImage("has no header or no pixels")
    width, height, channels = header
    raw = _inflate(b"".join(packed), height * (width * channels + 1))
    return Image(width, height, channels, _unfilter(raw, width * channels, height, channels))


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place < len(data):
        if place + 12 > len(data):
            raise InvalidImage("ends in the middle of a chunk")
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        tail = data[place + 8 + length : place + 12 + length]
        if len(tail) < 4 or not kind.isalpha():
            raise InvalidImage("ends in the middle of a chunk")
        if zlib.crc32(kind + body) != int.from_bytes(tail):
            raise InvalidImage(f"the checksum of its chunk {kind.decode()} is wrong")
        chunks.append((kind, body))
        if kind == b"IEND":
            return chunks
        place += 12 + length
    raise InvalidImage("has no end chunk")


def _read_header(body: bytes) -> tuple[int, int, int]:
    if len(body) != 13:
        raise InvalidImage("its header has the wrong length")
    width, height, depth, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth != 8 or colour_type not in _CHANNELS or compression or filtering or interlace:
        raise InvalidImage("only gray, gray+alpha, RGB and RGBA of 8 bits a channel, not interlaced, are read")
    check_size(width, height)
    return width, height, _CHANNELS[colour_type]


def _inflate(packed: bytes, length: int) -> bytes:
    """Unpack exactly `length` bytes. A bomb is cut off one byte behind them."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, length + 1)
    except zlib.error as error:
        raise InvalidImage(f"its pixels cannot be unpacked: {error}") from None
    if len(raw) != length:
        raise InvalidImage(f"has {'more' if len(raw) > length else 'fewer'} pixels than its header says")
    return raw


def _unfilter(raw: bytes, stride: int, height: int, step: int) -> bytes:
    above = bytearray(stride)
    rows = []
    for y in range(height):
        start = y * (stride + 1)
        row = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter_row(raw[start], row, above, step)
        rows.append(row)
        above = row
    return b"".join(rows)


def _unfilter_row(kind: int, row: bytearray, above: bytearray, step: int) -> None:
    """Undo one row's filter in place. `step` is the bytes of a pixel: the distance to its left neighbour."""
    match kind:
        case 0:
            return
        case 1:
            for i in range(step, len(row)):
                row[i] = (row[i] + row[i - step]) & 0xFF
        case 2:
            for i, up in enumerate(above):
                row[i] = (row[i] + up) & 0xFF
        case 3:
            for i, up in enumerate(above):
                left = row[i - step] if i >= step else 0
                row[i] = (row[i] + (left + up) // 2) & 0xFF
        case 4:
            for i, up in enumerate(above):
                left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
                row[i] = (row[i] + _paeth(left, up, corner)) & 0xFF
        case _:
            raise InvalidImage(f"has a row with the unknown filter {kind}")


def _paeth(left: int, up: int, corner: int) -> int:
    """Answer the neighbour nearest to left + up - corner; at a tie left, then up, then corner."""
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


# ---- writing ---------------------------------------------------------------------------------------------


def encode(image: Image) -> bytes:
    """Write a picture as a PNG file; each row with the filter `up`, which is quick and suits smooth pictures."""
    check_size(image.width, image.height)
    stride = image.width * image.channels
    if image.channels not in _COLOUR_TYPES or len(image.pixels) != stride * image.height:
        raise InvalidImage("the pixels do not fit the size")
    rows = [image.pixels[y * stride : (y + 1) * stride] for y in range(image.height)]
    filtered = [b"\x02" + bytes(rows[0])]
    filtered += [
        b"\x02" + bytes([(here - up) & 0xFF for here, up in zip(row, above, strict=True)])
        for above, row in pairwise(rows)
    ]
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, _COLOUR_TYPES[image.channels], 0, 0, 0)
    return (
        SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"".join(filtered), 6))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# ---- scaling ---------------------------------------------------------------------------------------------


def resize(image: Image, width: int, height: int) -> Image:
    """Scale a picture to `width` x `height`: area average where it shrinks, bilinear where it grows.

    Colours are weighted by their alpha, so that what cannot be seen does not bleed into what can.
    """
    check_size(width, height)
    planes = [_scale(plane, image.width, width, height) for plane in _to_planes(image)]
    return Image(width, height, image.channels, _from_planes(planes, width * height))


def shares(source: int, target: int) -> list[Share]:
    """Answer for each of `target` samples which of `source` samples it is made of, and with what weights."""
    return _shrink(source, target) if target < source else _grow(source, target)


def _shrink(source: int, target: int) -> list[Share]:
    scale = source / target
    found: list[Share] = []
    for i in range(target):
        low, high = i * scale, min((i + 1) * scale, float(source))
        first, last = int(low), min(source - 1, int(high))
        weights = [min(j + 1, high) - max(j, low) for j in range(first, last + 1)]
        if len(weights) > 1 and weights[-1] <= 1e-9:
            weights.pop()
        total = sum(weights)
        found.append((first, [weight / total for weight in weights]))
    return found


def _grow(source: int, target: int) -> list[Share]:
    scale = source / target
    found: list[Share] = []
    for i in range(target):
        place = min(max((i + 0.5) * scale - 0.5, 0.0), source - 1.0)
        first = int(place)
        part = place - first
        found.append((first, [1 - part, part] if part else [1.0]))
    return found


def _scale(plane: list[list[float]], source_width: int, width: int, height: int) -> list[list[float]]:
    across = shares(source_width, width)
    narrow = [
        [
            row[first] if len(weights) == 1 else sum(map(float.__mul__, weights, row[first : first + len(weights)]))
            for first, weights in across
        ]
        for row in plane
    ]
    scaled = []
    for first, weights in shares(len(plane), height):
        rows = narrow[first : first + len(weights)]
        scaled.append(
            [sum(map(float.__mul__, weights, column)) for column in zip(*rows, strict=True)]
            if len(weights) > 1
            else rows[0]
        )
    return scaled


def _to_planes(image: Image) -> list[list[list[float]]]:
    """Split a picture into planes of rows; colours are multiplied with their alpha, which is the last plane."""
    stride = image.width * image.channels
    planes: list[list[list[float]]] = [[] for _ in range(image.channels)]
    for start in range(0, stride * image.height, stride):
        row = image.pixels[start : start + stride]
        for channel, plane in enumerate(planes):
            plane.append([float(value) for value in row[channel :: image.channels]])
    if image.channels in {2, 4}:
        alpha = planes[-1]
        for plane in planes[:-1]:
            for y, line in enumerate(plane):
                plane[y] = [value * opacity / 255 for value, opacity in zip(line, alpha[y], strict=True)]
    return planes


def _from_planes(planes: list[list[list[float]]], count: int) -> bytes:
    channels = len(planes)
    flat = [[value for line in plane for value in line] for plane in planes]
    if channels in {2, 4}:
        alpha = flat[-1]
        for i, plane in enumerate(flat[:-1]):
            flat[i] = [
                value * 255 / opacity if opacity > 1e-6 else 0.0 for value, opacity in zip(plane, alpha, strict=True)
            ]
    pixels = bytearray(count * channels)
    for channel, plane in enumerate(flat):
        pixels[channel::channels] = bytes([min(255, max(0, round(value))) for value in plane])
    return bytes(pixels)
