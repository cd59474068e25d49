"""What all commands share: which store is meant, whether it may be made, and work done with it open."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..leash import GIVEN_URL, is_held
from .output import warn

if TYPE_CHECKING:
    from ..admin import Admin
    from ..backends.base import Backend
    from ..settings import Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Shell:
    """One call of the command line: the URL given as an option, and the secrets that must not be shown."""

    def __init__(self) -> None:
        self.url: str | None = None
        self._secrets: set[str] = set()

    def take_url(self, url: str) -> None:
        """Use `url`, given as an argument."""
        self.url = url
        self.warn_of_password(url, "--url", "PACKHORSE_URL")

    def warn_of_password(self, url: str, option: str, variable: str) -> None:
        """Warn if a URL given as an argument showed a password to the whole machine (FAILURES C21)."""
        from ..backends.opening import secrets_of

        found = secrets_of(url)
        if found and not found <= self._secrets:
            warn(f"everyone on this machine can see the password in {option} (ps shows it); set {variable} instead")
        self._secrets |= found

    def scrub(self, text: str) -> str:
        """Answer `text` without any password of this call's URLs (FAILURES B40, C20)."""
        from ..backends.opening import scrub

        return scrub(text, self._secrets)

    def settings(self, given: Mapping[str, object] | None = None) -> Settings:
        """Read the settings, `given` as options first; warnings become lines on stderr. Raises ConfigurationError."""
        import warnings

        from ..backends.opening import secrets_of
        from ..settings import SettingsWarning, load

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = load({"url": self.url, **(given or {})})
        for warning in caught if not is_held() else ():
            warn(str(warning.message))
        # Once is enough: the app, imported after this, reads them again.
        warnings.simplefilter("ignore", SettingsWarning)
        self._secrets |= secrets_of(settings.url) | ({settings.token} if settings.token else set())
        return settings

    def store_settings(self, *, create: bool = False, given: Mapping[str, object] | None = None) -> Settings:
        """Read the settings of a command that works on a store that others can reach.

        Refuses `memory://`, and unless `create` a SQLite file that is not there: looking must not make one.
        """
        from ..errors import ConfigurationError

        settings = self.settings(given)
        scheme = _scheme(settings.url)
        if scheme == "memory":
            raise ConfigurationError(
                "memory:// jobs live inside one process and a command is another one; "
                "use a store that both reach, e.g. --url sqlite:///jobs.db"
            )
        if scheme == "sqlite" and not create:
            _must_exist(settings.url)
        return settings

    def run(self, work: Callable[[Admin], Awaitable[T]], *, create: bool = False) -> T:
        """Open the store, do `work`, close it. Raises what the contract raises."""
        import asyncio

        return asyncio.run(self._open_and(work, self.store_settings(create=create)))

    async def _open_and(self, work: Callable[[Admin], Awaitable[T]], settings: Settings) -> T:
        from ..admin import Admin

        backend = open_store(settings)
        try:
            await backend.open()
            return await work(Admin(backend))
        finally:
            await backend.close()


def _scheme(url: str) -> str:
    from urllib.parse import urlsplit

    from ..errors import ConfigurationError

    try:
        return urlsplit(url).scheme
    except ValueError as error:
        raise ConfigurationError(f"the URL of the store cannot be read ({error}); write sqlite:///FILE") from None


def open_store(settings: Settings) -> Backend:
    """Make the backend of the settings; refuse one whose jobs no other process sees."""
    from ..backends.opening import open_backend, store_url
    from ..errors import ConfigurationError

    backend = open_backend(store_url(settings))
    if not backend.capabilities.shared:
        raise ConfigurationError("this backend keeps its jobs inside one process; give the --url of a store")
    return backend


def _must_exist(url: str) -> None:
    from pathlib import Path

    from ..backends.sqlite.filing import parse_url
    from ..errors import ConfigurationError

    path = Path(parse_url(url).path)
    if not path.exists():
        raise ConfigurationError(
            f"there is no file {path.name} in {path.parent}; name the store with --url or PACKHORSE_URL, "
            "or make it with: packhorse migrate"
        )


def _take_url(ctx: click.Context, _: click.Parameter, url: str | None) -> None:
    handed_on = os.environ.pop(GIVEN_URL, None)  # out of the environment: for this process and for none that it starts
    if url is not None:
        ctx.ensure_object(Shell).take_url(url)
    elif handed_on is not None:
        ctx.ensure_object(Shell).url = handed_on


url_option = click.option(
    "--url",
    metavar="URL",
    expose_value=False,
    callback=_take_url,
    help="The store, e.g. sqlite:///jobs.db. Otherwise PACKHORSE_URL, then the configuration file.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

pass_shell = click.make_pass_decorator(Shell, ensure=True)


def reads(command: Any) -> Any:
    """Give a command `--url` and `--json`; it is called with the shell, then `as_json`."""
    return url_option(json_option(pass_shell(command)))
