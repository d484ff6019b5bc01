"""Open Inference Protocol v2 and `/metrics`: which path asks what, and the answers that need no worker.

A pipeline is the protocol's model, a release's version its model version. Source: the protocol's REST specification and its
binary tensor extension (github.com/kserve/open-inference-protocol, github.com/triton-inference-server/server: docs/protocol).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec

from holdfast_gateway import exposition, feedback, statistics
from holdfast_gateway.control import Shadowing
from holdfast_gateway.http_connection import Connection
from holdfast_gateway.http_message import Request
from holdfast_gateway.inference import Inference, error_body
from holdfast_gateway.metrics import Metrics
from holdfast_gateway.pipeline import Pipeline
from holdfast_shared import __version__
from holdfast_shared.wire.report import Isolation
from holdfast_worker.protocol import NO_HEADER

NAME: Final = "holdfast"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "statistics", "holdfast_feedback")
# What a pipeline is to a client that asks for the platform of a model.
PLATFORM: Final = "holdfast_pipeline"
_GET: Final = (b"GET", b"HEAD")
_POST: Final = (b"POST",)
_LOADING: Final = "releases are loaded by assignment, not over this API: holdfast rollout plan"


class Place(NamedTuple):
    """What a path is about: one word of the table below, and the model and version in it."""

    what: str
    model: str = ""
    version: str = ""


_FIXED: Final[dict[tuple[str, ...], str]] = {
    (): "server",
    ("health", "live"): "live",
    ("health", "ready"): "ready",
    ("repository", "index"): "index",
    ("models", "stats"): "all-stats",
}
_OF_MODEL: Final[dict[tuple[str, ...], str]] = {
    (): "model",
    ("ready",): "model-ready",
    ("infer",): "infer",
    ("stats",): "stats",
    ("feedback",): "feedback",
}
_METHODS: Final = {"infer": _POST, "index": _POST, "load": _POST, "feedback": _POST}


@lru_cache(maxsize=512)
def place_of(path: bytes) -> Place | None:
    """What is asked by this path, or None when there is no such place."""
    first, *parts = [unquote(part) for part in path.split(b"?", 1)[0].decode("latin-1").strip("/").split("/")]
    if first != "v2":
        return Place("metrics") if (first, *parts) == ("metrics",) else None
    fixed = _FIXED.get(tuple(parts))
    if fixed is not None:
        return Place(fixed)
    match parts:
        case ["models", model, "versions", version, *rest] if tuple(rest) in _OF_MODEL:
            return Place(_OF_MODEL[tuple(rest)], model, version)
        case ["models", model, *rest] if tuple(rest) in _OF_MODEL:
            return Place(_OF_MODEL[tuple(rest)], model)
        case ["repository", "models", model, "load" | "unload"]:
            return Place("load", model)
        case _:
            return None


class OpenInference:
    """Answers every request, at once or when a worker has.

    `unassigned`: why it is not known which pipelines there are, while it is not; empty otherwise.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], isolation: Callable[[], Isolation], metrics: Metrics) -> None:
        self._pipelines = pipelines
        self._isolation = isolation
        self._metrics = metrics
        self.unassigned = ""

    def serve(self, request: Request, connection: Connection) -> None:
        place = place_of(request.path)
        if place is None:
            _refuse(connection, HTTPStatus.NOT_FOUND, "no such place; begin at /v2, or at /metrics")
            return
        methods = _METHODS.get(place.what, _GET)
        if request.method not in methods:
            allow = b", ".join(methods)
            body = error_body(f"this place is asked with {allow.decode()}")
            connection.answer(HTTPStatus.METHOD_NOT_ALLOWED, NO_HEADER, body, allow=allow)
        elif place.model:
            self._serve_model(place, request, connection)
        else:
            self._serve_server(place, request, connection)

    # -- of one model

    def _serve_model(self, place: Place, request: Request, connection: Connection) -> None:
        pipeline = self._pipelines.get(place.model)
        if place.what == "load":
            _refuse(connection, HTTPStatus.FORBIDDEN, _LOADING)
        elif pipeline is None and self.unassigned:
            _refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, f"{place.model}: {self.unassigned}")
        elif pipeline is None:
            names = ", ".join(sorted(self._pipelines)) or "none yet"
            _refuse(connection, HTTPStatus.NOT_FOUND, f"unknown model {place.model!r}; this device serves: {names}")
        elif place.what == "infer":
            inference = Inference(
                connection,
                request.body,
                version=place.version,
                wants_binary=request.wants_binary,
                header_length=request.header_length,
                since=time.monotonic(),
            )
            pipeline.submit(inference)
        elif place.what == "feedback":
            _say(connection, *feedback.take(request.body, pipeline.recent, pipeline.name, time.monotonic()))
        else:
            _say(connection, *self._about(place, pipeline))

    def _about(self, place: Place, pipeline: Pipeline) -> tuple[HTTPStatus, object]:
        if place.what == "stats":
            return _stats_of(pipeline, place.version)
        answering = [slot for slot in pipeline.answering if place.version in ("", slot.version)]
        if pipeline.answering and not answering:
            return HTTPStatus.NOT_FOUND, {"error": pipeline.not_this_version(place.version)}
        slot = answering[0] if answering else None
        match place.what:
            case "model-ready" if slot is None:
                answer = {"name": pipeline.name, "ready": False, "error": pipeline.why_not()}
                return HTTPStatus.SERVICE_UNAVAILABLE, answer
            case "model-ready":
                return HTTPStatus.OK, {"name": pipeline.name, "ready": True}
            case _ if slot is None or slot.ready_said is None:
                return HTTPStatus.SERVICE_UNAVAILABLE, {"error": pipeline.why_not()}
            case _:
                said = slot.ready_said
                return HTTPStatus.OK, {
                    "name": pipeline.name,
                    "versions": list(dict.fromkeys(one.version for one in answering)),
                    "platform": PLATFORM,
                    "inputs": said.inputs,
                    "outputs": said.outputs,
                }

    # -- of the whole

    def _serve_server(self, place: Place, request: Request, connection: Connection) -> None:
        match place.what:
            case "server":
                answer = {"name": NAME, "version": __version__, "extensions": EXTENSIONS}
                # Not the protocol's: how this device's own commands learn it.
                said = {"isolation": self._isolation(), "shadows": self._shadows()}
                _say(connection, HTTPStatus.OK, {**answer, **said})
            case "live":
                _say(connection, HTTPStatus.OK, {"live": True})
            case "ready":
                why = self.why_not_ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
                _say(connection, status, {"ready": False, "error": why} if why else {"ready": True})
            case "index":
                self._say_index(request, connection)
            case "metrics":
                body = self._metrics.encoded()
                connection.answer(HTTPStatus.OK, NO_HEADER, body, content_type=exposition.CONTENT_TYPE)
            case _:
                slots = [slot for pipeline in self._pipelines.values() for slot in pipeline.slots.values()]
                _say(connection, HTTPStatus.OK, {"model_stats": [statistics.of(slot) for slot in slots]})

    def _shadows(self) -> list[Shadowing]:
        found = (pipeline.beside.shadow for _, pipeline in sorted(self._pipelines.items()))
        return [shadow.told() for shadow in found if shadow is not None]

    def why_not_ready(self) -> str:
        """Why some request would get no answer now; empty when every pipeline has one who answers."""
        if not self._pipelines:
            return "no pipeline is assigned to this device yet"
        return "; ".join(pipeline.why_not() for pipeline in self._pipelines.values() if not pipeline.usable)

    def _say_index(self, request: Request, connection: Connection) -> None:
        try:
            asked = msgspec.json.decode(request.body, type=_Index) if request.body else _Index()
        except msgspec.DecodeError as error:
            _refuse(
                connection, HTTPStatus.BAD_REQUEST, f'the body must be empty or {{"ready": true or false}}: {error}'
            )
            return
        found = [entry for _, pipeline in sorted(self._pipelines.items()) for entry in _entries(pipeline)]
        _say(connection, HTTPStatus.OK, [entry for entry in found if entry["state"] == "READY" or not asked.ready])


