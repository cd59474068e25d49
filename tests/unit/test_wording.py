"""Counts, durations and instants as people read them; and that no message writes a count past the one helper."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import packhorse
from packhorse.wording import age, quantity, when

SOURCES = Path(packhorse.__file__).parent

#: Words that are counted in messages. Not `runs`, `ends`, `keys` and `names`, which also follow a name.
_COUNTED = (
    "arguments|attempts|bytes|calls|characters|connections|days|deliveries|documents|entries|errors|events|failures|"
    "files|functions|groups|hits|hours|ids|items|jobs|lanes|levels|limits|lines|live ones|minutes|ones|parents|"
    "processes|queues|records|requests|rows|runners|samples|schedules|seconds|shards|slots|steps|times|tokens|twins|types|"
    "webhooks|workers"
)
_AFTER_A_FIELD = re.compile(rf" (?:[a-z]+ ){{0,2}}(?:{_COUNTED})(?![a-z/])")
_AFTER_A_PLACE = re.compile(rf"%d (?:[a-z]+ ){{0,2}}(?:{_COUNTED})\b")


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("job",), "0 jobs"),
        (1, ("job",), "1 job"),
        (2, ("job",), "2 jobs"),
        (1_234, ("job",), "1,234 jobs"),
        (1, ("process", "processes"), "1 process"),
        (3, ("process", "processes"), "3 processes"),
        (1, ("job is", "jobs are"), "1 job is"),
        (0, ("job is", "jobs are"), "0 jobs are"),
    ],
)
def test_quantity(count: int, words: tuple[str, ...], text: str) -> None:
    assert quantity(count, *words) == text


def test_age_and_when() -> None:
    assert [age(ms) for ms in (None, 850, 12_000, 192_000, 7_500_000, 788_400_000)] == [
        "-",
        "850ms",
        "12s",
        "3m12s",
        "2h5m",
        "9d3h",
    ]
    assert when(0, 60_000) == "1970-01-01T00:00:00.000Z (1m ago)"
    assert when(60_000, 0) == "1970-01-01T00:01:00.000Z (in 1m)"


def test_no_message_says_1_jobs() -> None:
    """A number before a plural is written by `quantity`, unless it is a bound, which is written in capitals."""
    found = [
        f"{path.relative_to(SOURCES)}:{line}: {text}"
        for path in sorted(SOURCES.rglob("*.py"))
        if "testing" not in path.parts and "benchmark" not in path.parts
        for line, text in _plurals(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_the_search_finds_plurals() -> None:
    text = 'say(f"{count:,} live jobs")\nlog.info("%d jobs", n)\nsay(f"at most {JOBS_MAX} jobs, {a.jobs_max} jobs")'
    assert [line for line, _ in _plurals(ast.parse(text))] == [1, 2]


def _plurals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    asserted = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Assert) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in asserted:
            continue
        if isinstance(node, ast.JoinedStr):
            for field, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(field, ast.FormattedValue) and isinstance(after, ast.Constant):
                    shown = ast.unparse(field.value)
                    if _AFTER_A_FIELD.match(str(after.value)) and not _is_no_count(shown):
                        yield node.lineno, f"{{{shown}}}{str(after.value)[:40]}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _AFTER_A_PLACE.search(node.value):
            yield node.lineno, node.value[:60]


def _is_no_count(shown: str) -> bool:
    """A bound, which is never 1; or a name, in front of a verb or of something it has."""
    return "_max" in shown.lower() or shown.startswith(("shown", "redact")) or shown in {"what", "name", "CONCURRENCY"}
