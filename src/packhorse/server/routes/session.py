"""`/api/v1/session`: a page shows its token once, and has a cookie from then on. `GET` says who one is."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...shapes import instant_json
from ..access import Caller, Permission, Role
from ..door.origins import is_local
from ..door.sessions import session_id_in, set_cookie
from ..door.tokens import TOKEN_CHARS_MAX
from ..operation import Call, Reply, Routes

routes = Routes("session")


class NewSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What begins a session."""

    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX, description="A token, as in Authorization: Bearer.")]


class SessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """Who one is. `queues` null: all of them. `expires_at` null: this caller has no session."""

    name: str
    role: Role
    queues: list[str] | None
    expires_at: str | None


@routes.post("/api/v1/session", may=None, answer=SessionBody, status=201, problems=(401, 429))
async def begin_session(call: Call, body: NewSession) -> Reply:
    """Begin a session with a token.

    Sets a cookie for 12 hours that scripts cannot read and other sites cannot send. It ends when the token is revoked.
    Requests with it that change something must come from a page of this server.
    """
    grant = call.service.door.admit(body.token.encode(errors="surrogatepass"), call.request.scope.get("client"))
    session_id, lasts_ms = call.service.door.sessions.begin(grant)
    cookie = set_cookie(session_id, lasts_ms, secure=_secure(call))
    expires_at_ms = call.service.app.clock.now_ms() + lasts_ms
    return Reply(_who(grant.caller, expires_at_ms), 201, {"Set-Cookie": cookie})


@routes.get("/api/v1/session", may=Permission.LOOK, answer=SessionBody)
async def show_session(call: Call) -> Reply:
    """Say who is asking: the name of the token, its role and its queues."""
    session_id = session_id_in(call.request.scope["headers"], secure=_secure(call))
    session = None if session_id is None else call.service.door.sessions.find(session_id)
    mine = session is not None and session.grant.caller == call.caller
    return Reply(_who(call.caller, session.expires_at_ms if session is not None and mine else None))


@routes.delete("/api/v1/session", may=Permission.LOOK, status=204)
async def end_session(call: Call) -> Reply:
    """End the session that the cookie names, and take the cookie away. Repeating it is harmless."""
    session_id = session_id_in(call.request.scope["headers"], secure=_secure(call))
    if session_id is not None:
        call.service.door.sessions.end(session_id)
    return Reply(status=204, headers={"Set-Cookie": set_cookie("", 0, secure=_secure(call))})


def _who(caller: Caller, expires_at_ms: int | None) -> dict[str, Any]:
    return {
        "name": caller.name,
        "role": str(caller.role),
        "queues": None if caller.queues is None else sorted(caller.queues),
        "expires_at": instant_json(expires_at_ms),
    }


def _secure(call: Call) -> bool:
    return not is_local((call.header("host") or "").encode("latin-1", "replace"))
