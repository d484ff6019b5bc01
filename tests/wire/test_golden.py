"""Golden files: one per wire type and version. Old ones load for ever, and today's code still writes them byte for byte.

A change of a type that breaks a file here breaks devices in the field: add a version, and keep the old file. To write the
file of a new type: `python tests/wire/test_golden.py NAME`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from holdfast_shared import authorities, strict_json
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.errors import Malformed
from holdfast_shared.histogram import Histogram
from holdfast_shared.selector import Term
from holdfast_shared.wire import assignment, command, environment, membership, release, report, transfers

GOLDEN: Final = Path(__file__).parent / "golden"
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
KEY: Final = "A" * 43 + "="
REF = assignment.ReleaseRef(version="1.2.0", digest=A)
OLD = assignment.ReleaseRef(version="1.1.0-rc.1+build.5", digest=B)
SEGMENT = (Term(label="region", op="in", values=("eu-west",)), Term(label="site", op="not_in", values=("a", "b")))

# Every field of every type carries a value that is not its default, so that losing one shows.
DOCUMENTS: Final[dict[str, Any]] = {
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
    "report-1": report.Report(
        fleet="demo",
        device="camera-7",
        incarnation="0123456789abcdef",
        number=42,
        kind="event",
        sent_at=1_790_000_000_000_000,
        sent_monotonic_us=55_000_000,
        boot="b",
        membership_counter=4,
        agent_version="0.1.0",
        fingerprint={"runtime": "onnxruntime 1.32.0"},
        isolation=report.Isolation(applied={"network": "seccomp"}, degraded={"files": "the kernel offers no Landlock"}),
        accepted=(
            report.AcceptedDocument(scope=assignment.Scope(device="camera-7"), pipeline="digits", epoch=3, seq=17),
        ),
        pipelines=(
            report.PipelineReport(
                pipeline="digits",
                state="trial",
                serving=report.SlotReport(release=REF, environment="system", ready=True),
                current=report.SlotReport(release=OLD, environment="system", ready=True, unproven=True),
                previous=report.SlotReport(release=OLD, environment=B),
                candidate=report.SlotReport(release=REF, environment="system", ready=True),
                condemned_here=(report.CondemnedHere(release=OLD, environment=B, attempt=1, code="crash-loop", at=9),),
                single=True,
                degraded=True,
                waiting_for="the switch window",
            ),
        ),
        windows=(
            report.Window(
                window=7,
                pipeline="digits",
                release=REF,
                environment="system",
                opened_at=1,
                closed_at=2,
                requests=100,
                errors=1,
                nulls=2,
                hangs=3,
                input_faults=4,
                failed_over=5,
                latency=Histogram(((10, 60), (200, 40))),
                memory_bytes_max=33_000_000,
            ),
        ),
        events=(
            report.Event(
                kind="fell_back",
                at=1_790_000_000_000_000,
                at_monotonic_us=54_000_000,
                boot="b",
                pipeline="digits",
                release=REF,
                environment="system",
                code="guardrail-null-rate",
                detail="12 of 80",
                began_monotonic_us=53_000_000,
            ),
        ),
        critical=("windows",),
    ),
    "report-1-machine": report.Report(
        fleet="demo",
        device="camera-7",
        incarnation="0123456789abcdef",
        number=44,
        kind="health",
        sent_at=1_790_000_000_000_000,
        sent_monotonic_us=55_000_000,
        boot="b",
        membership_counter=4,
        agent_version="0.1.0",
        machine=report.MachineFacts(
            architecture="aarch64", memory_bytes=4_000_000_000, runtimes=("onnx", "tflite"), accelerators=("coral",)
        ),
    ),
    "report-1-measures": report.Report(
        fleet="demo",
        device="camera-7",
        incarnation="0123456789abcdef",
        number=43,
        kind="health",
        sent_at=1_790_000_000_000_000,
        sent_monotonic_us=55_000_000,
        boot="b",
        membership_counter=4,
        agent_version="0.1.0",
        windows=(
            report.Window(
                window=8,
                pipeline="digits",
                release=REF,
                environment="system",
                opened_at=1,
                closed_at=2,
                requests=9,
                labelled=7,
                agreed=6,
                confidence=(0,) * 18 + (4, 5),
                margin=(9,) + (0,) * 19,
                drift=(report.DriftCounts(feature="ink", counts=(4, 3, 2), expected=(34, 33, 33)),),
            ),
        ),
        events=(
            report.Event(
                kind="guardrail",
                at=1_790_000_000_000_000,
                at_monotonic_us=54_000_000,
                boot="b",
                code="guardrail-drift",
            ),
        ),
    ),
    "report-1-shares": report.Report(
        fleet="demo",
        device="camera-7",
        incarnation="0123456789abcdef",
        number=44,
        kind="health",
        sent_at=1_790_000_000_000_000,
        sent_monotonic_us=55_000_000,
        boot="b",
        membership_counter=4,
        agent_version="0.1.0",
        pipelines=(
            report.PipelineReport(
                pipeline="digits",
                state="trial",
                serving=report.SlotReport(release=REF, environment="system", ready=True),
                current=report.SlotReport(release=OLD, environment="system", ready=True),
                candidate=report.SlotReport(release=REF, environment="system", ready=True),
                requests=assignment.Requests(share=500, segment=SEGMENT),
            ),
        ),
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
    "report-1-shadow": report.Report(
        fleet="demo",
        device="camera-7",
        incarnation="0123456789abcdef",
        number=44,
        kind="health",
        sent_at=1_790_000_000_000_000,
        sent_monotonic_us=56_000_000,
        boot="b",
        membership_counter=4,
        agent_version="0.1.0",
        pipelines=(
            report.PipelineReport(
                pipeline="digits",
                state="shadowing",
                candidate=report.SlotReport(release=REF, environment="system", ready=True),
            ),
        ),
        windows=(
            report.Window(
                window=9,
                pipeline="digits",
                release=REF,
                environment="system",
                opened_at=1,
                closed_at=2,
                shadow=report.ShadowCounts(
                    requests=9,
                    dropped=2,
                    errors=2,
                    hangs=1,
                    nulls=1,
                    incomparable=1,
                    compared=10,
                    agreed=9,
                    difference=(3, 1) + (0,) * 7 + (1,),
                    latency=Histogram(((120, 8),)),
                    serving_latency=Histogram(((118, 8),)),
                    confidence=(0,) * 18 + (4, 6),
                    margin=(1,) + (0,) * 18 + (9,),
                    serving_confidence=(0,) * 19 + (10,),
                    serving_margin=(0,) * 19 + (10,),
                ),
            ),
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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_golden_file_loads_and_is_written_again(name: str) -> None:
    raw = (GOLDEN / f"{name}.json").read_bytes()
    value = DOCUMENTS[name]
    assert strict_json.decode(raw, type(value), what=name, size_bytes_max=1024**2) == value
    assert strict_json.encode(value) == raw


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_field_has_a_value_in_it(name: str) -> None:
    """Golden documents that leave a field at its default would not notice that the field is gone.

    A field that came later has its value in a file of its own, `NAME-….json`: the older ones stay as they were written.
    """
    values = [DOCUMENTS[name], *(value for other, value in DOCUMENTS.items() if other.startswith(f"{name}-"))]
    later = [value for other, value in DOCUMENTS.items() if name.startswith(f"{other}-")]
    for field in msgspec.structs.fields(DOCUMENTS[name]):
        if not field.required and not later:
            assert any(getattr(value, field.name) != field.default for value in values), field.name


def test_every_field_of_a_window_has_a_value() -> None:
    windows = [one for value in DOCUMENTS.values() if isinstance(value, report.Report) for one in value.windows]
    for field in msgspec.structs.fields(report.Window):
        assert field.required or any(getattr(one, field.name) != field.default for one in windows), field.name


def test_every_field_of_a_windows_shadow_has_a_value() -> None:
    windows = [one for value in DOCUMENTS.values() if isinstance(value, report.Report) for one in value.windows]
    shadows = [one.shadow for one in windows if one.shadow is not None]
    for field in msgspec.structs.fields(report.ShadowCounts):
        assert any(getattr(one, field.name) != field.default for one in shadows), field.name


@pytest.mark.parametrize("path", sorted((GOLDEN / "older").glob("*.json")), ids=lambda path: path.stem)
def test_what_was_written_before_a_field_was_added_still_loads(path: Path) -> None:
    """`older/NAME.before-FIELD.json`: everything that stands in it is read, and the field has its default."""
    raw = path.read_bytes()
    name, _, field = path.stem.partition(".before-")
    value = strict_json.decode(raw, type(DOCUMENTS[name]), what=name, size_bytes_max=1024**2)
    default = next(one.default for one in msgspec.structs.fields(value) if one.name == field)
    assert getattr(value, field) == default
    written = msgspec.json.decode(strict_json.encode(value))
    assert written.items() >= msgspec.json.decode(raw).items()


def test_there_is_a_file_for_every_type_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(DOCUMENTS)
    types = {
        assignment.TYPE,
        membership.TYPE,
        release.MODEL_TYPE,
        release.RELEASE_TYPE,
        environment.TYPE,
        report.TYPE,
        command.TYPE,
        authorities.TYPE,
        transfers.TYPE,
    }
    assert {msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())["type"] for name in DOCUMENTS} == types
    verbs = {arm.__struct_config__.tag for arm in command.Act.__args__}
    assert {
        value.act.__struct_config__.tag for value in DOCUMENTS.values() if isinstance(value, command.Command)
    } == verbs


def test_a_field_of_a_later_version_is_ignored_but_in_a_command() -> None:
    later = (GOLDEN / "assignment-1.json").read_bytes().replace(b'{"type"', b'{"later":{"a":1},"type"', 1)
    assert (
        strict_json.decode(later, assignment.Assignment, what="a", size_bytes_max=1024**2) == DOCUMENTS["assignment-1"]
    )
    typo = (GOLDEN / "command-1-rollback.json").read_bytes().replace(b'"segment"', b'"segmnet"')
    with pytest.raises(Malformed, match="segmnet"):
        strict_json.decode(typo, command.Command, what="command", size_bytes_max=1024**2)


def test_another_version_of_a_type_is_refused() -> None:
    later = (GOLDEN / "report-1.json").read_bytes().replace(b"holdfast.report/1", b"holdfast.report/2")
    with pytest.raises(Malformed, match="report/2"):
        strict_json.decode(later, report.Report, what="report", size_bytes_max=1024**2)


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        (GOLDEN / f"{chosen}.json").write_bytes(strict_json.encode(DOCUMENTS[chosen]))
