"""A good release, and one on trial that does harm at a blank image: what becomes of that one request."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from holdfast_gateway.control import SlotStatus, Status
from holdfast_shared.assign import Target
from holdfast_shared.wire.release import Limits
from holdfast_shared.wire.report import Window
from support import digits_models, installed_release
from support.gateway_bench import PIPELINE, AgentEnd, GatewayBench

MIB: Final = 1024**2
LIMITS: Final = Limits(deadline_ms=10_000, load_deadline_s=60, memory_bytes_max=256 * MIB)
LARGE_BYTES: Final = 400 * MIB


class Came(NamedTuple):
    """What became of one request that does harm in the release on trial, in front of a good one."""

    answered_by: str
    window: Window  # of the release on trial
    status: SlotStatus
    agent: AgentEnd
    good: Target


def after_one_blank_image(bench: GatewayBench, model: bytes | None = None, limits: Limits = LIMITS) -> Came:
    good = Target(release=installed_release.install(bench.folder, PIPELINE, "1.0.0", digits_models.trained()))
    details: dict[str, Any] = {"limits": limits}
    made = model or digits_models.trained(0.2)
    bad = Target(release=installed_release.install(bench.folder, PIPELINE, "1.2.0", made, **details))
    agent = bench.agent()
    agent.until_in_force(agent.serve(bad, refuge=good))
    agent.until_state(good, "ready")
    image = digits_models.blank_images()[:1]
    with bench.http() as http:
        body = json.dumps({"inputs": [installed_release.tensor("image", image)]}).encode()
        status, answer = http.infer_raw(body)
    assert status == 200, answer
    ready = agent.comes_to(bad, "ready")
    window = next(one for one in agent.windows() if one.release == bad.release)
    return Came(str(answer["model_version"]), window, ready, agent, good)


def told(agent: AgentEnd) -> Any:
    found = [one for one in agent.heard if isinstance(one, Status) and any(slot.state == "ready" for slot in one.slots)]
    assert found[-1].isolation is not None
    return found[-1].isolation
