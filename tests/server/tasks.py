"""An app with tasks of some shapes, for tests that read their schemas."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from packhorse import Context, Packhorse


class Format(enum.StrEnum):
    PNG = "png"
    JPEG = "jpeg"


@dataclasses.dataclass
class Address:
    street: str
    lines: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)


def make_app(url: str, folder: Path | None = None) -> Packhorse:
    """Make an app. No tokens of this machine get into it."""
    app = Packhorse(url, tokens_file=str((folder or Path("/nowhere")) / "tokens.json"))

    @app.task("email", max_attempts=5, queue="mail", tags=["mail"])
    async def email(ctx: Context, to: str, subject: str = "", retries: int | None = None) -> str:
        """Send an email."""
        return to

    @app.task("image_resize")
    def image_resize(source: str, width: int, height: int, to: Format = Format.PNG) -> None: ...

    @app.task("letter")
    def letter(address: Address, copies: list[Address] | None = None) -> None: ...

    @app.task("tree")
    def tree(payload: Tree) -> None: ...

    @app.task("note")
    def note(text: str) -> None: ...

    @app.task("anything")
    def anything(**values: object) -> None: ...

    @app.task("report")
    def report() -> None: ...

    return app
