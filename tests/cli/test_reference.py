"""The reference and the help cannot leave out a command, an option or a setting."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from packhorse.cli.jobs import JOBS
from packhorse.cli.lazy import Entry
from packhorse.cli.limits import LIMITS
from packhorse.cli.main import COMMANDS, root
from packhorse.cli.queues import QUEUES
from packhorse.cli.schedules import SCHEDULES
from packhorse.cli.tokens import TOKENS
from packhorse.cli.workflows import WORKFLOWS
from packhorse.settings import ALIASES, Settings, own_name

from .kit import Cli
from .reference import PAGES, REFERENCE, aliases, commands

ALL = dict(commands())


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    page = REFERENCE / name
    assert page.read_text(encoding="utf-8") == PAGES[name](), "run: python -m tests.cli.reference"


@pytest.mark.parametrize("words", ALL)
def test_every_command_and_option_is_on_the_page(words: str) -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"### `{words}`\n")
    section = section.partition("\n### ")[0]
    assert section
    for name in [*aliases(words), *(name for param in ALL[words].params for name in param.opts)]:
        assert f"`{name}`" in section or name in {param.name for param in ALL[words].params}, name


@pytest.mark.parametrize("words", ALL)
def test_help_mentions_every_option_and_says_what_it_is_for(words: str) -> None:
    result = CliRunner().invoke(root, [*words.split()[1:], "--help"])
    assert result.exit_code == 0
    command = ALL[words]
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{words} {param.name} has no help"
            for name in param.opts:
                assert re.search(rf"(^|\s){re.escape(name)}\b", result.stdout), name


@pytest.mark.parametrize("entries", [COMMANDS, JOBS, QUEUES, SCHEDULES, LIMITS, WORKFLOWS, TOKENS])
def test_the_tables_name_commands_that_exist_and_no_name_twice(entries: dict[str, Entry]) -> None:
    names = [name for command, entry in entries.items() for name in (command, *entry.aliases)]
    assert len(names) == len(set(names))
    names_of = {
        "jobs": JOBS,
        "queues": QUEUES,
        "schedules": SCHEDULES,
        "limits": LIMITS,
        "workflows": WORKFLOWS,
        "tokens": TOKENS,
    }
    group = next((name for name, table in names_of.items() if table is entries), "")
    for name, entry in entries.items():
        listed = CliRunner().invoke(root, [*group.split(), "--help"]).stdout
        assert f"  {name} " in listed
        assert entry.help.endswith(".")


def test_every_alias_is_the_same_command() -> None:
    context = click.Context(root)
    for name, entry in COMMANDS.items():
        for alias in entry.aliases:
            assert root.get_command(context, alias) is root.get_command(context, name)


def test_every_setting_and_every_name_of_it_is_on_the_page() -> None:
    page = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    for field in Settings.__struct_fields__:
        assert f"| `{field.removesuffix('_ms')}` | `{own_name(field)}` |" in page
    for alias in ALIASES:
        assert f"`{alias}`" in page


def test_reading_commands_have_json() -> None:
    top = {"stats", "top", "health", "workers", "list-failed", "version"}
    grouped = {"jobs list", "jobs show", "jobs why", "queues list", "limits list", "limits show", "tokens list"}
    for words in top | grouped | {"workflows list", "workflows show"}:
        assert "--json" in {name for param in ALL[f"packhorse {words}"].params for name in param.opts}


def test_every_command_on_a_store_takes_the_url() -> None:
    for words, command in ALL.items():
        if words.split()[1] not in {"version", "bench", "demo", "move", "tokens"}:
            assert "--url" in {name for param in command.params for name in param.opts}, words


def test_a_command_that_is_not_there_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "later", Entry("packhorse.cli.later:later", "Not yet."))
    assert "not part of this installation" in cli("later", code=2).stderr


def test_version_and_migrate(cli: Cli) -> None:
    from packhorse import __version__

    assert cli("version").stdout == f"{__version__}\n"
    assert cli.json("version") == {"version": __version__}
    assert cli.json("migrate") == {"schema": 0}
    assert cli("migrate").stdout == "the store has schema 0\n"
