"""Whether a document is accepted: size, signature over the raw bytes, then strict parse, then fleet, scope and order.

Accepting stores the whole document with its order in one write; what follows from it is decided elsewhere, again and again.
An older document is no error: retained messages come late and twice. The same order with other content is an alarm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from holdfast_agent.core.device import PIPELINES_MAX, SECOND_US, Device, Own
from holdfast_agent.core.events import DocumentReceived, Moment
from holdfast_agent.core.record import Record, StoredDocument
from holdfast_shared import signing, strict_json
from holdfast_shared.assign import View, condemned_here
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Untrusted
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX, PAYLOAD_BYTES_MAX, TYPE, UNDERSTOOD, Assignment

# Somebody who floods a device with bad documents gets one alarm of each kind a minute, not one a document.
REFUSALS_APART_US: Final = 60 * SECOND_US
# A document of every pipeline for the region and for the device, and as many of regions it was in before.
DOCUMENTS_MAX: Final = 4 * PIPELINES_MAX


def receive(device: Device, received: DocumentReceived, now: Moment) -> Device:
    """The device after this document: accepted, or passed over, or refused with an alarm."""
    try:
        payload, document = opened(device.own, received)
        return _stored(device, document, payload, received.envelope, now)
    except HoldfastError as refusal:
        until_us = device.desk.refused_until_us
        if now.monotonic_us < until_us.get(refusal.code, 0):
            return device
        told = device.telling(
            "refused", now, pipeline=_name(received.pipeline), code=refusal.code, detail=f"{received.scope}: {refusal}"
        )
        return replace(
            told,
            desk=replace(told.desk, refused_until_us={**until_us, refusal.code: now.monotonic_us + REFUSALS_APART_US}),
        )


def opened(own: Own, received: DocumentReceived) -> tuple[bytes, Assignment]:
    """The verified payload and what it says. Raises Malformed or Untrusted."""
    keys = {key_id: key for key_id, (_, key) in own.directors.items()}
    verified = signing.verify(received.envelope, TYPE, keys, size_bytes_max=ENVELOPE_BYTES_MAX)
    document = _parsed(verified.payload)
    if all(own.directors[signer][0] != document.epoch for signer in verified.signers):
        raise Untrusted(
            f"the document is of epoch {document.epoch}, for which none of its signers may direct",
            field="epoch",
            next_step="sign it with a director key that authorities.json lists for that epoch",
        )
    found = (document.fleet, document.scope.key, document.pipeline)
    claimed = (own.membership.fleet, received.scope, received.pipeline)
    if found != claimed or document.scope.key not in own.scopes:
        raise Untrusted(
            f"a document for {'/'.join(found)} came as {'/'.join(claimed)} to a device of {' and '.join(own.scopes)}",
            field="scope",
            next_step="publish a document only under its own topic",
        )
    return verified.payload, document


def _stored(device: Device, document: Assignment, payload: bytes, envelope: bytes, now: Moment) -> Device:
    scope, name, digest = document.scope.key, document.pipeline, digest_of(payload)
    before = next((one for one in device.record.documents if (one.scope, one.pipeline) == (scope, name)), None)
    if before is not None and document.order < (before.epoch, before.seq):
        return device
    if before is not None and document.order == (before.epoch, before.seq):
        if before.payload_digest != digest:
            raise Conflict(
                f"order {document.order} was accepted with other content ({before.payload_digest[:19]}…)",
                field="seq",
                next_step="find out who signed two documents of one order; the first one holds",
                code=FailureCode.EQUIVOCATION,
            )
        if before.envelope:
            return device  # nothing new; `step` evaluates it again all the same
    if before is None and len(device.names) >= PIPELINES_MAX and name not in device.names:
        raise Malformed(
            f"a device holds at most {PIPELINES_MAX} pipelines",
            field="pipeline",
            next_step="assign fewer to it",
            code=FailureCode.TOO_MANY_PIPELINES,
        )
    entry = StoredDocument(
        scope=scope,
        pipeline=name,
        epoch=document.epoch,
        seq=document.seq,
        payload_digest=digest,
        envelope=envelope,
    )
    documents = (*_others(device, scope, name), entry)[-DOCUMENTS_MAX:]
    record = msgspec.structs.replace(device.record, documents=documents)
    changed = replace(device, record=record, documents=parsed_documents(device.own, record))
    detail = f"{scope} epoch {document.epoch} seq {document.seq}"
    changed = changed.telling("accepted", now, pipeline=name, detail=detail, urgent=False)
    return _lifted(changed, name)


def _others(device: Device, scope: str, pipeline: str) -> list[StoredDocument]:
    """All other documents. Once the new region's is here, only the order of an old region's is remembered."""
    region = scope.startswith("region/")
    kept: list[StoredDocument] = []
    for one in device.record.documents:
        if (one.scope, one.pipeline) == (scope, pipeline):
            continue
        left = region and one.pipeline == pipeline and one.scope not in device.own.scopes
        kept.append(msgspec.structs.replace(one, envelope=b"") if left else one)
    return sorted(kept, key=lambda one: bool(one.envelope))  # past the limit, bare orders go first


def parsed_documents(own: Own, record: Record) -> dict[str, tuple[Assignment, ...]]:
    """The stored documents by pipeline. Of a region that the device has left, only what it condemned still holds."""
    found: dict[str, tuple[Assignment, ...]] = {}
    for one in record.documents:
        if not one.envelope or (one.scope.startswith("device/") and one.scope not in own.scopes):
            continue
        try:  # it was verified when it was accepted, and the record has a checksum
            payload = signing.unverified_payload(one.envelope, TYPE, size_bytes_max=ENVELOPE_BYTES_MAX)
            document = _parsed(payload)
        except HoldfastError:  # an agent of another version could read it: without a document, what runs is kept
            continue
        if one.scope not in own.scopes:
            document = msgspec.structs.replace(document, rules=(), retry=(), floor=None, critical=())
        found[one.pipeline] = (*found.get(one.pipeline, ()), document)
    return found


def not_understood(document: Assignment) -> list[str]:
    """The fields that a document calls critical and this agent does not know."""
    return sorted(set(document.critical) - UNDERSTOOD)


def _lifted(device: Device, name: str) -> Device:
    """Without the local condemnations that the document's `retry` lifts: they hold no longer, and are reported no longer."""
    pipeline = device.record.pipeline(name)
    view = View(
        device=device.own.membership.device,
        labels=device.own.membership.selectable,
        condemned_here=pipeline.condemned_here,
    )
    documents = device.documents_of(name)
    kept = tuple(one for one in pipeline.condemned_here if condemned_here(documents, view, one.target))
    if kept == pipeline.condemned_here:
        return device
    return device.with_pipeline(name, msgspec.structs.replace(pipeline, condemned_here=kept))


def _parsed(payload: bytes) -> Assignment:
    return strict_json.decode(payload, Assignment, what="assignment", size_bytes_max=PAYLOAD_BYTES_MAX)


def _name(text: str) -> str:
    """A claimed pipeline's name as it may stand in a report: it came from outside and nobody signed it."""
    return text if len(text) <= 63 and text.replace("-", "a").isalnum() and text.isascii() else ""
