"""Tokens: who may come in, as what, until when. Kept as hashes, so that nobody can read one back.

A token is 160 random bits, so SHA-256 is the right hash for it: slow hashes protect what people choose and others can
guess, and would let anybody keep the server busy with wrong ones. Tokens come from a file, which is read again when it
changes, and from the setting `tokens`, for containers.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...chance import secret_hex
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import ConfigurationError, InvalidOption, NotFound, PackhorseError, shown
from ...job import check_name
from ..access import Caller, Role

if TYPE_CHECKING:
    from ...settings import Settings

log = logging.getLogger("packhorse.server")

#: What every token begins with, so that people and secret scanners know it where it does not belong.
PREFIX = "ph_"
_SECRET_BYTES = 20

#: Characters of what may be a token; anything longer is not even hashed.
TOKEN_CHARS_MAX = 512
#: Tokens in a file, its bytes, and queues of one token.
TOKENS_MAX = 10_000
QUEUES_MAX = 32
_FILE_BYTES_MAX = 8 << 20

#: How often the file is looked at, ms: a revocation is live within a second.
LOOK_EVERY_MS = 500


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token as it is kept: its SHA-256 in hex, never itself. `queues` None: all of them."""

    name: str
    sha256: str
    role: Role
    queues: tuple[str, ...] | None = None
    created_at_ms: int = 0
    expires_at_ms: int | None = None

    def has_expired(self, now_ms: int) -> bool:
        """Answer whether its time is over."""
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms


class _Kept(msgspec.Struct, frozen=True):
    """The file."""

    version: int
    tokens: tuple[Token, ...] = ()


class Grant(msgspec.Struct, frozen=True):
    """What a token that was found gives: who its bearer is, until when (None: for good)."""

    digest: bytes
    caller: Caller
    expires_at_ms: int | None = None


def digest_of(token: bytes) -> bytes:
    """Answer the hash under which a token is kept."""
    return sha256(token).digest()


