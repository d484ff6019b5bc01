"""What every slot of a gateway shares: where releases lie, and how a worker is started in its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast_agent.edge.configuration import Standby
from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import manifest
from holdfast_gateway.confinement import Confinement
from holdfast_gateway.worker import Worker
from holdfast_shared.assign import Target
from holdfast_shared.errors import Damaged
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.environment import Settings
from holdfast_worker.isolation import launch
from holdfast_worker.protocol import Load

# Isolated: nothing around an environment, neither variables nor the current folder, adds to what it runs. And what was built is
# not written to: a file that nobody listed is damage.
LAUNCH: Final = (sys.executable, "-I", "-m", "holdfast_worker.isolation.launch")
WORKER_IN_ENVIRONMENT: Final = ("-I", "-B", "-m", "holdfast_worker")


@dataclass(frozen=True, slots=True)
class Bench:
    """One for a gateway. `workers` are those of which anything is left."""

    folder: StateFolder
    worker_command: Sequence[str]
    confinement: Confinement = field(default_factory=Confinement)
    standby: Standby = "auto"
    accelerators: tuple[str, ...] = ()
    delegates: Mapping[str, str] = field(default_factory=dict)
    workers: set[Worker] = field(default_factory=set)

    def load_of(self, pipeline: str, target: Target, settings: Settings) -> Load:
        """What a worker of that target is told, whatever it is for."""
        return Load(
            pipeline=pipeline,
            release=target.release.digest,
            environment=target.environment,
            manifests=str(self.folder.manifests),
            blobs=str(self.folder.blobs),
            isolation_off=self.confinement.off,
            tasks_max=self.confinement.tasks_max,
            threads=settings.threads,
            unreadable=True,
            accelerators=self.accelerators,
            delegates=dict(self.delegates),
            nice=self.confinement.nice,
        )

    def start(self, worker: Worker, environment: str, settings: Settings) -> None:
        """Start its process in that environment, and know it until nothing is left of it."""
        self.workers.difference_update([one for one in self.workers if one.gone])
        self.workers.add(worker)
        if environment == SYSTEM_ENVIRONMENT:
            worker.start(self.worker_command, self.confinement, settings.variables)
            return
        order = launch.order(
            root=self.folder.environment(environment),
            reads=(self.folder.manifests, self.folder.blobs),
            off=self.confinement.off,
            tasks_max=self.confinement.tasks_max if self.confinement.account is not None else 0,
            variables=settings.variables,
        )
        python = str(self.folder.environment_python(environment))
        worker.start((*LAUNCH, order, python, *WORKER_IN_ENVIRONMENT), self.confinement, {})

    def settings_of(self, environment: str) -> Settings:
        """Of an environment that is built here. Raises Damaged when it is not, or OSError."""
        if environment == SYSTEM_ENVIRONMENT:
            return Settings()
        found = manifest.settings_of(self.folder.manifest(environment), environment)
        if not os.access(self.folder.environment_python(environment), os.X_OK):
            raise Damaged("its environment is not built, or its interpreter is gone", next_step="fetch it again")
        return found
