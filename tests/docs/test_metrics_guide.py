"""docs/metrics.md names every metric there is, with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from packhorse.observe.labels import QUEUES_MAX, TYPES_MAX
from packhorse.observe.meters import HISTOGRAMS_MAX, SERIES_MAX
from packhorse.observe.metrics import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_tables_are_the_table_of_the_code() -> None:
    rows = re.findall(r"^\| `((?:packhorse|worker)_\w+)` \|([^|]*)\|", PAGE, flags=re.MULTILINE)
    told = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert len(rows) == len(told)
    assert told == {metric.name: metric.labels for metric in METRICS.values()}


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"{TYPES_MAX} types and {QUEUES_MAX} queues" in PAGE
    assert f"{SERIES_MAX:,} series at most, a histogram {HISTOGRAMS_MAX}" in PAGE