def new_token(
    name: str,
    role: Role = Role.ADMIN,
    queues: Iterable[str] | None = None,
    expires_ms: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[str, Token]:
    """Make a token; answers it, to be shown once, and what is kept of it. Raises InvalidName, InvalidOption."""
    check_name(name, "token")
    names = None if queues is None else tuple(sorted({check_name(queue, "queue") for queue in queues}))
    if names is not None and not 1 <= len(names) <= QUEUES_MAX:
        raise InvalidOption(f"queue: a token is for all queues, or for 1 to {QUEUES_MAX} of them")
    if expires_ms is not None and expires_ms < 1_000:
        raise InvalidOption("expires: a token lives for a second at least")
    secret = PREFIX + secret_hex(_SECRET_BYTES)
    now_ms = clock.now_ms()
    kept = Token(
        name=name,
        sha256=digest_of(secret.encode()).hex(),
        role=role,
        queues=names,
        created_at_ms=now_ms,
        expires_at_ms=None if expires_ms is None else now_ms + expires_ms,
    )
    return secret, kept


# ---- the file ----------------------------------------------------------------------------------------------


class TokensFile:
    """The file of tokens: private, written as a whole or not at all."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow a link that may change

    def stamp(self) -> tuple[int, int, int, int] | None:
        """Answer what changes whenever the file does; None where there is none."""
        try:
            found = os.stat(self.path)  # noqa: PTH116  # on the way of requests
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read(self) -> tuple[Token, ...]:
        """Answer the tokens; none where there is no file. Raises ConfigurationError, with the remedy."""
        try:
            # O_NONBLOCK: a pipe of that name must not hold the server up.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror}); give this user read access to it") from None
        with os.fdopen(fd, "rb") as file:
            self._check_private(os.fstat(fd))
            data = file.read(_FILE_BYTES_MAX + 1)
        try:
            kept = msgspec.json.decode(data, type=_Kept) if len(data) <= _FILE_BYTES_MAX else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            kept = None
        if kept is None or kept.version != 1 or not all(map(_is_sound, kept.tokens)):
            raise self._wrong("is not what packhorse tokens writes; restore it, or remove it and make new tokens")
        return kept.tokens

    @contextmanager
    def changing(self) -> Iterator[list[Token]]:
        """Let the block change the tokens and write them back, alone and atomically.

        Raises ConfigurationError; nothing is written where the block raises.
        """
        with self._alone():
            tokens = list(self.read())
            yield tokens
            if len(tokens) > TOKENS_MAX:
                raise InvalidOption(f"there are {TOKENS_MAX:,} tokens in {self.path.name}; revoke some first")
            self._write(tokens)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file: a lock on its directory leaves nothing behind."""
        import fcntl

        try:
            fd = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._wrong(f"cannot be written: its directory cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, tokens: list[Token]) -> None:
        target = self.path.resolve()  # a link stays one
        beside = target.with_name(f".{target.name}.{secret_hex(8)}")
        data = msgspec.json.format(msgspec.json.encode(_Kept(1, tuple(tokens))), indent=2) + b"\n"
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    os.fchmod(fd, 0o600)  # whatever the umask (C27)
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                beside.replace(target)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._wrong(f"cannot be written ({error.strerror}); give this user write access to it") from None

    def _check_private(self, found: os.stat_result) -> None:
        from stat import S_ISREG

        if not S_ISREG(found.st_mode):
            raise self._wrong("is not a regular file; name another with PACKHORSE_TOKENS_FILE")
        if os.name == "posix" and found.st_mode & 0o077:
            raise self._wrong(f"may be used by others on this machine; run: chmod 600 {self.path}")
        if os.name == "posix" and found.st_uid not in {0, os.geteuid()}:
            raise self._wrong("belongs to another user, who could let himself in; make it this user's own")

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"the tokens file {self.path} {what}")


def _is_sound(token: Token) -> bool:
    try:
        check_name(token.name, "token")
        for queue in token.queues or ():
            check_name(queue, "queue")
        return len(bytes.fromhex(token.sha256)) == 32 and token.queues != ()
    except (PackhorseError, ValueError):
        return False


# ---- who a token lets in -----------------------------------------------------------------------------------


class Tokens:
    """All tokens there are, found by hash. True where callers need one."""

    def __init__(
        self, settled: Iterable[Token] = (), file: TokensFile | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._clock = clock
        self._file = file
        self._settled = {grant.digest: grant for grant in map(_grant, settled)}
        self._grants = self._settled
        self._stamp: tuple[int, int, int, int] | None = None
        self._looked_at_ms = clock.boot_ms()
        self._needed = bool(self._settled)
        if file is not None:
            self._stamp = file.stamp()
            self._take(file.read())

    def __bool__(self) -> bool:
        """Answer whether callers need a token: there are some, there is a file for them, or there ever was one.

        So no revocation, not even of the last, and no file that is lost makes a running server open to all.
        """
        self._look()
        return self._needed

    def find(self, token: bytes) -> Grant | None:
        """Answer what a token gives; None for one that is unknown, revoked or expired."""
        if len(token) > TOKEN_CHARS_MAX:
            return None
        return self.still(digest_of(token))

    def still(self, digest: bytes) -> Grant | None:
        """Answer what the token of a hash gives now; None once it is revoked or has expired."""
        self._look()
        grant = self._grants.get(digest)
        # Looking up by hash tells a guesser nothing of the token; what decides compares in constant time (C17).
        if grant is None or not hmac.compare_digest(grant.digest, digest):
            return None
        if grant.expires_at_ms is not None and self._clock.now_ms() >= grant.expires_at_ms:
            return None
        return grant

    def _look(self) -> None:
        """Read the file again if it has changed, at most every `LOOK_EVERY_MS`."""
        now_ms = self._clock.boot_ms()
        if self._file is None or now_ms - self._looked_at_ms < LOOK_EVERY_MS:
            return
        self._looked_at_ms = now_ms
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(self._file.read())
        except ConfigurationError as error:
            # Nobody rather than anybody: what cannot be read may have revoked the token that is being shown.
            self._grants = self._settled
            log.error("%s; until then no token of it is good", error)

    def _take(self, tokens: Iterable[Token]) -> None:
        found = {grant.digest: grant for grant in map(_grant, tokens)}
        self._grants = found | self._settled
        self._needed = self._needed or bool(found) or self._stamp is not None


def _grant(token: Token) -> Grant:
    queues = None if token.queues is None else frozenset(token.queues)
    return Grant(
        bytes.fromhex(token.sha256), Caller(name=token.name, role=token.role, queues=queues), token.expires_at_ms
    )


def load_tokens(settings: Settings, clock: Clock = SYSTEM_CLOCK) -> Tokens:
    """Answer the tokens of a server with these settings. Raises ConfigurationError where the file is not private."""
    return Tokens(_of_setting(settings.tokens), TokensFile(settings.tokens_file), clock)


def _of_setting(items: Iterable[str]) -> Iterator[Token]:
    """Read what `settings` made of the setting: `ROLE[@queue+queue]:sha256:HEX`."""
    for number, item in enumerate(items, start=1):
        scope, _, digest = item.partition(":sha256:")
        role, _, queues = scope.partition("@")
        names = tuple(sorted(set(queues.split("+")))) if queues else None
        if names is not None and len(names) > QUEUES_MAX:
            raise ConfigurationError(
                f"PACKHORSE_TOKENS: token {number} names more than {QUEUES_MAX} queues; name fewer"
            )
        yield Token(name=f"setting-{number}", sha256=digest, role=Role(role), queues=names)


# ---- verbs of the command line ------------------------------------------------------------------------------


def create_token(
    file: TokensFile, name: str, role: Role, queues: Iterable[str] | None = None, expires_ms: int | None = None
) -> tuple[str, Token]:
    """Make a token and keep it in the file. Raises InvalidOption for a name that is taken, ConfigurationError."""
    secret, made = new_token(name, role, queues, expires_ms)
    with file.changing() as tokens:
        if any(token.name == name for token in tokens):
            raise InvalidOption(
                f"there is a token {shown(name)} already; revoke it first with: packhorse tokens revoke {name}"
            )
        tokens.append(made)
    return secret, made


def revoke_tokens(file: TokensFile, names: Iterable[str]) -> None:
    """Remove tokens by name, all or none. Servers stop taking them within a second. Raises NotFound."""
    with file.changing() as tokens:
        for name in dict.fromkeys(names):
            kept = [token for token in tokens if token.name != name]
            if len(kept) == len(tokens):
                raise NotFound(f"no token {shown(name, 128)}; packhorse tokens list shows what there is")
            tokens[:] = kept
