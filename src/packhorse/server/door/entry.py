"""The door: tokens, sessions and the throttle of one server, and the words in which somebody is kept out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...clock import Clock
from ..access import Unauthorized
from ..problems import Problem
from .sessions import Sessions
from .throttle import Throttle, address_of
from .tokens import TOKEN_CHARS_MAX, Grant, Tokens, digest_of, load_tokens

if TYPE_CHECKING:
    from ...settings import Settings

#: The same for a token that is missing, unknown, revoked, expired or garbled: an answer must not help to guess.
WHO = "send a token that is good here, as the header Authorization: Bearer TOKEN; packhorse tokens create makes one"


class Door:
    """Lets in who has a good token or session."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self.tokens = tokens
        self.sessions = Sessions(tokens, clock)
        self.throttle = Throttle(clock)

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> Door:
        """Make the door of a server with these settings. Raises ConfigurationError."""
        return cls(load_tokens(settings, clock), clock)

    def admit(self, token: bytes, client: tuple[str, int] | None) -> Grant:
        """Answer what a token gives. Raises Unauthorized, or Problem (429) for who has tried too many wrong ones."""
        address = address_of("" if client is None else client[0])
        digest = digest_of(token[: TOKEN_CHARS_MAX + 1])
        wait_ms = self.throttle.wait_ms(address)
        if wait_ms > 0 and not self.throttle.was_right(address, digest):
            self.throttle.wrong(address)
            raise too_many(wait_ms)
        grant = self.tokens.still(digest)
        if grant is None:
            self.throttle.wrong(address)
            raise Unauthorized(WHO)
        self.throttle.right(address, digest)
        return grant


def too_many(wait_ms: int) -> Problem:
    """Answer the problem of an address that tried too many wrong tokens."""
    return Problem(
        429,
        "too-many-tries",
        "Too many wrong tokens came from this address",
        "wait, then send one that is good; tokens that were good from this address before are taken meanwhile",
        fields={"retry_after_ms": wait_ms},
        headers={"Retry-After": str(-(-wait_ms // 1_000))},
    )
