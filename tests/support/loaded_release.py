"""A release loaded in this process as a worker loads it, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_worker import release_runner
from holdfast_worker.failures import LoadRefused
from holdfast_worker.release_runner import Runner
from support.installed_release import Published, install


def refused(state: StateFolder, digest: str, **changes: Any) -> LoadRefused:
    with pytest.raises(LoadRefused) as found:
        release_runner.load(state.manifests, state.blobs, digest, **changes)
    assert "\n" not in found.value.detail
    return found.value


def refused_release(state: StateFolder, model: bytes, **details: Any) -> LoadRefused:
    return refused(state, install(state, "digits", "1.0.0", model, **details).digest)


def loaded(state: StateFolder, published: Published) -> Runner:
    published.install(state)
    return release_runner.load(state.manifests, state.blobs, published.ref.digest)
