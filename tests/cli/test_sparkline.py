"""Numbers as a row of bars."""

from __future__ import annotations

import pytest

from packhorse.cli.sparkline import ASCII, BLOCKS, can_show, ramp_for, sparkline, spread


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([0, 0, 0], "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1, 10_000], "▂█"),  # one among thousands is seen
        ([None, 3, None], " █ "),
        ([-5, 5], "▁█"),
        ([0.25, 0.5], "▅█"),
        ([10**30, 1], "█▂"),
    ],
)
def test_the_largest_is_the_highest_bar(values: list[float | None], drawn: str) -> None:
    assert sparkline(values) == drawn


def test_a_scale_that_is_given_holds() -> None:
    assert sparkline([5, 10], most=20) == "▃▅"
    assert sparkline([50], most=20) == "█"


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert ramp_for("utf-8") == BLOCKS
    assert ramp_for("latin-1") == ramp_for(None) == ramp_for("no such encoding") == ASCII
    assert sparkline([0, 7, None], ASCII) == ".@ "
    assert len(BLOCKS) == len(ASCII) == 8
    assert not can_show("…", "ascii")


def test_instants_are_spread_over_equal_parts_of_the_time() -> None:
    assert spread([0, 1, 2, 3, 4, 9], 0, 9, 5) == [2, 2, 1, 0, 1]
    assert spread([7, 7], 7, 7, 3) == [2, 0, 0]
    assert spread([-1, 11], 0, 9, 2) == [0, 0]
    assert sum(spread(range(1_000), 0, 999, 7)) == 1_000
