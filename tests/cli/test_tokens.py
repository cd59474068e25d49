"""`packhorse tokens`: made once, shown once, and nowhere else (FAILURES C20, C21, C27)."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from packhorse.cli.tokens import TOKENS
from packhorse.server.door.tokens import Tokens, TokensFile

from .kit import Cli, process


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "packhorse-tokens.json"


def caller_name(path: Path, secret: str) -> str | None:
    grant = Tokens(file=TokensFile(path)).find(secret.encode())
    return None if grant is None else grant.caller.name


def test_the_token_is_the_only_thing_on_stdout_and_lets_in(cli: Cli, path: Path) -> None:
    made = cli("tokens", "create", "ci")
    secret = made.stdout.removesuffix("\n")
    assert secret.startswith("ph_")
    assert "\n" not in secret
    assert secret not in made.stderr
    assert "not shown again" in made.stderr
    assert caller_name(path, secret) == "ci"
    for words in (("list",), ("list", "--json"), ("revoke", "ci")):
        assert secret not in cli("tokens", *words).output
    assert caller_name(path, secret) is None
    assert cli.opened == 0  # no store is asked


def test_role_queues_and_expiry_are_kept_and_listed(cli: Cli, path: Path) -> None:
    made = cli.json("tokens", "create", "w", "--role", "work", "--queue", "mail", "--queue", "a.b", "--expires", "30d")
    assert made.keys() == {"name", "role", "queues", "created_at", "expires_at", "token"}
    assert (made["role"], made["queues"]) == ("work", ["a.b", "mail"])
    listed = cli.json("tokens", "list")
    assert listed == {"items": [{name: made[name] for name in made if name != "token"}], "next": None}
    grant = Tokens(file=TokensFile(path)).find(made["token"].encode())
    assert grant is not None
    assert grant.caller.queues == {"mail", "a.b"}
    assert grant.expires_at_ms is not None
    table = cli("tokens", "list").stdout
    assert all(text in table for text in ("w", "work", "a.b,mail", "in 29d23h"))


def test_no_tokens_say_how_to_make_one(cli: Cli, path: Path) -> None:
    assert "packhorse tokens create" in cli("tokens", "list").stderr
    assert cli.json("tokens", "list") == {"items": [], "next": None}
    assert not path.exists()  # to look makes nothing


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("create", "a b"), 2, "cannot name a token"),
        (("create", "n", "--role", "root"), 2, "root"),
        (("create", "n", "--queue", "a b"), 2, "cannot name a queue"),
        (("create", "n", "--expires", "soon"), 2, "not a duration"),
        (("create", "n", "--expires", "0"), 2, "a second at least"),
        (("create",), 2, "NAME"),
        (("create", "taken"), 2, "packhorse tokens revoke taken"),
        (("revoke", "nobody"), 1, "packhorse tokens list"),
        (("revoke", "taken", "nobody"), 1, "packhorse tokens list"),
        (("revoke",), 2, "NAME"),
    ],
)
def test_what_cannot_be_done_says_why(cli: Cli, words: tuple[str, ...], code: int, reason: str) -> None:
    cli("tokens", "create", "taken")
    refused = cli("tokens", *words, code=code)
    assert reason in refused.stderr
    assert refused.stdout == ""
    assert [token["name"] for token in cli.json("tokens", "list")["items"]] == ["taken"]


def test_c27_a_file_that_others_may_read_is_refused(cli: Cli, path: Path) -> None:
    cli("tokens", "create", "a")
    path.chmod(0o644)
    for words in (("list",), ("create", "b"), ("revoke", "a")):
        assert "chmod 600" in cli("tokens", *words, code=2).stderr


def test_the_file_is_where_the_setting_says(cli: Cli, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_TOKENS_FILE", str(directory / "sub" / "t.json"))
    assert "directory" in cli("tokens", "create", "a", code=2).stderr
    (directory / "sub").mkdir()
    cli("tokens", "create", "a")
    assert [path.name for path in (directory / "sub").iterdir()] == ["t.json"]
    (directory / "packhorse.toml").write_text('tokens_file = "other.json"\n')
    monkeypatch.delenv("PACKHORSE_TOKENS_FILE")
    cli("tokens", "create", "a")
    assert (directory / "other.json").exists()


def test_c21_no_option_takes_a_token_on_the_command_line(cli: Cli) -> None:
    from .reference import commands

    options = {name for _, command in commands() for param in command.params for name in param.opts}
    assert not {name for name in options if "token" in name or "secret" in name or "password" in name}


def test_c27_as_a_process_of_its_own_under_a_careless_umask(directory: Path, path: Path) -> None:
    made = process("tokens", "create", "ci", "--json", environ={}, umask=0, cwd=directory)
    assert made.returncode == 0, made.stderr
    secret = json.loads(made.stdout)["token"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(directory.iterdir()) == [path]
    assert caller_name(path, secret) == "ci"
    revoked = process("tokens", "revoke", "ci", environ={}, cwd=directory)
    assert (revoked.returncode, revoked.stdout) == (0, "revoked ci\n")
    assert caller_name(path, secret) is None


def test_the_group_names_what_it_has(cli: Cli) -> None:
    shown = cli("tokens", "--help").stdout
    assert all(name in shown for name in TOKENS)