class _Index(msgspec.Struct, frozen=True):
    ready: bool = False


def _entries(pipeline: Pipeline) -> list[dict[str, str]]:
    """Of the repository index. READY is only what a request would be answered by: one that names another release is not."""
    answers = pipeline.answering
    found = []
    for slot in dict.fromkeys((*answers, *pipeline.slots.values())):
        entry = {"name": pipeline.name, "version": slot.version}
        if slot in answers:
            found.append({**entry, "state": "READY", "reason": ""})
        elif slot.state == "loading":
            found.append({**entry, "state": "LOADING", "reason": ""})
        elif slot.cold:
            found.append({**entry, "state": "UNAVAILABLE", "reason": slot.detail})
        elif slot.state == "ready":
            found.append(
                {**entry, "state": "UNAVAILABLE", "reason": "it is in reserve, and answers no request by name"}
            )
        else:
            found.append({**entry, "state": "UNAVAILABLE", "reason": slot.described()})
    return found or [{"name": pipeline.name, "version": "", "state": "UNAVAILABLE", "reason": pipeline.why_not()}]


def _stats_of(pipeline: Pipeline, version: str) -> tuple[HTTPStatus, object]:
    """Of every release that is loaded, the one that answers first; or of the one that is named."""
    slots = list(dict.fromkeys((*pipeline.usable, *pipeline.slots.values())))
    found = [statistics.of(slot) for slot in slots if version in ("", slot.version)]
    if version and not found:
        loaded = ", ".join(slot.version for slot in slots) or "none"
        return HTTPStatus.NOT_FOUND, {
            "error": f"{pipeline.name}: version {version} is not loaded here; loaded: {loaded}"
        }
    return HTTPStatus.OK, {"model_stats": found}


def _say(connection: Connection, status: HTTPStatus, answer: object) -> None:
    connection.answer(status, NO_HEADER, msgspec.json.encode(answer))


def _refuse(connection: Connection, status: HTTPStatus, message: str) -> None:
    connection.answer(status, NO_HEADER, error_body(message))
