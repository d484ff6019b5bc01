"""Values that the tests of rollouts share: a fleet, releases, and what an operator asks."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from holdfast_server.core.plan import Member
from holdfast_server.core.release_in import ReleaseIn, Taken
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.command import RolloutPlan
from holdfast_shared.wire.release import Blob, Guardrail, ModelRef, Release, SelfTest, Stage, Trial

REGIONS: Final = ("ap-south", "eu-west", "us-east")
PIPELINE: Final = "digits"


def digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def ref(version: str) -> ReleaseRef:
    return ReleaseRef(version=version, digest=digest(version))


def placed(version: str, environment: str = SYSTEM_ENVIRONMENT) -> ReleaseIn:
    """That release in an environment."""
    return ReleaseIn(version=version, digest=digest(version), environment=environment)


def taken(version: str, environment: str | None = None) -> Taken:
    return Taken(release=ref(version), environment=environment)


def release(version: str = "1.2.0", *, guardrails: tuple[Guardrail, ...] = ()) -> Release:
    return Release(
        pipeline=PIPELINE,
        version=version,
        stages=(
            Stage(
                name="classify",
                model=ModelRef(name="classifier", version=version, digest=digest("model" + version)),
                inputs={"image": "request.image"},
            ),
        ),
        outputs={"label": "classify.label"},
        self_test=SelfTest(
            blob=Blob(digest=digest("test" + version), size_bytes=10), absolute_tolerance=0.1, relative_tolerance=0.1
        ),
        guardrails=guardrails,
        trial=Trial(soak_s=1, requests_min=10),
    )


def member(device: str, region: str, *, online: bool = True, rate_per_s: float | None = None, **labels: str) -> Member:
    selectable = {**labels, "region": region, "stage": "production", "device": device}
    return Member(device=device, labels=selectable, online=online, rate_per_s=rate_per_s)


def fleet(count: int = 300) -> list[Member]:
    """A real canary device in each region, and `count` light ones spread over them."""
    real = [member(f"real-{region}", region, kind="real", ring="canary") for region in REGIONS]
    light = [member(f"light-{n}", REGIONS[n % 3], kind="light", ring="field") for n in range(count)]
    return real + light


def asked(version: str = "1.2.0", **fields: Any) -> RolloutPlan:
    return RolloutPlan(pipeline=PIPELINE, version=version, **fields)
