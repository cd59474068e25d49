"""Tables on terminals of any width: nothing is cut, ids can be copied, instants and long texts make room."""

from __future__ import annotations

import click
import pytest

from packhorse.admin_values import slots_taken
from packhorse.backends.base import WorkerInfo
from packhorse.cli.output import Instant, emit_table
from packhorse.clock import SYSTEM_CLOCK

ID = "01a20448-c0f1-7123-ae31-949f7c442e1f"
HEADERS = ("id", "attempt", "created", "error")
ERROR = "ValueError: no such [bold]address[/bold]"


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, error: str) -> list[str]:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")  # rich takes a dumb one for 80 columns wide
    created = Instant(SYSTEM_CLOCK.now_ms() - 65_500)
    emit_table(HEADERS, [[ID, "1/4", created, error]], right=["attempt"], below="error")
    return click.unstyle(capsys.readouterr().out).splitlines()


def test_all_stands_in_one_line_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, row = shown(capsys, monkeypatch, 200, ERROR)
    assert row.startswith(f"{ID}      1/4  20")
    assert row.endswith(f"Z  {ERROR}")
    assert head.index("error") == row.index("ValueError")


def test_instants_become_short_before_a_text_goes_below_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, monkeypatch, 96, ERROR)[1] == f"{ID}     1/4 1m5s ago {ERROR}"
    head, row, below = shown(capsys, monkeypatch, 80, ERROR)
    assert head.split() == ["id", "attempt", "created"]
    assert (row, below) == (f"{ID}      1/4  1m5s ago", f"  {ERROR}")


def test_a_row_without_text_has_no_line_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(shown(capsys, monkeypatch, 60, "")) == 2


@pytest.mark.parametrize("columns", [10, 20, 40, 60])
def test_no_id_is_ever_broken(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any(ID in line for line in shown(capsys, monkeypatch, columns, ERROR))


def test_elsewhere_than_on_a_terminal_nothing_depends_on_the_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    emit_table(HEADERS, [[ID, "1/4", Instant(0), ERROR], [ID, "10/10", Instant(None), None]], right=["attempt"])
    assert capsys.readouterr().out.splitlines() == [
        "ID                                    ATTEMPT  CREATED                   ERROR",
        f"{ID}      1/4  1970-01-01T00:00:00.000Z  {ERROR}",
        f"{ID}    10/10",
    ]


@pytest.mark.parametrize(
    ("busy", "running", "concurrency", "taken"),
    [
        (20, 20, 24, 20),
        (24, 454, 24, 24),  # most of them claimed ahead
        (0, 454, 24, 0),  # claimed just now, nothing started yet
        (24, 0, 24, 0),  # all ended since the worker was heard
        (30, 40, 24, 24),  # never above its slots, whatever it says
        (3, 5, 0, 3),  # one that does not tell its slots
    ],
)
def test_the_slots_that_a_worker_uses(busy: int, running: int, concurrency: int, taken: int) -> None:
    assert slots_taken(WorkerInfo(id="w", busy=busy, running=running, concurrency=concurrency)) == taken
