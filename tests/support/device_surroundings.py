"""What is around one device: a director and a publisher who sign, a server of files, a broker, and somebody who listens.

Only signed reports are believed. Where the device runs, in processes (`device_bench`) or as a whole machine (`machine_bench`),
is theirs who inherit.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from holdfast_shared import signing, strict_json, topics
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire import membership as membership_wire
from holdfast_shared.wire import report as report_wire
from holdfast_shared.wire.assignment import TYPE, Assignment, Condemned, Rule, Scope
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.report import Event, Report
from support import digits_models
from support.hostile_server import HostileServer, honest
from support.installed_release import PUBLISHER, Published, tensor
from support.mosquitto import Mosquitto

T = TypeVar("T")

FLEET: Final = "test"
DEVICE: Final = "camera-7"
REGION: Final = "eu-west"
PIPELINE: Final = "digits"
WITHIN_S: Final = 40.0
DIRECTOR, OTTO, KEY = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()


class Surroundings(ABC):
    """`close` lets go of all that it holds."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.files = HostileServer()
        self._seq = 0
        self._reports: dict[tuple[str, int], Report] = {}  # one that is delivered again is the same
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench", protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(topics.health(FLEET, DEVICE), 1), (topics.event(FLEET, DEVICE), 1)]
        )
        self._listening = threading.Event()
        self._client.on_subscribe = lambda *_: self._listening.set()
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._listening.wait(WITHIN_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.files.close()

    @abstractmethod
    def eventually(self, observe: Callable[[], T | None], what: str) -> T:
        """What it sees, once it sees something. Raises AssertionError."""

    @staticmethod
    def documents() -> dict[str, bytes]:
        """Its authorities, its membership and its key, as files by their names."""
        text = {name: key.public.to_text() for name, key in {"m": PUBLISHER, "d": DIRECTOR, "o": OTTO}.items()}
        trusted = Authorities(
            fleet=FLEET,
            version=1,
            publishers=(Publisher(name="mira", public_key=text["m"]),),
            directors=(Director(name="director", public_key=text["d"], epoch=1),),
            enrolment=(Holder(name="otto", public_key=text["o"]),),
            operators=(),
            approvers=(),
        )
        member = Membership(
            fleet=FLEET, device=DEVICE, region=REGION, counter=1, public_key=KEY.public.to_text(), issued_at=1
        )
        return {
            "authorities.json": strict_json.encode(trusted),
            "membership.json": signing.sign(strict_json.encode(member), membership_wire.TYPE, [OTTO]),
            "device.pem": KEY.to_pem(),
        }

    # -- what others say to it

    def publish(self, release: Published) -> None:
        """Have the server offer it."""
        for digest, envelope in release.manifests.items():
            self.files.on(f"/api/v1/manifests/{digest}", honest(envelope))
        for digest, blob in release.blobs.items():
            self.files.on(f"/api/v1/blobs/{digest}", honest(blob))

    def assign(self, *rules: Rule, condemned: tuple[Condemned, ...] = (), pipeline: str = PIPELINE) -> None:
        """The region's next document, retained at the broker."""
        self._seq += 1
        now = time.time_ns() // 1000
        document = Assignment(
            fleet=FLEET,
            scope=Scope(region=REGION),
            pipeline=pipeline,
            epoch=1,
            seq=self._seq,
            issued_at=now,
            not_after=now + 3600 * 1_000_000,
            rules=rules,
            condemned=condemned,
        )
        envelope = signing.sign(strict_json.encode(document), TYPE, [DIRECTOR])
        topic = topics.region_assignment(FLEET, REGION, pipeline)
        self._client.publish(topic, envelope, qos=1, retain=True).wait_for_publish(WITHIN_S)

    @staticmethod
    def question(image: int = 0) -> bytes:
        """The body that asks for one real image."""
        return json.dumps({"inputs": [tensor("image", digits_models.images()[image].reshape(1, -1))]}).encode()

    # -- what it says

    @property
    def reports(self) -> list[Report]:
        return list(self._reports.values())

    def events(self, kind: str) -> list[Event]:
        return [event for report in self.reports for event in report.events if event.kind == kind]

    def serves(self, version: str, pipeline: str = PIPELINE) -> Report:
        """The newest report, once it says so."""

        def found() -> Report | None:
            newest = max(self.reports, key=lambda one: one.number, default=None)
            if newest is None:
                return None
            serving = next((one.serving for one in newest.pipelines if one.pipeline == pipeline), None)
            return newest if serving is not None and serving.release.version == version else None

        return self.eventually(found, f"a signed report that {pipeline} {version} serves")

    def _on_message(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        keys = {KEY.public.key_id: KEY.public}
        limit = report_wire.ENVELOPE_BYTES_MAX
        verified = signing.verify(bytes(message.payload), report_wire.TYPE, keys, size_bytes_max=limit)
        report = strict_json.decode(verified.payload, Report, what="report", size_bytes_max=limit)
        self._reports.setdefault((report.incarnation, report.number), report)
