"""A stage in Python, served by the shipped gateway: a function that a wheel of the release's environment brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from holdfast_agent.fetch import building
from holdfast_agent.fetch.patience import Deadline
from holdfast_gateway.main import WORKER
from holdfast_shared.assign import Target
from holdfast_shared.identifiers import digest_of
from holdfast_shared.wire.release import File, Tensor
from support import digits_models, installed_release, wheels
from support.gateway_bench import PIPELINE, running_gateway

# What a publisher's own package may do before a model.
SCALING = b"""
import numpy as np

def answer(given):
    return {"image": given["image"] * np.float32(0.5)}
"""
ENTRY = b'{"entry": "scaling:answer"}'


@pytest.mark.slow
def test_a_function_of_a_wheel_answers_requests_from_its_environment(tmp_path: Path) -> None:
    """No model runtime is in it; the worker is shut in before the function's code first runs, as for any model."""
    image = Tensor(name="image", datatype="FP32", shape=(-1, 64))
    given = digits_models.images()[:1]
    case = {
        "inputs": [installed_release.tensor("image", given)],
        "outputs": [installed_release.tensor("image", given * np.float32(0.5))],
    }
    file = File(path="scaling.json", role="preprocessing", digest=digest_of(ENTRY), size_bytes=len(ENTRY))
    with running_gateway(tmp_path, worker=WORKER) as bench:
        brought = wheels.small("scaling", "1.0.0", {"scaling.py": SCALING})
        made = wheels.environment(packages=wheels.WORKER_NEEDS, more=[brought])
        made.install(bench.folder)
        interpreter = building.interpreter_for(made.environment)
        building.build(bench.folder, made.digest, made.environment, interpreter, Deadline(120))
        ref = installed_release.install(
            bench.folder,
            PIPELINE,
            "1.0.0",
            ENTRY,
            inputs=(image,),
            outputs=(image,),
            golden=[case],
            runtime="python",
            variant_changes={"files": (file,)},
            release_changes={"environments": (made.digest,)},
        )
        agent, target = bench.agent(), Target(release=ref, environment=made.digest)
        agent.until_in_force(agent.serve(target))
        body = json.dumps({"inputs": [installed_release.tensor("image", digits_models.images()[:2])]}).encode()
        with bench.http() as http:
            status, _, answer = http.ask("POST", f"/v2/models/{PIPELINE}/infer", body)
        assert status == 200
        (output,) = json.loads(answer)["outputs"]
        assert np.allclose(output["data"], digits_models.images()[:2].ravel() * 0.5)
