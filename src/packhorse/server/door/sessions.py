"""Sessions: a browser shows a token once and gets a cookie instead, which no script can read.

They live in this process: after a restart one logs in again. A session is worth what its token is worth now, and ends
with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from ...chance import secret_hex
from ...clock import SYSTEM_CLOCK, Clock
from .tokens import Grant, Tokens, digest_of

#: How long a session lasts, ms.
SESSION_MS = 12 * 3_600_000
#: Sessions at once, in all and for one token; the oldest makes room.
SESSIONS_MAX = 1_000
SESSIONS_A_TOKEN_MAX = 100

_ID_BYTES = 32
_ID_CHARS = _ID_BYTES * 2

#: With the prefix a browser takes it over TLS only, for this host only, and from no subdomain of it.
COOKIE = "packhorse_session"
SECURE_COOKIE = "__Host-packhorse_session"


class Session(msgspec.Struct, frozen=True):
    """A session that is live: what its token gives, and until when."""

    grant: Grant
    expires_at_ms: int


class _Kept(msgspec.Struct, frozen=True, gc=False):
    token: bytes  # the hash of the token
    ends_ms: int  # by the boot clock: no change of the time makes it last longer


class Sessions:
    """All sessions of a server, by the hash of their id."""

    def __init__(self, tokens: Tokens, clock: Clock = SYSTEM_CLOCK) -> None:
        self._tokens = tokens
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, grant: Grant) -> tuple[str, int]:
        """Begin a session for the bearer of a token; answers its id, to be shown once, and how long it lasts, ms."""
        now_ms = self._clock.boot_ms()
        self._forget_ended(now_ms)
        own = [key for key, kept in self._kept.items() if kept.token == grant.digest]
        if len(own) >= SESSIONS_A_TOKEN_MAX:
            del self._kept[own[0]]
        elif len(self._kept) >= SESSIONS_MAX:
            self._kept.popitem(last=False)
        session_id = secret_hex(_ID_BYTES)
        self._kept[digest_of(session_id.encode())] = _Kept(grant.digest, now_ms + SESSION_MS)
        return session_id, SESSION_MS

    def find(self, session_id: bytes) -> Session | None:
        """Answer a session that is live; None for one that has ended or whose token is not good any more."""
        if len(session_id) != _ID_CHARS:
            return None
        key = digest_of(session_id)
        kept = self._kept.get(key)
        if kept is None:
            return None
        left_ms = kept.ends_ms - self._clock.boot_ms()
        grant = self._tokens.still(kept.token) if left_ms > 0 else None
        if grant is None:
            self._kept.pop(key, None)
            return None
        return Session(grant, self._clock.now_ms() + left_ms)

    def end(self, session_id: bytes) -> None:
        """End a session. Idempotent."""
        self._kept.pop(digest_of(session_id), None)

    def _forget_ended(self, now_ms: int) -> None:
        while self._kept and next(iter(self._kept.values())).ends_ms <= now_ms:  # they end in the order they began
            self._kept.popitem(last=False)


def session_id_in(headers: Iterable[tuple[bytes, bytes]], *, secure: bool) -> bytes | None:
    """Answer the id of a session in the cookies of a request; None where there is none."""
    wanted = (SECURE_COOKIE if secure else COOKIE).encode()
    for name, value in headers:
        if name == b"cookie":
            for pair in value.split(b";"):
                key, found, session_id = pair.strip().partition(b"=")
                if found and key == wanted:
                    return session_id
    return None


def set_cookie(session_id: str, lasts_ms: int, *, secure: bool) -> str:
    """Answer the header that gives a browser its session; an empty id takes it away."""
    name = SECURE_COOKIE if secure else COOKIE
    parts = [f"{name}={session_id}", "Path=/", f"Max-Age={lasts_ms // 1_000}", "HttpOnly", "SameSite=Strict"]
    return "; ".join([*parts, "Secure"] if secure else parts)
