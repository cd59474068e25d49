"""Whoever is woken at night copies from these pages: each command must be one, each metric be there."""

import re
from pathlib import Path

import click
import pytest

from packhorse.cli.main import root
from packhorse.observe import metrics

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("observing", "monitoring", "logs", "top", "profiling"))]
_NAMES = {metric.name for metric in vars(metrics).values() if isinstance(metric, metrics.Metric)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_with_its_options(page: str) -> None:
    text = re.sub(r"(`[^`\n]*)\n([^`\n]*`)", r"\1 \2", (ROOT / page).read_text())  # code that goes over two lines
    found = re.findall(r"(?:^\$ |`)packhorse ([^`\n|>#]+)", text, re.MULTILINE)
    assert found
    for line in found:
        command: click.Command = root
        words = line.split()
        context = click.Context(root)
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            word = words.pop(0)
            below = command.get_command(context, word)
            assert below is not None, f"{page}: packhorse {line}"
            command = below
        options = {"--help", *(name for option in command.params for name in (*option.opts, *option.secondary_opts))}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in options, f"{page}: packhorse {line}"


@pytest.mark.parametrize("page", [*PAGES, "docs/metrics.md"])
def test_every_metric_exists(page: str) -> None:
    for name in set(re.findall(r"`(packhorse_[a-z_]+[a-z])[`{]", (ROOT / page).read_text())):
        assert name in _NAMES, f"{page} names {name}"


def test_headings_that_are_linked_exist() -> None:
    for page, heading in re.findall(r"\]\((\w+\.md)#([\w-]+)\)", (ROOT / "docs/observing.md").read_text()):
        titles = re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading
