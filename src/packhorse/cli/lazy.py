"""Groups whose commands are imported only when one is called, so that `--help` costs no more than click."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """A command that is not imported yet: where it is (`module:attribute`), its help in one line, its other names."""

    target: str
    help: str
    aliases: tuple[str, ...] = ()


class LazyGroup(click.Group):
    """A group that knows its commands from a table."""

    def __init__(self, *, entries: dict[str, Entry], **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]  # passed on as click takes them
        self.entries = entries
        self._names = {alias: name for name, entry in entries.items() for alias in entry.aliases}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self._names.get(cmd_name, cmd_name)
        entry = self.entries.get(name)
        if entry is None:
            return None
        module_name, _, attribute = entry.target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            raise click.UsageError(
                f"the command {name} is not part of this installation; reinstall packhorse"
            ) from None
        command = getattr(module, attribute)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*self.entries, *self._names], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            ctx.fail(f"there is no command {args[0][:40]!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, entry.help + (f" (also: {', '.join(entry.aliases)})" if entry.aliases else ""))
            for name, entry in self.entries.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
