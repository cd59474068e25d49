"""Tokens: how they are made, kept, found and taken away (FAILURES C17, C20, C27)."""

from __future__ import annotations

import inspect
import os
import re
import stat
from pathlib import Path

import pytest

from packhorse.clock import ManualClock
from packhorse.errors import ConfigurationError, InvalidName, InvalidOption, NotFound
from packhorse.server.access import Caller, Role
from packhorse.server.door import tokens as tokens_module
from packhorse.server.door.tokens import (
    LOOK_EVERY_MS,
    QUEUES_MAX,
    Token,
    Tokens,
    TokensFile,
    create_token,
    digest_of,
    load_tokens,
    new_token,
    revoke_tokens,
)
from packhorse.settings import load

RAW = "0123456789abcdefghijklmnop"
HASH = digest_of(RAW.encode()).hex()


@pytest.fixture
def file(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.json")


def caller_of(tokens: Tokens, token: str) -> Caller | None:
    grant = tokens.find(token.encode())
    return None if grant is None else grant.caller


# ---- made and kept -----------------------------------------------------------------------------------------


def test_a_token_has_160_random_bits_and_a_mark_to_know_it_by() -> None:
    made = {new_token("n")[0] for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"ph_[0-9a-f]{40}", token) for token in made)


def test_c20_what_is_kept_of_a_token_is_its_hash(file: TokensFile) -> None:
    secret, kept = create_token(file, "ci", Role.WORK, ["b", "a", "b"], 60_000)
    assert kept.queues == ("a", "b")
    assert kept.expires_at_ms == kept.created_at_ms + 60_000
    text = file.path.read_text()
    assert secret not in text
    assert secret.removeprefix("ph_") not in text
    assert digest_of(secret.encode()).hex() in text
    assert secret not in repr(kept) + repr(Tokens([kept]).find(secret.encode()))


def test_c17_secrets_are_compared_by_hash_and_in_constant_time() -> None:
    source = inspect.getsource(tokens_module)
    assert "hmac.compare_digest(grant.digest, digest)" in source
    assert not re.search(r"(token|secret) == ", source.replace("token.name == ", ""))


@pytest.mark.parametrize(
    ("name", "queues", "expires_ms", "error"),
    [
        ("a b", None, None, InvalidName),
        ("", None, None, InvalidName),
        ("x" * 129, None, None, InvalidName),
        ("n", ["a b"], None, InvalidName),
        ("n", [], None, InvalidOption),
        ("n", [f"q{number}" for number in range(QUEUES_MAX + 1)], None, InvalidOption),
        ("n", None, 999, InvalidOption),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(
    file: TokensFile, name: str, queues: list[str] | None, expires_ms: int | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        create_token(file, name, Role.READ, queues, expires_ms)
    assert not file.path.exists()


def test_c27_the_file_is_private_whatever_the_umask(file: TokensFile) -> None:
    before = os.umask(0)
    try:
        create_token(file, "a", Role.READ)
        create_token(file, "b", Role.READ)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["tokens.json"]  # nothing is left beside it


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o666, 0o601])
def test_c27_a_file_that_others_may_use_is_refused_with_the_remedy(file: TokensFile, mode: int) -> None:
    create_token(file, "a", Role.READ)
    file.path.chmod(mode)
    for call in (file.read, lambda: create_token(file, "b", Role.READ), lambda: Tokens(file=file)):
        with pytest.raises(ConfigurationError, match="chmod 600"):
            call()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_c27_a_file_of_another_user_is_refused(file: TokensFile, monkeypatch: pytest.MonkeyPatch) -> None:
    create_token(file, "a", Role.READ)
    os.chown(file.path, 12_345, -1)
    with pytest.raises(ConfigurationError, match="another user"):
        file.read()


def test_c27_what_a_link_leads_to_is_judged_and_a_link_stays_one(file: TokensFile, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    create_token(TokensFile(real), "a", Role.READ)
    file.path.symlink_to(real)
    create_token(file, "b", Role.READ)
    assert file.path.is_symlink()
    assert [token.name for token in TokensFile(real).read()] == ["a", "b"]
    real.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        file.read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"version": 2, "tokens": []}',
        '{"version": 1, "tokens": [{"name": "a"}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "zz", "role": "read"}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "' + "0" * 64 + '"}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "' + "0" * 64 + '", "role": "root"}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "' + "0" * 64 + '", "role": "read", "queues": []}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "' + "0" * 64 + '", "role": "read", "only": "x"}]}',
        '{"version": 1, "tokens": [{"name": "a", "sha256": "' + "0" * 64 + '", "role": "read", "queues": ["a b"]}]}',
        "\udc80",
    ],
)
def test_a_file_that_says_something_else_is_refused_as_a_whole(file: TokensFile, text: str) -> None:
    """What is not understood might have been a restriction."""
    file.path.write_bytes(text.encode(errors="surrogateescape"))
    file.path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        file.read()


def test_what_is_no_regular_file_is_refused_and_does_not_hang(file: TokensFile) -> None:
    os.mkfifo(file.path, 0o600)
    with pytest.raises(ConfigurationError, match="regular file"):
        file.read()


def test_a_name_is_given_once_and_revoking_is_all_or_none(file: TokensFile) -> None:
    create_token(file, "a", Role.READ)
    create_token(file, "b", Role.READ)
    with pytest.raises(InvalidOption, match="packhorse tokens revoke a"):
        create_token(file, "a", Role.READ)
    with pytest.raises(NotFound):
        revoke_tokens(file, ["a", "c"])
    assert [token.name for token in file.read()] == ["a", "b"]
    revoke_tokens(file, ["a", "a"])
    assert [token.name for token in file.read()] == ["b"]


