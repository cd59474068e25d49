"""The demo's own directory: made for it, marked as its own, and emptied of nothing but what it made itself."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..chance import Chance
from ..errors import ConfigurationError
from . import png

MARKER = ".packhorse-demo"
MARKER_TEXT = b"Made by `packhorse demo`, which deletes its own files here when it starts.\n"

#: All that a demo leaves; a new one deletes these and nothing else.
#: SQLite and packhorse keep side files whose names go on with a dash.
_OWN_FILES = ("jobs.db", "jobs.db-*", "index.db", "index.db-*", "outbox.jsonl", "worker.log")
_OWN_DIRECTORIES = ("documents", "images", "mail", "reports")


@contextmanager
def workspace(directory: Path) -> Iterator[Path]:
    """Hold `directory` (made if need be, mode 0700) empty of former demos' files, for one demo at a time.

    Raises ConfigurationError for a directory that has content and no marker, and while another demo holds it.
    """
    marker = _claim_directory(directory)
    try:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another demo runs in {directory}; wait for it, or give another --dir") from None
        _clear(directory)
        os.ftruncate(marker, 0)
        os.write(marker, MARKER_TEXT)
        yield directory
    finally:
        os.close(marker)


def _claim_directory(directory: Path) -> int:
    marker = directory / MARKER
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.is_symlink():
            raise ConfigurationError(f"{directory} is a link; give --dir a directory of its own")
        if not marker.exists() and any(directory.iterdir()):
            raise ConfigurationError(
                f"{directory} exists and was not made by the demo; give --dir another name, or an empty directory"
            )
        directory.chmod(0o700)
        return os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot use {directory}: {error.strerror}; give --dir another name") from None


def _clear(directory: Path) -> None:
    for pattern in _OWN_FILES:
        for path in directory.glob(pattern):
            path.unlink()
    for name in _OWN_DIRECTORIES:
        if (directory / name).is_dir() and not (directory / name).is_symlink():
            shutil.rmtree(directory / name)


# ---- pictures ----------------------------------------------------------------------------------------------


def draw_images(directory: Path, chance: Chance) -> None:
    """Draw the pictures that `image_resize` scales, and one that is broken, into `directory`/images."""
    folder = directory / "images"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, channels in (("gray.png", 1), ("rgb.png", 3), ("rgba.png", 4)):
        (folder / name).write_bytes(png.encode(_draw(160, 100, channels, chance)))
    damaged = bytearray((folder / "rgb.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (folder / "broken.png").write_bytes(damaged)


def _draw(width: int, height: int, channels: int, chance: Chance) -> png.Image:
    """Draw a disc over a slope of colours."""
    middle_x, middle_y = chance.below(width), chance.below(height)
    reach = (min(width, height) // 3) ** 2
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            inside = (x - middle_x) ** 2 + (y - middle_y) ** 2 < reach
            pixel = (255 * x // width, 255 * y // height, 40 if inside else 200, 255 if inside else 120)
            pixels += bytes([pixel[0] ^ (255 if inside else 0)]) if channels == 1 else bytes(pixel[:channels])
    return png.Image(width, height, channels, bytes(pixels))
