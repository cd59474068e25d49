"""From any error to one line on stderr and an exit code: the only place where the command line ends badly.

0 done · 1 refused, not found, or no answer · 2 usage or configuration · 130 Ctrl+C · 141 nobody reads any more.
`PACKHORSE_DEBUG=1` shows where an error came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from .output import plain

if TYPE_CHECKING:
    from .shell import Shell

DONE = 0
REFUSED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
UNREAD = 141  # 128 + SIGPIPE

_LINE_CHARS_MAX = 2_000


class Sorry(click.ClickException):
    """The command did not do, or not all of, what was asked; the message says what to do."""

    exit_code = REFUSED


def guarded(work: Callable[[], object], shell: Shell) -> int:
    """Run `work` and answer its exit code, whatever happens in it."""
    try:
        code = work()
        sys.stdout.flush()
    except click.exceptions.Exit as error:  # after --help
        return error.exit_code
    except BrokenPipeError:
        return _unread()
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.Abort as error:
        if isinstance(error.__cause__ or error.__context__, EOFError):
            return _say("nobody answered; add --yes to go on without asking", REFUSED, shell)
        return INTERRUPTED
    except Exception as error:  # the end of every road: whatever is raised becomes one line
        if os.environ.get("PACKHORSE_DEBUG", "0") not in {"", "0"}:
            _show_traceback(error, shell)
        return _say(*_explain(error), shell)
    return code if isinstance(code, int) else DONE


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, click.UsageError):
        # click leaves the context out where an option lacks its value
        where = f"'{error.ctx.command_path} --help'" if error.ctx is not None else "--help"
        return f"{error.format_message().rstrip('.')}; see {where}", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    from ..errors import ConfigurationError, InvalidName, InvalidOption, PackhorseError

    if isinstance(error, ConfigurationError | InvalidName | InvalidOption):
        return str(error), USAGE
    if isinstance(error, PackhorseError):
        return str(error), REFUSED
    return f"{type(error).__name__}: {error} (set PACKHORSE_DEBUG=1 to see where)", REFUSED


def _say(message: str, code: int, shell: Shell) -> int:
    line = plain(shell.scrub(message))
    if len(line) > _LINE_CHARS_MAX:
        line = line[:_LINE_CHARS_MAX] + "…"
    try:
        click.echo(f"packhorse: {line}", err=True)
    except BrokenPipeError:
        return _unread()
    return code


def _show_traceback(error: Exception, shell: Shell) -> None:
    import traceback

    click.echo(shell.scrub("".join(traceback.format_exception(error))), err=True)


def _unread() -> int:
    """Give stdout to nobody, or Python would complain at exit that it could not flush."""
    with suppress(OSError, ValueError):  # not a real file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD
