"""From a connection or session of SQLAlchemy to the driver's connection below it, its transaction begun.

SQLAlchemy is never imported here: who has one of its connections has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import InvalidOption

#: Where SQLAlchemy keeps what has a transaction: module, names, whether it is for async code.
_KINDS = (
    ("sqlalchemy.engine", ("Connection",), False),
    ("sqlalchemy.orm", ("Session", "scoped_session"), False),
    ("sqlalchemy.ext.asyncio", ("AsyncConnection", "AsyncSession", "async_scoped_session"), True),
)

#: Makes SQLAlchemy begin, and its drivers too, which wait for the first statement. It reads no table.
_BEGIN = "SELECT 1"


def sqlalchemy_is_async(connection: object) -> bool | None:
    """Tell whether this is a connection or session of SQLAlchemy for async code; None: it is none of SQLAlchemy's."""
    for module, names, is_async in _KINDS:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(connection, tuple(getattr(loaded, name) for name in names)):
            return is_async
    return None


def begun(connection: Any) -> Any:
    """Answer the driver's connection below a blocking one of SQLAlchemy, in whose transaction it is now.

    Of a session only its connection is used: what waits in it to be flushed is left alone.
    """
    if not hasattr(connection, "exec_driver_sql"):  # a session
        connection = connection.connection()
    _refuse_closed(connection)
    connection.exec_driver_sql(_BEGIN)
    return connection.connection.driver_connection


async def abegun(connection: Any) -> Any:
    """Answer the driver's connection below an async one of SQLAlchemy, in whose transaction it is now."""
    if not hasattr(connection, "exec_driver_sql"):
        connection = await connection.connection()
    _refuse_closed(connection)
    await connection.exec_driver_sql(_BEGIN)
    return (await connection.get_raw_connection()).driver_connection


def _refuse_closed(connection: Any) -> None:
    if connection.closed:
        raise InvalidOption("connection: it is closed; give one that is open and in a transaction")
