"""A server's store with a fleet that speaks: for tests that drive rollouts through real tables and real documents.

Devices obey the issued documents by their own `assign`, and their reports are rows as ingest writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Table, delete, insert

from holdfast_server.core.rollout import Moment
from holdfast_server.core.segments import Match
from holdfast_server.ingest.rows import Measures
from holdfast_server.rollouts import commands, views
from holdfast_server.rollouts.scheduler import Scheduler
from holdfast_server.store import changes, outbox, schema
from holdfast_server.store.database import Database, sqlite_url
from holdfast_server.store.outbox import Director
from holdfast_shared import signing, strict_json
from holdfast_shared.assign import LocalCondemnation, Target, View, assign
from holdfast_shared.authorities import Authorities, Holder
from holdfast_shared.authorities import Director as DirectorKey
from holdfast_shared.identifiers import digest_of
from holdfast_shared.semver import Version
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.assignment import TYPE, Assignment, Requests
from holdfast_shared.wire.command import Act, Approve, Command, Rollback, RolloutPlan
from holdfast_shared.wire.membership import Membership
from holdfast_shared.wire.release import RELEASE_TYPE
from holdfast_shared.wire.report import CondemnedHere, PipelineReport, ShadowCounts, SlotReport
from support.rollout_values import PIPELINE, REGIONS, release

SECOND_US: Final = 1_000_000
BOOT: Final = "boot-of-this-machine"
DIRECTOR: Final = PrivateKey.generate()
# What devices said in one round, by table.
Rows = dict[Table, list[dict[str, Any]]]
KEYS: Final = {name: PrivateKey.generate() for name in ("ann", "bob", "cid", "eve")}


def authorities() -> Authorities:
    """Ann and Bob operate, Bob and Cid approve; Eve has a key that nobody knows."""
    holder = {name: Holder(name=name, public_key=key.public.to_text()) for name, key in KEYS.items()}
    director = DirectorKey(name="server", public_key=DIRECTOR.public.to_text(), epoch=1)
    return Authorities(
        fleet="test", version=1, publishers=(), directors=(director,), enrolment=(),
        operators=(holder["ann"], holder["bob"]), approvers=(holder["bob"], holder["cid"]),
    )  # fmt: skip


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.at = 1_700_000_000 * SECOND_US

    def __call__(self) -> Moment:
        return Moment(at=self.at, monotonic_us=self.at - 1_699_000_000 * SECOND_US)

    def passes(self, seconds: float) -> None:
        self.at += int(seconds * SECOND_US)


class Bench:
    """The context of a server, its scheduler, and the devices."""

    def __init__(self, folder: Path, *, light: int = 27) -> None:
        self.database = Database(sqlite_url(folder / "server.db"))
        self.database.migrate()
        self.authorities = authorities()
        self.director = Director("test", DIRECTOR, 1)
        self.now: Callable[[], Moment] = Clock()
        self.shadow_first: Match | None = None  # where a release must have shadowed before it serves
        self.scheduler = Scheduler(self, boot=BOOT)
        self.ids = itertools.count(1)
        self.digests: dict[str, str] = {}
        self.memory: dict[str, int] = {}  # bytes that the worker of a version holds
        self.measures: dict[str, Measures] = {}  # what each window of a version measures besides its counts
        self.shadows: dict[str, ShadowCounts] = {}  # what each window says of a version that shadows
        self.spooled_us = self.clocks_behind_us = (
            0  # since when windows lay on the devices; what their clocks are behind
        )
        self.devices: dict[str, Speaker] = {}
        for region in REGIONS:
            self.enrol(f"real-{region}", region, kind="real", ring="canary")
        for number in range(light):
            self.enrol(f"light-{number}", REGIONS[number % 3], kind="light", ring="field")

    @property
    def clock(self) -> Clock:
        assert isinstance(self.now, Clock)
        return self.now

    def enrol(self, device: str, region: str, **labels: str) -> None:
        membership = Membership(
            fleet="test", device=device, region=region, counter=1, public_key="A" * 44, issued_at=1, labels=labels
        )
        with self.database.write() as connection:
            connection.execute(
                insert(schema.memberships).values(
                    device=device, region=region, stage="production", counter=1, public_key=membership.public_key,
                    labels=msgspec.json.encode(membership.selectable).decode(), received_at=self.now().at, envelope=b"",
                )
            )  # fmt: skip
        self.devices[device] = Speaker(self, device, membership.selectable)
        self.clock.passes(0.000_001)

    def publish_environment(self, name: str, version: str) -> str:
        """Its digest. Nothing is built here, so a row that names it is enough."""
        digest = digest_of(f"{name} {version}".encode())
        with self.database.write() as connection:
            connection.execute(
                insert(schema.environments).values(
                    digest=digest, name=name, version=version, precedence=Version(version).precedence,
                    publisher="pam", published_at=self.now().at, envelope=b"",
                )
            )  # fmt: skip
        return digest

    def publish(self, *versions: str, **fields: Any) -> None:
        """`fields` of the release that are not those of every test."""
        for version in versions:
            payload = strict_json.encode(msgspec.structs.replace(release(version), **fields))
            self.digests[version] = digest_of(payload)
            with self.database.write() as connection:
                connection.execute(
                    insert(schema.releases).values(
                        digest=digest_of(payload), pipeline=PIPELINE, version=version,
                        precedence=Version(version).precedence, publisher="pam", published_at=self.now().at,
                        envelope=signing.sign(payload, RELEASE_TYPE, [DIRECTOR]),
                    )
                )  # fmt: skip

    def command(self, act: Act, *signers: str) -> Any:
        """As its door does after it verified the signatures."""
        number = next(self.ids)
        command = Command(fleet="test", id=f"{number:08x}" * 4, issued_at=1, not_after=2, act=act)
        digest = digest_of(strict_json.encode(command))
        with self.database.write() as connection:
            keys = [KEYS[name].public.key_id for name in signers or ("ann",)]
            return commands.execute(connection, self, command, digest, keys)

    def plan(self, version: str, **fields: Any) -> str:
        given = {"requests_min": 20, "soak_s": 3, "deadline_s": 120, **fields}
        return str(self.command(RolloutPlan(pipeline=PIPELINE, version=version, **given))["id"])

    def roll_back(self, version: str, segment: Any, *signers: str, to: str | None = None, **more: Any) -> Any:
        act = Rollback(pipeline=PIPELINE, version=version, reason="worse at night", segment=segment, to=to, **more)
        return self.command(act, *signers)

    def approve(self, rollback: Any, *signers: str) -> Any:
        return self.command(Approve(rollback=rollback["id"], request=rollback["request"]), *signers)

    def rollout(self, rollout: str) -> Any:
        with self.database.read() as connection:
            return views.rollout(connection, rollout)

    def rollback(self, rollback: str) -> Any:
        with self.database.read() as connection:
            return views.rollback(connection, rollback)

    def fleet(self) -> Any:
        with self.database.read() as connection:
            return views.fleet(connection, self.now().at)["pipelines"][PIPELINE]

    def decisions(self) -> list[tuple[str, str]]:
        with self.database.read() as connection:
            rows = connection.execute(schema.decisions.select().order_by(schema.decisions.c.id))
            return [(row.kind, row.subject) for row in rows]

    def document(self, region: str) -> Assignment:
        with self.database.read() as connection:
            stored = outbox.stored_documents(connection, f"region/{region}")
        payload = signing.verify(
            stored[0].envelope, TYPE, self.authorities.director_keys(), size_bytes_max=100_000
        ).payload
        return strict_json.decode(payload, Assignment, what="document", size_bytes_max=100_000)

    def documents(self) -> dict[str, Assignment]:
        return {region: self.document(region) for region in REGIONS}

    def round(self, *, bad: Iterable[str] = (), seconds: float = 2.0, awake: Iterable[str] | None = None) -> None:
        """Devices read their documents, act, answer 30 requests each and report; then the scheduler looks.

        A device breaks on each version, and in each environment, in `bad`: it falls back and condemns the pair by itself.
        """
        documents = self.documents()
        bad_digests = {self.digests.get(one, one) for one in bad}
        speaking = list(self.devices if awake is None else awake)
        rows: Rows = {schema.windows: [], schema.device_events: [], schema.device_state: []}
        for name in speaking:
            device = self.devices[name]
            device.obey(documents[device.labels["region"]])
            device.serve(rows, bad_digests)
            device.report(rows)
        with self.database.write() as connection:
            connection.execute(delete(schema.device_state).where(schema.device_state.c.device.in_(speaking)))
            for table, said in rows.items():
                if said:
                    connection.execute(insert(table), said)
            changes.mark(connection, "fleet")
        self.scheduler.tick()
        self.clock.passes(seconds)

    def rounds_until(self, rollout: str, state: str, *, limit: int = 60, **how: Any) -> int:
        """Rounds until the rollout is in that state; how many."""
        for count in range(limit):
            if self.rollout(rollout)["state"] == state:
                return count
            self.round(**how)
        raise AssertionError(f"{rollout} is {self.rollout(rollout)['state']}, not {state}: {self.rollout(rollout)}")

    def install(self, version: str) -> None:
        rollout = self.plan(version)
        from holdfast_shared.wire.command import RolloutStart

        self.command(RolloutStart(rollout=rollout))
        self.rounds_until(rollout, "finished")

    def serving(self) -> dict[str, str]:
        return {
            name: one.view.current.release.version if one.view.current else "" for name, one in self.devices.items()
        }

    def environments(self) -> set[str]:
        """Those that devices serve in now."""
        return {one.view.current.environment for one in self.devices.values() if one.view.current}


class Speaker:
    """A device reduced to its slots and its words."""

    def __init__(self, bench: Bench, device: str, labels: dict[str, str]) -> None:
        self.bench, self.device, self.labels = bench, device, labels
        self.view = View(device=device, labels=labels)
        self.numbers = itertools.count(1)
        self.activated: list[str] = []
        self.requests: Requests | None = None
        self.deaf = False  # to documents; it still reports
        self.shadow: Target | None = None

    def obey(self, document: Assignment) -> None:
        if self.deaf:
            return
        decision = assign([document], self.view)
        self.shadow = decision.shadow
        target = decision.serve or (decision.stopgap if decision.urgent else None)
        self.requests = decision.requests if target is not None else None
        if target is not None and target != self.view.current:
            self.activated.append(target.release.version)
            self.view = msgspec.structs.replace(self.view, current=target, previous=self.view.current)

    def serve(self, rows: Rows, bad: set[str]) -> None:
        """30 requests, 10 of them null where the release is bad; then it falls back, if it has somewhere to go."""
        self.have_shadowed(rows)
        current = self.view.current
        if current is None:
            return
        broken = bool({current.release.digest, current.environment} & bad)
        measures = self.bench.measures.get(current.release.version)
        now, late_us = self.bench.now(), self.bench.spooled_us + self.bench.clocks_behind_us
        rows[schema.windows].append(
            {
                "device": self.device, "incarnation": "0" * 16, "pipeline": PIPELINE, "window": next(self.numbers),
                "release_digest": current.release.digest, "environment": current.environment,
                "opened_at": now.at - 2 * SECOND_US - late_us,
                "closed_at": now.at - late_us, "requests": 30, "errors": 0, "nulls": 10 if broken else 0, "hangs": 0,
                "input_faults": 0,
                "failed_over": 0, "memory_bytes_max": self.bench.memory.get(current.release.version, 0),
                "latency": '{"bins":[[100,30]]}', "received_at": now.at,
                "measures": strict_json.encode(measures).decode() if measures is not None else "",
            }
        )  # fmt: skip
        if broken and self.view.previous is not None:
            self.fall_back(rows, current, now)

    def have_shadowed(self, rows: Rows) -> None:
        """One window of what shadows, if the test says what is in it."""
        said = self.bench.shadows.get(self.shadow.release.version) if self.shadow is not None else None
        if self.shadow is None or said is None:
            return
        now = self.bench.now()
        rows[schema.windows].append(
            {
                "device": self.device, "incarnation": "0" * 16, "pipeline": PIPELINE, "window": next(self.numbers),
                "release_digest": self.shadow.release.digest, "environment": self.shadow.environment,
                "opened_at": now.at - 86_400 * SECOND_US, "closed_at": now.at, "requests": 0, "errors": 0, "nulls": 0,
                "hangs": 0, "input_faults": 0, "failed_over": 0, "memory_bytes_max": 0, "latency": '{"bins":[]}',
                "received_at": now.at, "measures": strict_json.encode(Measures(shadow=said)).decode(),
            }
        )  # fmt: skip

    def fall_back(self, rows: Rows, current: Target, now: Moment) -> None:
        rows[schema.device_events].append(
            {
                "device": self.device, "incarnation": "0" * 16, "number": next(self.numbers), "position": 0, "kind": "fell_back",
                "pipeline": PIPELINE, "release_version": current.release.version, "release_digest": current.release.digest,
                "environment": current.environment, "code": "guardrail-null-rate", "detail": "", "at": now.at,
                "at_monotonic_us": now.monotonic_us, "began_monotonic_us": now.monotonic_us - 1000, "boot": BOOT,
                "received_at": now.at,
            }
        )  # fmt: skip
        self.view = msgspec.structs.replace(
            self.view,
            current=self.view.previous,
            previous=None,
            condemned_here=(*self.view.condemned_here, LocalCondemnation(target=current)),
        )

    def report(self, rows: Rows) -> None:
        now = self.bench.now()
        current, previous = self.view.current, self.view.previous

        def said_of(slot: Target | None) -> SlotReport | None:
            return SlotReport(release=slot.release, environment=slot.environment, ready=True) if slot else None

        condemned = tuple(
            CondemnedHere(
                release=one.target.release,
                environment=one.target.environment,
                attempt=0,
                code="guardrail-null-rate",
            )
            for one in self.view.condemned_here
        )
        said = PipelineReport(
            pipeline=PIPELINE,
            state="shadowing" if self.shadow is not None else "idle",
            serving=said_of(current),
            current=said_of(current),
            previous=said_of(previous),
            candidate=said_of(self.shadow),
            condemned_here=condemned,
            requests=self.requests,
        )
        report = {
            "type": "holdfast.report/1", "fleet": "test", "device": self.device, "incarnation": "0" * 16,
            "number": next(self.numbers), "kind": "health", "sent_at": now.at - self.bench.clocks_behind_us,
            "sent_monotonic_us": now.monotonic_us,
            "boot": BOOT, "membership_counter": 1, "agent_version": "0", "pipelines": [said],
            "isolation": {"applied": {"network": "seccomp"}, "degraded": {"files": "the kernel offers no Landlock"}},
        }  # fmt: skip
        rows[schema.device_state].append(
            {
                "device": self.device, "incarnation": "0" * 16, "number": report["number"], "sent_at": now.at,
                "report": msgspec.json.encode(report).decode(), "last_seen_at": now.at, "presence": "online",
            }
        )  # fmt: skip
