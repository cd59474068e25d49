"""PNG pictures, against files put together here by hand: every filter, every kind, every damage."""

from __future__ import annotations

import struct
import zlib

import pytest

from packhorse.demo import png
from packhorse.demo.png import Image, InvalidImage, decode, encode, resize

RGB = 2
GRAY = 0


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def by_hand(width: int, height: int, colour_type: int, rows: bytes, *, header: bytes | None = None) -> bytes:
    head = header or struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    packed = zlib.compress(rows)
    # In two pieces: a decoder must join the data chunks before it unpacks them.
    pieces = chunk(b"IDAT", packed[:3]) + chunk(b"IDAT", packed[3:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tEXt", b"Title\0x") + pieces + chunk(b"IEND", b"")


# Two rows of three gray pixels, 10 20 30 over 200 100 255, the second row filtered in each of the five ways.
# Worked out on paper from the definitions in section 9.2 of the specification.
@pytest.mark.parametrize(
    ("kind", "filtered"),
    [
        (0, [200, 100, 255]),
        (1, [200, 156, 155]),  # less the left: 200-0, 100-200, 255-100
        (2, [190, 80, 225]),  # less the upper: 200-10, 100-20, 255-30
        (3, [195, 246, 190]),  # less half of both: 200-5, 100-110, 255-65
        # Less Paeth: left 0, up 10, corner 0 → up 10; left 200, up 20, corner 10, guess 210 → left 200;
        # left 100, up 30, corner 20, guess 110 → left 100.
        (4, [190, 156, 155]),
    ],
    ids=["none", "sub", "up", "average", "paeth"],
)
def test_every_filter_is_undone(kind: int, filtered: list[int]) -> None:
    data = by_hand(3, 2, GRAY, bytes([0, 10, 20, 30, kind, *filtered]))

    assert decode(data) == Image(3, 2, 1, bytes([10, 20, 30, 200, 100, 255]))


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_left_neighbour_is_a_whole_pixel_away(kind: int) -> None:
    # One row of RGB over nothing: left of the second pixel is the first, channel by channel.
    first, second = [10, 20, 30], [15, 18, 36]
    lefts = {1: first, 3: [value // 2 for value in first], 4: first}[kind]
    row = [kind, *first, *[(value - left) % 256 for value, left in zip(second, lefts, strict=True)]]

    assert decode(by_hand(2, 1, RGB, bytes(row))).pixels == bytes(first + second)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_was_written_is_read_back(channels: int) -> None:
    image = Image(7, 5, channels, bytes(i * 37 % 256 for i in range(7 * 5 * channels)))

    assert decode(encode(image)) == image


def damaged(change: str) -> bytes:
    good = by_hand(2, 1, GRAY, b"\x00\x01\x02")
    head = struct.pack(">IIBBBBB", 2, 1, 8, GRAY, 0, 0, 0)
    match change:
        case "no signature":
            return b"GIF89a" + good
        case "cut":
            return good[:-20]
        case "no end":
            return good[:-12]
        case "checksum":
            return good.replace(b"Title", b"Titel")
        case "unknown critical chunk":
            return good[:33] + chunk(b"ABCD", b"") + good[33:]
        case "few pixels":
            return by_hand(2, 1, GRAY, b"\x00\x01")
        case "many pixels":
            return by_hand(2, 1, GRAY, b"\x00\x01\x02\x03")
        case "unknown filter":
            return by_hand(2, 1, GRAY, b"\x05\x01\x02")
        case "not packed":
            return good[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", b"abc") + chunk(b"IEND", b"")
        case "no pixels":
            return good[:8] + chunk(b"IHDR", head) + chunk(b"IEND", b"")
        case "16 bits":
            return by_hand(2, 1, GRAY, b"", header=struct.pack(">IIBBBBB", 2, 1, 16, GRAY, 0, 0, 0))
        case "interlaced":
            return by_hand(2, 1, GRAY, b"", header=struct.pack(">IIBBBBB", 2, 1, 8, GRAY, 0, 0, 1))
        case "empty":
            return by_hand(0, 1, GRAY, b"", header=struct.pack(">IIBBBBB", 0, 1, 8, GRAY, 0, 0, 0))
        case "huge":
            return by_hand(0, 0, GRAY, b"", header=struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, GRAY, 0, 0, 0))
        case "short header":
            return by_hand(2, 1, GRAY, b"", header=b"\0" * 12)
    raise AssertionError(change)


@pytest.mark.parametrize(
    "change",
    [
        "no signature",
        "cut",
        "no end",
        "checksum",
        "unknown critical chunk",
        "few pixels",
        "many pixels",
        "unknown filter",
        "not packed",
        "no pixels",
        "16 bits",
        "interlaced",
        "empty",
        "huge",
        "short header",
    ],
)
def test_damage_is_named_and_nothing_else_is_raised(change: str) -> None:
    with pytest.raises(InvalidImage):
        decode(damaged(change))


def test_any_flipped_byte_gives_a_picture_or_invalid_image() -> None:
    good = encode(Image(4, 3, 3, bytes(range(36))))
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x55
        try:
            decode(bytes(bad))
        except InvalidImage:
            continue


def test_a_bomb_is_not_unpacked() -> None:
    bomb = by_hand(1, 1, GRAY, b"\0" * 50_000_000)

    with pytest.raises(InvalidImage, match="more"):
        decode(bomb)


def test_shrinking_takes_the_mean_of_the_area() -> None:
    image = Image(4, 2, 1, bytes([0, 100, 10, 10, 100, 200, 30, 50]))

    assert resize(image, 2, 1).pixels == bytes([100, 25])


def test_growing_goes_straight_from_pixel_to_pixel() -> None:
    assert list(resize(Image(2, 1, 1, bytes([0, 100])), 4, 1).pixels) == [0, 25, 75, 100]


@pytest.mark.parametrize(("source", "target"), [(5, 2), (2, 5), (7, 7), (1, 9), (9, 1), (160, 77)])
def test_shares_add_up_to_one_and_stay_inside(source: int, target: int) -> None:
    for first, weights in png.shares(source, target):
        assert sum(weights) == pytest.approx(1)
        assert first >= 0
        assert first + len(weights) <= source


def test_the_same_size_changes_nothing() -> None:
    image = Image(5, 4, 3, bytes(i * 11 % 256 for i in range(60)))

    assert resize(image, 5, 4) == image


def test_invisible_colours_do_not_bleed_into_visible_ones() -> None:
    red_beside_invisible_green = Image(2, 1, 4, bytes([255, 0, 0, 255, 0, 255, 0, 0]))

    assert list(resize(red_beside_invisible_green, 1, 1).pixels) == [255, 0, 0, 128]


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (-1, 5), (png.PIXELS_MAX + 1, 1)])
def test_sizes_out_of_bounds_are_refused(width: int, height: int) -> None:
    with pytest.raises(InvalidImage):
        resize(Image(1, 1, 1, b"\0"), width, height)


def test_the_largest_size_is_accepted() -> None:
    png.check_size(png.PIXELS_MAX, 1)


def test_pixels_that_do_not_fit_are_not_written() -> None:
    with pytest.raises(InvalidImage):
        encode(Image(2, 2, 1, b"\0\0\0"))
