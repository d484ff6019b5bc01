"""A device beside a server that may be hostile, and one release that the server has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_agent.edge import blobs
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import outcome, staging
from holdfast_agent.fetch.line import Restraint
from holdfast_agent.fetch.manifests import Order, Source
from holdfast_agent.fetch.outcome import Outcome
from holdfast_agent.fetch.patience import Deadline
from holdfast_shared.errors import HoldfastError
from holdfast_worker import installed
from support.hostile_server import (
    HostileServer,
    honest,
)
from support.installed_release import Published
from support.published import authorities, publish

PORTAL = b"<html>Please accept our terms</html>"
GOOD = publish()
WEIGHTS = GOOD.blobs[GOOD.weights]
WEIGHTS_PATH = f"/api/v1/blobs/{GOOD.weights}"
WAYS_PATH = f"{WEIGHTS_PATH}/transfers"
ETAG = f'"{GOOD.weights}"'
SMALL = 64 * 1024


@dataclass
class Bench:
    """A device beside a server that may be hostile."""

    server: HostileServer
    folder: StateFolder

    def serve(self, published: Published) -> None:
        for digest, envelope in published.manifests.items():
            self.server.on(f"/api/v1/manifests/{digest}", honest(envelope, f'"{digest}"'))
        for digest, content in published.blobs.items():
            self.server.on(f"/api/v1/blobs/{digest}", honest(content, f'"{digest}"'))

    def fetch(
        self,
        published: Published = GOOD,
        *,
        order: Order | None = None,
        deadline_s: float = 30.0,
        restraints: Sequence[Restraint] = (),
        from_disk: bool = False,
        **more: Any,
    ) -> Outcome:
        """As the process does it, and with every invariant checked afterwards."""
        source = Source(self.server.url, self.folder, authorities(), restraints, from_disk)
        wanted = order or Order("digits", published.release.version, published.digest)
        more = {"machine": installed.machine()} | more
        try:
            staging.stage(source, wanted, Deadline(deadline_s), **more)
            ended = Outcome(ok=True)
        except (HoldfastError, OSError) as error:
            ended = outcome.of_error(error)
        assert ended.code in outcome.EXIT_STATUS
        there = self.folder.manifest(published.digest).exists()
        assert there == (blobs.damaged(self.folder, published.digest) == []), "a manifest on disk means it is all there"
        assert there or not ended.ok
        return ended


def begun(bench: Bench, content: bytes, etag: str = ETAG) -> None:
    """A fetch that was broken off earlier left these bytes."""
    bench.folder.partial.mkdir(parents=True)
    bench.folder.partial_blob(GOOD.weights).write_bytes(content)
    if etag:
        bench.folder.partial_blob(GOOD.weights).with_suffix(".etag").write_text(etag)


def ranges(bench: Bench) -> list[str]:
    return [asked.headers.get("range", "") for asked in bench.server.asked(WEIGHTS_PATH)]
