"""Today's wire types as values, one for each golden file: every field carries a value that is not its default, so that losing
one shows.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.wire import assignment, command, environment, membership, release, transfers
from support.golden_reports import REPORTS
from support.golden_values import KEY, OLD, REF, SEGMENT, A, B

DOCUMENTS: Final[dict[str, Any]] = {
    **REPORTS,
    "assignment-1": assignment.Assignment(
        fleet="demo",
        scope=assignment.Scope(region="eu-west"),
        pipeline="digits",
        epoch=3,
        seq=17,
        issued_at=1_790_000_000_000_000,
        not_after=1_800_000_000_000_000,
        rules=(
            assignment.Rule(
                mode="serve",
                release=REF,
                match=SEGMENT,
                below=500,
                salt="r-17",
                environment=B,
                standby=OLD,
                requests=assignment.Requests(share=2_000, segment=SEGMENT),
                spread_s=600,
                not_before=1_790_000_000_000_001,
                windows=assignment.Windows(
                    download=(assignment.TimeSpan(from_="22:00", to="04:00", days=(0, 6)),),
                    switch=(assignment.TimeSpan(from_="02:00", to="03:30"),),
                ),
            ),
            assignment.Rule(mode="keep", release=OLD),
            assignment.Rule(mode="remove"),
        ),
        condemned=(assignment.Condemned(incident="i-4", match=SEGMENT, release=REF, environment="system"),),
        retry=(assignment.Retry(release=REF, attempt=2, match=SEGMENT),),
        floor="1.0.0",
        cause="rollout r-17, wave 2",
        critical=("floor",),
    ),
    "membership-1": membership.Membership(
        fleet="demo",
        device="camera-7",
        region="eu-west",
        counter=4,
        public_key=KEY,
        issued_at=1_790_000_000_000_000,
        labels={"ring": "canary", "site": "a"},
        stage="staging",
        critical=("stage",),
    ),
    "transfers-1": transfers.Transfers(
        blob=A, transfers=(transfers.Transfer(codec="zstd", digest=B, size_bytes=12_345),)
    ),
    "model-1": release.ModelVersion(
        name="digits-mlp",
        version="1.2.0",
        training_data=release.DataSet(name="digits", digest=A, rows=1_257),
        metrics={"accuracy": 0.974},
        framework=release.Framework(name="scikit-learn", version="1.9.1"),
        variants=(
            release.Variant(
                name="cpu",
                runtime="onnx",
                hardware=release.Hardware(architectures=("x86_64",), accelerators=("npu",), memory_bytes_min=1_000_000),
                files=(release.File(path="model.onnx", role="weights", digest=B, size_bytes=123),),
                inputs=(release.Tensor(name="image", datatype="FP32", shape=(-1, 64)),),
                outputs=(release.Tensor(name="scores", datatype="FP32", shape=(-1, 10)),),
            ),
        ),
        source_commit="0123abc",
        defects_fixed=("D-1",),
        defects_known=("D-2",),
        description="A small network.",
        critical=("variants",),
    ),
    "release-1": release.Release(
        pipeline="digits",
        version="1.2.0",
        stages=(
            release.Stage(
                name="classify",
                model=release.ModelRef(name="digits-mlp", version="1.2.0", digest=A),
                inputs={"image": "request.image"},
            ),
        ),
        outputs={"scores": "classify.scores"},
        self_test=release.SelfTest(
            blob=release.Blob(digest=B, size_bytes=99), absolute_tolerance=1e-4, relative_tolerance=0.01
        ),
        guardrails=(
            release.Guardrail(
                metric="latency_ms_p99", threshold=200.0, action="fall_back", requests_min=50, window_s=60
            ),
        ),
        trial=release.Trial(soak_s=600, requests_min=100),
        environments=(A, "system"),
        limits=release.Limits(deadline_ms=500, load_deadline_s=20, memory_bytes_max=268_435_456),
        requires=(release.Requirement(pipeline="crop", at_least="2.0.0", below="3.0.0"),),
        sentinels={"scores": -1.0},
        reference=release.Blob(digest=A, size_bytes=77),
        previous_may_go=True,
        agent_version_min="0.1.0",
        description="Retrained.",
        annotations={"ticket": "H-1"},
        critical=("requires",),
    ),
    "release-1-scores": release.Release(
        pipeline="digits",
        version="1.3.0",
        stages=(
            release.Stage(
                name="classify",
                model=release.ModelRef(name="digits-mlp", version="1.2.0", digest=A),
                inputs={"image": "request.image"},
            ),
        ),
        outputs={"scores": "classify.scores"},
        self_test=release.SelfTest(
            blob=release.Blob(digest=B, size_bytes=99), absolute_tolerance=1e-4, relative_tolerance=0.01
        ),
        guardrails=(
            release.Guardrail(metric="accuracy_proxy", threshold=0.9, action="fall_back", requests_min=50, window_s=60),
            release.Guardrail(metric="drift", threshold=0.2, action="halt", requests_min=200, window_s=60),
        ),
        trial=release.Trial(soak_s=600, requests_min=100),
        scores="scores",
    ),
    "command-1-rollout-plan-shadow": command.Command(
        fleet="demo",
        id="6" * 32,
        issued_at=1,
        not_after=2,
        act=command.RolloutPlan(
            pipeline="digits",
            version="1.2.0",
            shadow=command.ShadowPlan(agreement_min=0.985, rows_min=5000, hours_min=96),
        ),
    ),
    "command-1-rollback": command.Command(
        fleet="demo",
        id="0" * 32,
        issued_at=1,
        not_after=2,
        act=command.Rollback(
            pipeline="digits", version="1.2.0", reason="unfair", to="1.1.0", segment=SEGMENT, environment="system"
        ),
    ),
    "command-1-rollback-of-an-environment": command.Command(
        fleet="demo",
        id="0" * 32,
        issued_at=1,
        not_after=2,
        act=command.Rollback(
            pipeline="digits",
            version="1.2.0",
            reason="leaks",
            environment="onnx-cpu@1.1.0",
            to_environment="system",
            every_version=True,
        ),
    ),
    "environment-1": environment.Environment(
        name="onnx-cpu",
        version="1.2.0",
        requires_python=">=3.11,<3.14",
        wheels=(
            environment.Wheel(
                filename="holdfast_worker-0.1.0-py3-none-any.whl", digest=A, size_bytes=99_000, unpacked_bytes=300_000
            ),
        ),
        worker=environment.WorkerWheel(filename="holdfast_worker-0.1.0-py3-none-any.whl", oldest=1, newest=2),
        settings=environment.Settings(threads=2, variables={"OMP_WAIT_POLICY": "passive"}),
        description="onnxruntime on the CPU.",
        critical=("settings",),
    ),
    "command-1-approve": command.Command(
        fleet="demo", id="1" * 32, issued_at=1, not_after=2, act=command.Approve(rollback="rb-1", request=A)
    ),
    "command-1-rollout-plan": command.Command(
        fleet="demo",
        id="2" * 32,
        issued_at=1,
        not_after=2,
        act=command.RolloutPlan(
            pipeline="digits",
            version="1.2.0",
            segment=SEGMENT,
            waves=(command.WavePlan(share=500, regions=("eu-west",), labels={"ring": "canary"}),),
            gates=(command.GatePlan(metric="error_rate", threshold=0.02),),
            devices_min=3,
            requests_min=20,
            soak_s=10,
            deadline_s=60,
            environment="system",
            requests=assignment.Requests(share=100),
            windows=assignment.Windows(),
            spread_s=5,
        ),
    ),
    "command-1-rollout-plan-shares": command.Command(
        fleet="demo",
        id="7" * 32,
        issued_at=1,
        not_after=2,
        act=command.RolloutPlan(
            pipeline="digits",
            version="1.2.0",
            waves=(command.WavePlan(share=10_000, requests=500), command.WavePlan(share=10_000)),
            requests=assignment.Requests(share=10_000, segment=SEGMENT),
        ),
    ),
    "command-1-rollout-start": command.Command(
        fleet="demo", id="3" * 32, issued_at=1, not_after=2, act=command.RolloutStart(rollout="r-1")
    ),
    "command-1-rollout-pause": command.Command(
        fleet="demo", id="4" * 32, issued_at=1, not_after=2, act=command.RolloutPause(rollout="r-1")
    ),
    "command-1-rollout-resume": command.Command(
        fleet="demo", id="5" * 32, issued_at=1, not_after=2, act=command.RolloutResume(rollout="r-1")
    ),
    "command-1-rollout-abort": command.Command(
        fleet="demo", id="6" * 32, issued_at=1, not_after=2, act=command.RolloutAbort(rollout="r-1")
    ),
    "authorities-1": Authorities(
        fleet="demo",
        version=2,
        publishers=(Publisher(name="ml-team", public_key=KEY, pipelines=("digits",)),),
        directors=(Director(name="server", public_key=KEY, epoch=3),),
        enrolment=(Holder(name="factory", public_key=KEY),),
        operators=(Holder(name="alice", public_key=KEY),),
        approvers=(Holder(name="bob", public_key=KEY),),
    ),
}
