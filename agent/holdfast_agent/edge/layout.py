"""Where things lie on a device's disk. Agent, fetch, gateway and worker all ask here; nobody else joins these paths."""

from __future__ import annotations

from pathlib import Path

from holdfast_shared.identifiers import hex_of
from holdfast_shared.variants import CHOICE_SUFFIX, choice_name


class StateFolder:
    """A device's state directory (`StateDirectory=` of the units) and, under it, what a reboot may clear (`run/`)."""

    __slots__ = ("root", "run")

    def __init__(self, root: Path, run: Path | None = None) -> None:
        self.root = root
        self.run = run or root / "run"

    @property
    def record(self) -> Path:
        """A doubled file: `record.a` and `record.b`."""
        return self.root / "record"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests" / "sha256"

    @property
    def environments(self) -> Path:
        """Built from wheels: each a virtual environment of its own, and the list of its files."""
        return self.root / "environments"

    @property
    def partial(self) -> Path:
        """Downloads that have not been verified yet; nothing in here is ever loaded."""
        return self.root / "partial"

    @property
    def fetch_lock(self) -> Path:
        """Held by whoever adds to blobs and manifests or deletes of them: one fetch, or one collection of garbage."""
        return self.root / "fetch.lock"

    @property
    def network_budget(self) -> Path:
        """What was spent today on a metered network."""
        return self.root / "network-budget.json"

    @property
    def spool(self) -> Path:
        return self.root / "spool.db"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def agent_socket(self) -> Path:
        """Where somebody on the device asks the running agent to act."""
        return self.run / "agent.sock"

    @property
    def gateway_socket(self) -> Path:
        return self.run / "gateway.sock"

    @property
    def gateway_addresses(self) -> Path:
        """JSON `{"http": "http://127.0.0.1:PORT", "unix": "…/gateway.sock", "pid": N}`, written once it listens."""
        return self.run / "gateway.json"

    def blob(self, digest: str) -> Path:
        return self.blobs / hex_of(digest)

    def environment(self, digest: str) -> Path:
        return self.environments / hex_of(digest)

    def environment_python(self, digest: str) -> Path:
        """What a worker of that environment is started with."""
        return self.environment(digest) / "bin" / "python"

    def manifest(self, digest: str) -> Path:
        """The DSSE envelope whose payload has that digest: of a release, a model or an environment."""
        return self.manifests / hex_of(digest)

    def choice(self, digest: str, environment: str) -> Path:
        """Which variants of the release's models were fetched for that environment; there when a model has several."""
        return self.manifests / choice_name(digest, environment)

    def choices(self, digest: str) -> list[Path]:
        """Those of that release that are there, beside its manifest."""
        return sorted(self.manifests.glob(f"{hex_of(digest)}*{CHOICE_SUFFIX}"))

    def partial_blob(self, digest: str) -> Path:
        """The first bytes of a blob, as far as they came."""
        return self.partial / hex_of(digest)

    def partial_transfer(self, digest: str, codec: str) -> Path:
        """The first bytes of another form of that blob, as far as they came."""
        return self.partial / f"{hex_of(digest)}.{codec}-partial"

    def transfer(self, digest: str, codec: str) -> Path:
        """Another form of that blob, all there; the blob is made of it next."""
        return self.partial / f"{hex_of(digest)}.{codec}"

    def partial_manifest(self, digest: str) -> Path:
        """The verified manifest of a release or model whose blobs are still coming."""
        return self.partial / f"manifest-{hex_of(digest)}"
