"""Assignments that the director did not sign, retained on the topics that a real device listens to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from demonstration.digits import PIPELINE
from holdfast_shared import signing, strict_json, topics
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import TYPE, Assignment, ReleaseRef, Rule, Scope
from support import digits_models
from support.small_fleet import FLEET, SmallFleet, device, files_of, small_fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOOD, OTHER = "1.0.0", "1.1.0"
CAMERA: Final = device("camera-1")
# The server publishes over a forger's message at most every five seconds.
OVER_S: Final = 30.0
_HOUR_US: Final = 3_600 * 1_000_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[SmallFleet]:
    """A device that serves one release, while another, as good, is published and nowhere assigned."""
    with small_fleet([CAMERA]) as started:
        started.publish(GOOD, digits_models.trained())
        started.publish(OTHER, digits_models.trained(0.5))
        with started.application():
            started.roll_out(GOOD)
        yield started


def forged(devices: SmallFleet, signer: str, /, **changed: Any) -> bytes:
    """A document that would move the device to the other release, were it signed by the director and for it."""
    release = devices.server.get("releases", PIPELINE, OTHER)
    now = time.time_ns() // 1000
    document = Assignment(
        fleet=FLEET,
        scope=Scope(device=CAMERA.id),
        pipeline=PIPELINE,
        epoch=1,
        seq=1_000,
        issued_at=now,
        not_after=now + _HOUR_US,
        rules=(Rule(mode="serve", release=ReleaseRef(version=OTHER, digest=release["digest"])),),
    )
    payload = strict_json.encode(msgspec.structs.replace(document, **changed))
    return signing.sign(payload, TYPE, [key(devices, signer)])


def key(fleet: SmallFleet, name: str) -> PrivateKey:
    return PrivateKey.from_pem(fleet.provisioned.key(name).read_bytes())


def unsigned(fleet: SmallFleet) -> bytes:
    return json.dumps(json.loads(forged(fleet, "director")) | {"signatures": []}).encode()


def under_the_directors_name(fleet: SmallFleet) -> bytes:
    """A stranger's signature with the director's key id."""
    envelope = json.loads(forged(fleet, "mira"))
    envelope["signatures"][0]["keyid"] = key(fleet, "director").public.key_id
    return json.dumps(envelope).encode()


def changed_afterwards(fleet: SmallFleet) -> bytes:
    """One document's payload under another's signature."""
    envelope = json.loads(forged(fleet, "director"))
    envelope["payload"] = json.loads(forged(fleet, "director", seq=1_001))["payload"]
    return json.dumps(envelope).encode()


FORGERIES: Final[dict[str, tuple[str, Callable[[SmallFleet], bytes]]]] = {
    "no JSON": ("malformed", lambda _: b"\x00\xff"),
    "cut off": ("malformed", lambda fleet: forged(fleet, "director")[:-40]),
    "unsigned": ("malformed", unsigned),
    "signed by an operator": ("untrusted", lambda fleet: forged(fleet, "anna")),
    "signed by a stranger under the director's name": ("untrusted", under_the_directors_name),
    "changed after it was signed": ("untrusted", changed_afterwards),
    "for another device": ("untrusted", lambda fleet: forged(fleet, "director", scope=Scope(device="camera-2"))),
    "for another fleet": ("untrusted", lambda fleet: forged(fleet, "director", fleet="other")),
    "of an epoch that is not the director's": ("untrusted", lambda fleet: forged(fleet, "director", epoch=2)),
}


@pytest.mark.parametrize(("code", "forgery"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_document_is_refused_told_and_changes_nothing(
    fleet: SmallFleet, code: str, forgery: Callable[[SmallFleet], bytes]
) -> None:
    """Retained, so that an agent which starts hears it too; it tells the server, and goes on serving what it served."""
    topic = topics.device_assignment(FLEET, CAMERA.id, PIPELINE)
    before = _kept(fleet)
    document, refusals = forgery(fleet), len(fleet.events(CAMERA, "refused"))
    fleet.processes.stop(f"agent-{CAMERA.id}")
    fleet.send(topic, document, retain=True)
    fleet.start_agent(CAMERA)  # it tells of one refusal a minute: this one's first
    fleet.seen("the refusal arrives", lambda: len(fleet.events(CAMERA, "refused")) > refusals)
    fleet.send(topic, b"", retain=True)
    assert fleet.events(CAMERA, "refused")[-1].code == code
    fleet.wait_for_report(CAMERA)
    assert _kept(fleet) == before
    assert fleet.ask(CAMERA, digits_models.inked_images()[0]).body["model_version"] == GOOD


def test_a_region_topic_that_was_written_over_holds_the_servers_document_again(fleet: SmallFleet) -> None:
    """What a forger retained there is replaced, and the device never heeded it."""
    topic = topics.region_assignment(FLEET, CAMERA.region, PIPELINE)
    genuine, before = fleet.retained(topic), _kept(fleet)
    fleet.send(topic, forged(fleet, "anna", scope=Scope(region=CAMERA.region)), retain=True)
    fleet.seen("the server's document is retained again", lambda: fleet.retained(topic) == genuine, within_s=OVER_S)
    fleet.wait_for_report(CAMERA)
    assert _kept(fleet) == before


def test_the_same_document_signed_by_the_director_is_followed(fleet: SmallFleet) -> None:
    """So that what was refused above was refused for its signature or its address, and for nothing else."""
    topic = topics.device_assignment(FLEET, CAMERA.id, PIPELINE)
    with fleet.application():
        fleet.send(topic, forged(fleet, "director"), retain=True)
        fleet.wait_until_serving(CAMERA, OTHER)
        fleet.send(topic, forged(fleet, "director", seq=1_001, rules=()), retain=True)
        fleet.wait_until_serving(CAMERA, GOOD)


def _kept(fleet: SmallFleet) -> Any:
    """What a document could change on the device's disk: slots, accepted documents, releases."""
    root: Path = fleet.layout(CAMERA).root
    files = {name: files_of(root / name) for name in ("blobs", "manifests", "partial")}
    found = fleet.record(CAMERA)
    return found.pipelines, found.documents, files
