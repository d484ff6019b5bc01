"""Answers and refusals as the API gives them: JSON, and for every refusal its code, field, message and next step."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from flask import Response, request
from werkzeug.exceptions import HTTPException

from holdfast_server.refusals import DATABASE_AWAY, DatabaseAway, Limited, NoSpace, TooLarge
from holdfast_shared.errors import (
    Conflict,
    Damaged,
    HoldfastError,
    Malformed,
    Missing,
    NotSupported,
    Untrusted,
)

JSON: Final = "application/json"
_STATUS: Final[dict[type[HoldfastError], int]] = {
    Malformed: 400,
    Untrusted: 403,
    Missing: 404,
    Conflict: 409,
    TooLarge: 413,
    NotSupported: 422,
    Limited: 429,
    Damaged: 500,
    DatabaseAway: 503,
    NoSpace: 507,
}
# A database that was restarted answers again within seconds; a fleet that asks again must not hinder it.
RETRY_AFTER_S: Final = 10
_OTHER_REFUSAL: Final = 400
_INTERNAL: Final = 500
# Of what HTTP itself refuses, the words for those that people meet.
_HTTP: Final = {
    404: ("not-found", "nothing is at this address", "see server/holdfast_server/api/README.md for what there is"),
    405: ("method-not-allowed", "this address does not take that method", "use one that the Allow header names"),
    413: ("too-large", "the body is too large", "send less"),
}
INTERNAL: Final = HoldfastError(
    "the server failed", code="internal", next_step="try again; if it stays so, read the server's log"
)
_NOT_THE_BODY: Final = (INTERNAL, DATABASE_AWAY)


def answer(value: Any, status: int = 200) -> Response:
    """`value` as JSON; never kept by anybody in between, unless the view says so."""
    response = Response(msgspec.json.encode(value), status=status, mimetype=JSON)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def refusal(error: HoldfastError) -> Response:
    """The answer to whoever must act. What is wrong with a body as a whole is about the field `body`."""
    field = error.field or ("body" if request.method in ("POST", "PUT") and error not in _NOT_THE_BODY else "")
    told = {"code": error.code, "field": field, "message": error.message, "next": error.next_step}
    return told_when(answer({"error": told}, status_of(error)))


def told_when(response: Response) -> Response:
    """With when to come again, where that helps."""
    if response.status_code == _STATUS[DatabaseAway]:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def status_of(error: HoldfastError) -> int:
    if error is INTERNAL:
        return _INTERNAL
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), _OTHER_REFUSAL)


def http_refusal(error: HTTPException) -> Response:
    """What HTTP refuses before any of our code: unknown address, wrong method, unreadable request."""
    status = error.code or _INTERNAL
    code, message, then = _HTTP.get(
        status, ("malformed", error.description or error.name, "see server/holdfast_server/api/README.md")
    )
    response = answer({"error": {"code": code, "field": "", "message": message, "next": then}}, status)
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response