def test_many_who_change_the_file_at_once_lose_nothing(file: TokensFile) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: create_token(TokensFile(file.path), f"t{number}", Role.READ), range(40)))
    assert {token.name for token in file.read()} == {f"t{number}" for number in range(40)}


# ---- found ------------------------------------------------------------------------------------------------


def test_a_token_gives_its_name_role_and_queues_until_it_expires(file: TokensFile) -> None:
    clock = ManualClock()
    secret, kept = new_token("ci", Role.WORK, ["mail"], 60_000, clock)
    tokens = Tokens([kept], clock=clock)
    assert tokens
    assert caller_of(tokens, secret) == Caller(name="ci", role=Role.WORK, queues=frozenset({"mail"}))
    for wrong in ("", "x", secret[:-1], secret + "0", secret.upper(), "ü", "a" * 100_000):
        assert caller_of(tokens, wrong) is None
    clock.advance(59_999)
    assert caller_of(tokens, secret)
    clock.advance(1)
    assert caller_of(tokens, secret) is None
    assert tokens  # one is still needed


def test_a_change_of_the_file_is_live_within_a_second(file: TokensFile) -> None:
    clock = ManualClock()
    tokens = Tokens(file=file, clock=clock)
    assert not tokens
    secret, _ = create_token(file, "a", Role.READ)
    clock.advance(LOOK_EVERY_MS)
    assert tokens
    assert caller_of(tokens, secret)
    revoke_tokens(file, ["a"])
    clock.advance(LOOK_EVERY_MS)
    assert caller_of(tokens, secret) is None
    assert LOOK_EVERY_MS <= 1_000


def test_c1_no_revocation_and_no_lost_file_opens_the_server_to_all(file: TokensFile) -> None:
    clock = ManualClock()
    create_token(file, "a", Role.READ)
    tokens = Tokens(file=file, clock=clock)
    revoke_tokens(file, ["a"])
    clock.advance(LOOK_EVERY_MS)
    assert tokens
    assert Tokens(file=file)  # after a restart, too
    file.path.unlink()
    clock.advance(LOOK_EVERY_MS)
    assert tokens


def test_while_the_file_cannot_be_read_none_of_its_tokens_is_good(
    file: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read may have revoked the very token that is shown."""
    clock = ManualClock()
    secret, _ = create_token(file, "a", Role.READ)
    settled = Token(name="s", sha256=HASH, role=Role.ADMIN)
    tokens = Tokens([settled], file, clock)
    assert caller_of(tokens, secret)
    good = file.path.read_text()
    file.path.write_text("{")
    clock.advance(LOOK_EVERY_MS)
    assert caller_of(tokens, secret) is None
    assert caller_of(tokens, RAW)
    assert tokens
    for _ in range(5):
        clock.advance(LOOK_EVERY_MS)
        assert caller_of(tokens, secret) is None
    assert len(caplog.records) == 1  # said once
    file.path.write_text(good)
    clock.advance(LOOK_EVERY_MS)
    assert caller_of(tokens, secret)


# ---- the setting --------------------------------------------------------------------------------------------


def of_setting(tmp_path: Path, text: str) -> Tokens:
    return load_tokens(load({"tokens_file": str(tmp_path / "none.json")}, {"PACKHORSE_TOKENS": text}, tmp_path))


@pytest.mark.parametrize(
    ("text", "role", "queues"),
    [
        (RAW, Role.ADMIN, None),
        (f"admin:{RAW}", Role.ADMIN, None),
        (f"read:{RAW}", Role.READ, None),
        (f" submit@mail:{RAW} ", Role.SUBMIT, {"mail"}),
        (f"work@mail+sms.2:sha256:{HASH}", Role.WORK, {"mail", "sms.2"}),
        (f"sha256:{HASH.upper()}", Role.ADMIN, None),
        (f"read:{'z' * 10}{RAW},work:{RAW}", Role.WORK, None),
    ],
)
def test_the_setting_names_tokens_with_role_and_queues(
    tmp_path: Path, text: str, role: Role, queues: set[str] | None
) -> None:
    tokens = of_setting(tmp_path, text)
    found = caller_of(tokens, RAW)
    assert tokens
    assert found is not None
    assert (found.role, found.queues) == (role, queues)


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "x" * 21,
        "a" * 40,
        "admin:",
        f"root:{RAW}",
        f"read@:{RAW}",
        f"read@a b:{RAW}",
        f"read@a++b:{RAW}",
        f"{RAW} {RAW}",
        f"{RAW}ü",
        "sha256:abc",
        f"sha256:{HASH}0",
        f"read:sha256:{'g' * 64}",
        f"{RAW},read:short",
        RAW * 30,
        "work@" + "+".join(f"q{number}" for number in range(QUEUES_MAX + 1)) + f":{RAW}",
    ],
)
def test_a_token_that_can_be_guessed_or_not_be_read_is_refused_at_the_start_and_not_repeated(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(ConfigurationError, match="PACKHORSE_TOKENS") as raised:
        of_setting(tmp_path, text)
    assert RAW not in str(raised.value)


def test_c20_no_value_of_the_settings_holds_a_token(tmp_path: Path) -> None:
    settings = load({}, {"PACKHORSE_TOKENS": f"read:{RAW}"}, tmp_path)
    assert RAW not in repr(settings)
    assert settings.tokens == (f"read:sha256:{HASH}",)


def test_no_tokens_anywhere_means_that_none_is_needed(tmp_path: Path) -> None:
    assert not of_setting(tmp_path, "")
    assert not of_setting(tmp_path, " , ")
