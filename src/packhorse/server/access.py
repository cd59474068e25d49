"""Who may do what: roles, and the caller that the guard found behind a request."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ..errors import Forbidden, PackhorseError


class Permission(StrEnum):
    """What an operation asks of its caller."""

    LOOK = "look"  # see jobs, queues, workers
    SUBMIT = "submit"  # enqueue
    WORK = "work"  # claim, settle, heartbeat
    STEER = "steer"  # cancel, rerun, delete, pause, limits, schedules


class Role(StrEnum):
    """What a token is for."""

    READ = "read"
    SUBMIT = "submit"
    WORK = "work"
    ADMIN = "admin"


GRANTS: dict[Role, frozenset[Permission]] = {
    Role.READ: frozenset({Permission.LOOK}),
    Role.SUBMIT: frozenset({Permission.LOOK, Permission.SUBMIT}),
    Role.WORK: frozenset({Permission.LOOK, Permission.SUBMIT, Permission.WORK}),
    Role.ADMIN: frozenset(Permission),
}


def role_for(permission: Permission) -> Role:
    """Answer the least role that grants `permission`, for messages to who has to make a token."""
    return next(role for role in Role if permission in GRANTS[role])


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking. `queues` None: all of them; else nothing of another queue is seen or touched."""

    name: str
    role: Role = Role.ADMIN
    queues: frozenset[str] | None = None
    known: bool = True  # False: nobody has said who it is

    def may(self, permission: Permission) -> bool:
        """Answer whether the role of this caller grants `permission`."""
        return self.known and permission in GRANTS[self.role]


#: Who asks a server that listens on the loopback only and has no tokens.
LOCAL = Caller(name="local")

#: Who asks without a token where one is needed: may do what anybody may.
ANONYMOUS = Caller(name="anonymous", role=Role.READ, queues=frozenset(), known=False)

#: Where the guard leaves the caller in the ASGI scope.
CALLER_KEY = "packhorse.caller"


class Unauthorized(PackhorseError):
    """No token, or one that is not known: the same words for both."""


def lacks(caller: Caller, permission: Permission, what: str = "this") -> Forbidden:
    """Answer the refusal of a caller whose role does not grant `permission`, with the role that `what` takes."""
    return Forbidden(
        f"the token {caller.name!r} is for {caller.role}; {what} needs the right to {permission}: "
        f"use a token of role {role_for(permission)}"
    )


def refuse_scoped(caller: Caller) -> None:
    """Raise Forbidden for a token that is for some queues: metrics speak of all."""
    if caller.queues is not None:
        raise Forbidden(
            f"the token {caller.name!r} is for some queues and metrics speak of all; "
            "use one without queues, as 'packhorse tokens create NAME --role read' makes"
        )
