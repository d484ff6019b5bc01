"""The web application: the API and the page over one `Reads`, and what is answered when neither knows an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import flask
from werkzeug.exceptions import HTTPException, SecurityError

from holdfast_server import api, web
from holdfast_server.api import answers
from holdfast_server.api.body_limits import BASE, BodyLimits
from holdfast_server.context import Context
from holdfast_server.ingest.tally import Tally
from holdfast_server.refusals import DATABASE_AWAY
from holdfast_server.store.database import UNAVAILABLE
from holdfast_server.web.pages import CONTENT_SECURITY_POLICY
from holdfast_shared.errors import HoldfastError

# It listens on loopback only; a page elsewhere whose name was made to point here may not read from us.
HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")

log: Final = logging.getLogger(__name__)


def create(
    context: Context,
    broker_connected: Callable[[], bool],
    *,
    tally: Tally | None = None,
    stopping: threading.Event | None = None,
) -> flask.Flask:
    """The application over `context`; `tally`: of what devices say. Open event streams end once `stopping` is set."""
    app = flask.Flask("holdfast_server", static_folder=None, template_folder=None)
    app.config["TRUSTED_HOSTS"] = list(HOSTS)
    app.url_map.strict_slashes = True
    reads = api.Reads(context, broker_connected, tally)
    limits = BodyLimits(context.registry.expected_size)
    app.register_blueprint(api.blueprint(context, reads, limits, stopping or threading.Event()))
    app.register_blueprint(web.blueprint(reads))
    app.register_error_handler(HTTPException, _http_refused)
    app.register_error_handler(Exception, _failed)
    return app


def _http_refused(error: HTTPException) -> flask.typing.ResponseReturnValue:
    if _asks_api() or isinstance(error, SecurityError):  # a host that is not ours: nothing is linked from there
        return answers.http_refusal(error)
    return _page(HoldfastError(error.description or error.name), error.code or 500)


def _failed(error: Exception) -> flask.typing.ResponseReturnValue:
    """A database that is away, or a bug: the log has it all, the answer nothing of it."""
    where = f"{flask.request.method} {flask.request.path[:200]}"
    if isinstance(error, UNAVAILABLE):
        log.warning("%s: the database does not answer: %.300s", where, error)
        told: HoldfastError = DATABASE_AWAY
    else:
        log.error("%s failed", where, exc_info=error)
        told = answers.INTERNAL
    if _asks_api():
        return answers.refusal(told)
    return answers.told_when(_page(told, answers.status_of(told)))


def _page(error: HoldfastError, status: int) -> flask.Response:
    response = flask.make_response(flask.render_template("error.html", status=None, error=error), status)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Cache-Control"] = "no-store"
    return response


def _asks_api() -> bool:
    return flask.request.path.startswith(BASE)
