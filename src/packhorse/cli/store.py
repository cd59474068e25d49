"""`migrate` and `version`."""

from __future__ import annotations

import click

from .failing import DONE
from .output import emit_json, say
from .shell import Shell, json_option, open_store, reads


@click.command()
@reads
def migrate(shell: Shell, as_json: bool) -> int:
    """Bring the store to the schema of this version, making it where there is none.

    Safe while workers run; repeating it is harmless.
    """
    import asyncio

    settings = shell.store_settings(create=True)

    async def bring_up() -> int:
        backend = open_store(settings)
        try:
            return await backend.migrate()
        finally:
            await backend.close()

    schema = asyncio.run(bring_up())
    if as_json:
        emit_json({"schema": schema})
    else:
        say(f"the store has schema {schema}")
    return DONE


@click.command()
@json_option
def version(as_json: bool) -> int:
    """Print the version of packhorse."""
    from .. import __version__

    if as_json:
        emit_json({"version": __version__})
    else:
        say(__version__)
    return DONE
