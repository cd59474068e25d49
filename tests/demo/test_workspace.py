"""The demo's directory: private, and nothing is deleted that a demo did not make."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.chance import Chance
from packhorse.demo import png
from packhorse.demo.workspace import MARKER, draw_images, workspace
from packhorse.errors import ConfigurationError


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    with workspace(tmp_path / "a" / "demo") as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / MARKER).exists()


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    with workspace(tmp_path):
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_directory_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_text("mine")
    mode = tmp_path.stat().st_mode

    with pytest.raises(ConfigurationError, match="not made by the demo"), workspace(tmp_path):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["jobs.db"]
    assert (tmp_path / "jobs.db").read_text() == "mine"
    assert tmp_path.stat().st_mode == mode


def test_a_second_demo_deletes_what_the_first_made_and_nothing_else(tmp_path: Path) -> None:
    with workspace(tmp_path / "demo") as directory:
        for name in ("jobs.db", "jobs.db-wal", "jobs.db-wake", "index.db", "outbox.jsonl", "worker.log"):
            (directory / name).write_text("old")
        (directory / "mail" / "new").mkdir(parents=True)
        (directory / "mail" / "new" / "1").write_text("old")
        (directory / "notes.txt").write_text("the user's own")
        (directory / "jobs.db.backup").write_text("the user's own")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "keep").write_text("keep")
        (directory / "reports").symlink_to(tmp_path / "elsewhere")
    with workspace(tmp_path / "demo") as directory:
        left = sorted(path.name for path in directory.iterdir())

    assert left == [MARKER, "jobs.db.backup", "notes.txt", "reports"]
    assert (tmp_path / "elsewhere" / "keep").exists()


def test_two_demos_do_not_share_a_directory(tmp_path: Path) -> None:
    with (
        workspace(tmp_path / "demo"),
        pytest.raises(ConfigurationError, match="another demo"),
        workspace(tmp_path / "demo"),
    ):
        pass


def test_a_file_or_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(ConfigurationError), workspace(tmp_path / name):
            pass
    assert list((tmp_path / "real").iterdir()) == []


def test_pictures_can_be_read_and_one_is_broken(tmp_path: Path) -> None:
    draw_images(tmp_path, Chance(1))

    channels = {
        name: png.decode((tmp_path / "images" / f"{name}.png").read_bytes()).channels
        for name in ("gray", "rgb", "rgba")
    }
    assert channels == {"gray": 1, "rgb": 3, "rgba": 4}
    with pytest.raises(png.InvalidImage):
        png.decode((tmp_path / "images" / "broken.png").read_bytes())
