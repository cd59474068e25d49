"""Reports on the index: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..wording import quantity
from .files import replace_file
from .textindex import Summary

#: A cell that starts with one of these is a formula to a spreadsheet, whatever the quotes around it say
#: (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Row = tuple[str, str, int]


def safe_cell(value: object) -> object:
    """Answer a cell that a spreadsheet shows and never runs."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA_STARTS):
        return "'" + value
    return value


def rows(summary: Summary) -> list[Row]:
    """Answer a summary as rows of section, name and number."""
    found: list[Row] = [
        ("total", "documents", summary.documents),
        ("total", "bytes", summary.bytes),
        ("total", "lines", summary.lines),
    ]
    found += [("longest", path, size) for path, size in summary.longest]
    found += [("word", word.word, word.occurrences) for word in summary.words]
    return found


def to_csv(summary: Summary) -> str:
    """Write a summary as CSV (RFC 4180)."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["section", "name", "number"])
    writer.writerows([[safe_cell(cell) for cell in row] for row in rows(summary)])
    return text.getvalue()


def to_markdown(summary: Summary, title: str) -> str:
    """Write a summary as Markdown."""
    lines = [
        f"# {title}",
        "",
        ", ".join(
            [quantity(summary.documents, "document"), quantity(summary.bytes, "byte"), quantity(summary.lines, "line")]
        )
        + ".",
        "",
        "| longest documents | bytes |",
        "|---|---:|",
        *[f"| {_plain(path)} | {size:,} |" for path, size in summary.longest],
        "",
        "| most frequent words | occurrences | documents |",
        "|---|---:|---:|",
        *[f"| {_plain(word.word)} | {word.occurrences:,} | {word.documents:,} |" for word in summary.words],
        "",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Write text so that Markdown shows it as it is."""
    shown = "".join(char if char.isprintable() else "�" for char in text)
    return "".join("\\" + char if char in "\\`*_{}[]<>|#" else char for char in shown)


def write_report(summary: Summary, folder: Path, name: str) -> list[Path]:
    """Write `name`.md and `name`.csv into `folder`, each in place of an older one."""
    files = {
        folder / f"{name}.md": to_markdown(summary, f"Report: {name}"),
        folder / f"{name}.csv": to_csv(summary),
    }
    for path, text in files.items():
        replace_file(path, text.encode())
    return list(files)
