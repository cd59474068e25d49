"""`tokens create`, `list` and `revoke`: who may use the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .failing import DONE
from .lazy import Entry, LazyGroup
from .output import emit_json, emit_table, note, say
from .shell import Shell, json_option, pass_shell

if TYPE_CHECKING:
    from ..server.door.tokens import Token, TokensFile

TOKENS = {
    "create": Entry("packhorse.cli.tokens:create", "Make a token and print it, once."),
    "list": Entry("packhorse.cli.tokens:list_tokens", "List the tokens, without their secrets."),
    "revoke": Entry("packhorse.cli.tokens:revoke", "Make tokens worthless, within a second."),
}


@click.command(cls=LazyGroup, entries=TOKENS)
def tokens() -> None:
    """Make, list and revoke the tokens of the server.

    They are kept, as hashes, in packhorse-tokens.json of the working directory, or where PACKHORSE_TOKENS_FILE says.
    """


@click.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--role",
    type=click.Choice(["read", "submit", "work", "admin"]),
    default="admin",
    show_default=True,
    help="What it may do: see; also enqueue; also run jobs; also cancel, rerun, delete, pause and the like.",
)
@click.option("--queue", "queues", metavar="QUEUE", multiple=True, help="Only this queue; may be given again.")
@click.option("--expires", metavar="DURATION", help="How long it is good for, e.g. 30d. Otherwise until it is revoked.")
@json_option
@pass_shell
def create(shell: Shell, as_json: bool, name: str, role: str, queues: tuple[str, ...], expires: str | None) -> int:
    """Make a token and print it. This is the only time that it can be seen.

    Clients send it as `Authorization: Bearer TOKEN`. With tokens, the server may listen beyond 127.0.0.1.
    """
    from ..server.access import Role
    from ..server.door.tokens import create_token
    from ..settings import duration_ms

    file = _file(shell)
    expires_ms = None if expires is None else duration_ms(expires, "--expires")
    secret, made = create_token(file, name, Role(role), queues or None, expires_ms)
    if as_json:
        emit_json({**_json(made), "token": secret})
    else:
        say(secret)
        note(f"kept as a hash in {file.path}; it is not shown again")
    return DONE


@click.command("list")
@json_option
@pass_shell
def list_tokens(shell: Shell, as_json: bool) -> int:
    """List the tokens of the file. Those of PACKHORSE_TOKENS are not in it."""
    from ..clock import SYSTEM_CLOCK
    from ..shapes import list_json
    from ..wording import when

    file = _file(shell)
    found = file.read()
    if as_json:
        emit_json(list_json(map(_json, found)))
        return DONE
    if not found:
        note(f"no tokens in {file.path.name}; make one with: packhorse tokens create NAME")
        return DONE
    now_ms = SYSTEM_CLOCK.now_ms()
    rows = [
        [
            token.name,
            token.role,
            "all" if token.queues is None else ",".join(token.queues),
            when(token.created_at_ms, now_ms),
            "-" if token.expires_at_ms is None else when(token.expires_at_ms, now_ms),
            "expired" if token.has_expired(now_ms) else "",
        ]
        for token in found
    ]
    emit_table(["name", "role", "queues", "created", "expires", ""], rows)
    return DONE


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@pass_shell
def revoke(shell: Shell, as_json: bool, names: tuple[str, ...]) -> int:
    """Make tokens worthless: running servers refuse them, and end their sessions, within a second."""
    from ..server.door.tokens import revoke_tokens
    from ..shapes import list_json

    revoke_tokens(_file(shell), names)
    if as_json:
        emit_json(list_json({"name": name, "revoked": True} for name in dict.fromkeys(names)))
    else:
        say(f"revoked {', '.join(dict.fromkeys(names))}")
    return DONE


def _file(shell: Shell) -> TokensFile:
    from ..server.door.tokens import TokensFile

    return TokensFile(shell.settings().tokens_file)


def _json(token: Token) -> dict[str, Any]:
    from ..shapes import instant_json

    return {
        "name": token.name,
        "role": str(token.role),
        "queues": None if token.queues is None else list(token.queues),
        "created_at": instant_json(token.created_at_ms),
        "expires_at": instant_json(token.expires_at_ms),
    }
