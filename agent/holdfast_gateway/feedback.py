"""`POST v2/models/<model>/feedback`: an application tells what a prediction should have been, by the id of its request.

An extension of ours to the Open Inference Protocol: `{"id": "r-7", "label": 3}`, or `"labels": [3, 5]` for a batch of two. Each
prediction is labelled once. The answer says what was predicted, and by which version.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

import msgspec

from holdfast_gateway.recent_answers import AGE_MAX_S, ID_CHARACTERS_MAX, REMEMBERED_MAX, RecentAnswers
from holdfast_shared.wire.report import LABELS_MAX

_Class = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Feedback(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]
    label: _Class | None = None
    labels: Annotated[tuple[_Class, ...], msgspec.Meta(min_length=1, max_length=LABELS_MAX)] | None = None


_decoder: Final = msgspec.json.Decoder(_Feedback)


def take(body: bytes | bytearray, recent: RecentAnswers, pipeline: str, now: float) -> tuple[HTTPStatus, object]:
    """Count it where it belongs; the answer."""
    try:
        told = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return HTTPStatus.BAD_REQUEST, {"error": f'expected {{"id": "…", "label": 3}} or "labels" of a batch: {error}'}
    if (told.label is None) == (told.labels is None):
        return HTTPStatus.BAD_REQUEST, {"error": "give either `label`, or `labels` of a batch"}
    labels = told.labels if told.labels is not None else (told.label,)
    prediction = recent.of(told.id, now)
    if prediction is None:
        recent.unmatched += 1
        return HTTPStatus.NOT_FOUND, {
            "error": f"{pipeline}: no prediction waits for a label under the id {told.id!r}: it is unknown, labelled already,"
            f" older than {AGE_MAX_S / 3600:.0f} h, beyond the last {REMEMBERED_MAX}, from before a restart of the gateway,"
            " or of a release that declares no `scores`. Leave it out; ask under an id of its own for each request, and tell its"
            " label within the day"
        }
    if len(labels) != len(prediction.classes):
        return HTTPStatus.BAD_REQUEST, {
            "error": f"{len(labels)} label(s) for {len(prediction.classes)} prediction(s) under the id {told.id!r}"
        }
    agreed = sum(here == there for here, there in zip(labels, prediction.classes, strict=True))
    prediction.counts.feedback(now, labelled=len(labels), agreed=agreed)
    recent.forget(told.id)
    return HTTPStatus.OK, {
        "id": told.id,
        "model_name": pipeline,
        "model_version": prediction.version,
        "predicted": prediction.classes,
        "agreed": agreed,
    }
