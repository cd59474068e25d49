"""`/openapi.json`: what all of this is, for generators of clients."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from starlette.responses import Response

from ..access import Permission
from ..openapi import make_document
from ..operation import Call, Routes, tagged_response
from ..service import Service

routes = Routes("document")

#: Made once for each server: the tasks of an app do not change while it serves.
_documents: WeakKeyDictionary[Service, bytes] = WeakKeyDictionary()


@routes.get("/openapi.json", may=Permission.LOOK, answer=dict[str, Any], polled=True)
async def show_document(call: Call) -> Response:
    """Answer the OpenAPI 3.1 document of this server, with the payloads of the job types that it knows."""
    content = _documents.get(call.service)
    if content is None:
        from ..app import operations

        content = msgspec.json.encode(make_document(operations(), call.service.app.tasks))
        _documents[call.service] = content
    return tagged_response(call.request, content)
