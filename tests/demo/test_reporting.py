"""Reports: numbers for people and for spreadsheets, which run nothing of it."""

from __future__ import annotations

import csv
import io

import pytest

from packhorse.demo.reporting import safe_cell, to_csv, to_markdown
from packhorse.demo.textindex import Summary, Word

SUMMARY = Summary(
    documents=2,
    bytes=1234,
    lines=56,
    longest=[("=cmd|' /C calc'!A0", 1000), ('quote".py', 234)],
    words=[Word("horse", 7, 2)],
)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "＝"])
def test_no_cell_is_a_formula(start: str) -> None:
    assert safe_cell(start + "1+1") == f"'{start}1+1"


@pytest.mark.parametrize("cell", ["a=b", "horse", "", 5, -5])
def test_other_cells_stay_as_they_are(cell: object) -> None:
    assert safe_cell(cell) == cell


def test_csv_is_read_back() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(SUMMARY), newline="")))

    assert rows == [
        ["section", "name", "number"],
        ["total", "documents", "2"],
        ["total", "bytes", "1234"],
        ["total", "lines", "56"],
        ["longest", "'=cmd|' /C calc'!A0", "1000"],
        ["longest", 'quote".py', "234"],
        ["word", "horse", "7"],
    ]


def test_markdown_shows_names_as_they_are() -> None:
    summary = Summary(documents=1, bytes=1, lines=1, longest=[("<b>|x`\n", 1)], words=[])

    text = to_markdown(summary, "Title")

    assert "# Title" in text
    assert "| \\<b\\>\\|x\\`� | 1 |" in text
