"""Environments are rolled out, halted and taken back apart from the release that runs in them, which stays what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast_shared import selector
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing
from holdfast_shared.wire.command import RolloutStart
from support.rollout_bench import Bench

EU = selector.parse("region=eu-west")


class Two(Bench):
    """A release that was validated in two environments and in the device's own; `old` is the preferred one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.old, self.new = self.publish_environment("onnx", "1.0.0"), self.publish_environment("onnx", "1.1.0")
        self.publish("1.0.0", environments=(self.old, self.new, "system"))
        self.publish("2.0.0", environments=("system",))

    def start(self, version: str, **fields: Any) -> str:
        rollout = self.plan(version, **fields)
        self.command(RolloutStart(rollout=rollout))
        return rollout

    def move(self, version: str, **fields: Any) -> None:
        self.rounds_until(self.start(version, **fields), "finished")

    def slots(self) -> set[tuple[str, str]]:
        return {
            (one.view.current.release.digest, one.view.current.environment)
            for one in self.devices.values()
            if one.view.current
        }

    @property
    def digest(self) -> str:
        return self.digests["1.0.0"]


@pytest.fixture
def bench(tmp_path: Path) -> Two:
    return Two(tmp_path)


def test_a_plan_takes_the_environment_that_the_release_prefers(bench: Two) -> None:
    bench.move("1.0.0")
    assert bench.slots() == {(bench.digest, bench.old)}
    assert {rule.environment for one in bench.documents().values() for rule in one.rules} == {bench.old}


def test_a_release_in_the_devices_own_environment_is_said_as_ever(bench: Two) -> None:
    """Older agents read no environment there, and need none."""
    bench.move("2.0.0")
    assert {rule.environment for one in bench.documents().values() for rule in one.rules} == {None}


def test_the_same_release_goes_out_in_a_new_environment(bench: Two) -> None:
    """Wave by wave like any rollout, counted by pair: what the devices did in the old one proves nothing."""
    bench.move("1.0.0")
    before = bench.slots()
    rollout = bench.start("1.0.0", environment="onnx@1.1.0")
    assert bench.rollout(rollout)["release"]["environment"] == bench.new
    bench.rounds_until(rollout, "finished")
    assert bench.slots() == {(bench.digest, bench.new)}
    assert before == {(bench.digest, bench.old)}
    with pytest.raises(Conflict, match="already"):
        bench.plan("1.0.0", environment=bench.new)


def test_an_environment_that_fails_is_halted_and_the_release_is_not(bench: Two) -> None:
    """The pair is condemned: devices go on with the same models in the environment that did well."""
    bench.move("1.0.0")
    rollout = bench.start("1.0.0", environment="onnx@1.1.0")
    bench.rounds_until(rollout, "halted", bad=[bench.new])
    bench.round()
    bench.round()
    assert bench.slots() == {(bench.digest, bench.old)}
    shown = bench.rollout(rollout)
    assert shown["devices_back"] == shown["devices_before"]
    condemned = {
        (one.release.digest, one.environment)
        for document in bench.documents().values()
        for one in document.condemned
        if one.release
    }
    assert condemned == {(bench.digest, bench.new)}
    with pytest.raises(Conflict, match="condemned"):
        bench.plan("1.0.0", environment="onnx@1.1.0")
    bench.move("1.0.0", environment="system")


def test_a_rollback_of_an_environment_leaves_the_release_where_it_is(bench: Two) -> None:
    """Exactly the segment, to where it came from; release digests before and after are the same."""
    bench.move("1.0.0")
    bench.move("1.0.0", environment="onnx@1.1.0")
    digests = {name: one.view.current.release for name, one in bench.devices.items() if one.view.current}
    done = bench.roll_back("1.0.0", EU, "ann", "bob", environment="onnx@1.1.0")
    assert (done["environment"], done["to_environment"], done["to"]) == (bench.new, bench.old, "1.0.0")
    for _ in range(3):
        bench.round()
    for name, device in bench.devices.items():
        assert device.view.current is not None
        assert device.view.current.release == digests[name]
        assert device.view.current.environment == (bench.old if device.labels["region"] == "eu-west" else bench.new)
    shown = bench.rollback(done["id"])
    assert shown["devices_back"] == shown["devices_before"] == 10
    assert ("rollback accepted", done["id"]) in bench.decisions()


def test_a_rollback_of_an_environment_may_say_where_to(bench: Two) -> None:
    bench.move("1.0.0")
    done = bench.roll_back("1.0.0", (), "ann", "bob", environment=bench.old, to_environment="system")
    assert done["to_environment"] == "system"
    for _ in range(3):
        bench.round()
    assert bench.slots() == {(bench.digest, "system")}


def test_without_a_word_it_goes_to_the_first_other_that_the_release_names(bench: Two) -> None:
    """The segment never ran it in another: the publisher's order decides, past what is condemned."""
    bench.move("1.0.0")
    assert bench.roll_back("1.0.0", EU, "ann", "bob", environment=bench.old)["to_environment"] == bench.new
    bench.round()
    assert bench.roll_back("1.0.0", EU, "ann", "bob", environment=bench.new)["to_environment"] == "system"


def test_a_rollback_of_the_version_takes_it_back_from_every_environment(bench: Two) -> None:
    bench.move("2.0.0")
    bench.move("1.0.0")
    bench.roll_back("1.0.0", (), "ann", "bob")
    for _ in range(3):
        bench.round()
    assert bench.slots() == {(bench.digests["2.0.0"], "system")}
    for environment in (bench.old, bench.new):
        with pytest.raises(Conflict, match="condemned"):
            bench.plan("1.0.0", environment=environment)


def test_an_environment_taken_back_from_every_version_runs_nothing_there(bench: Two) -> None:
    """Each version goes on in another that it names; what never ran there yet may not go there either."""
    bench.publish("1.1.0", "1.2.0", environments=(bench.old, bench.new, "system"))
    bench.move("1.0.0", segment=selector.parse("region=us-east"))
    bench.move("1.1.0", segment=EU)
    done = bench.roll_back("1.0.0", (), "ann", "bob", environment="onnx@1.0.0", every_version=True)
    assert (done["every_version"], done["to_environment"]) == (True, bench.new)
    assert done["also"] == [{"version": "1.1.0", "environment": bench.new}]
    condemned = {(one.release, one.environment) for each in bench.documents().values() for one in each.condemned}
    assert condemned == {(None, bench.old)}
    for _ in range(3):
        bench.round()
    assert bench.slots() == {(bench.digests[version], bench.new) for version in ("1.0.0", "1.1.0")}
    shown = bench.rollback(done["id"])
    assert shown["devices_back"] == shown["devices_before"] == 20
    assert ("rollback accepted", done["id"]) in bench.decisions()
    with pytest.raises(Conflict, match=f"environment {bench.old} is condemned"):
        bench.plan("1.2.0")
    bench.move("1.2.0", environment=bench.new)


def test_what_came_into_an_environment_before_the_approval_leaves_it_too(bench: Two) -> None:
    """And goes on as itself: no device gets another version by it."""
    bench.publish("1.1.0", environments=(bench.old, bench.new))
    bench.move("1.0.0", segment=selector.parse("region=us-east"))
    asked = bench.roll_back("1.0.0", (), "ann", environment=bench.old, every_version=True)
    assert (asked["state"], asked["also"]) == ("waiting", [])
    bench.move("1.1.0", segment=EU)
    assert bench.approve(asked, "bob")["also"] == [{"version": "1.1.0", "environment": bench.new}]
    for _ in range(3):
        bench.round()
    assert bench.slots() == {(bench.digests[version], bench.new) for version in ("1.0.0", "1.1.0")}


def test_a_rollout_in_an_environment_that_is_taken_back_is_ended(bench: Two) -> None:
    bench.publish("1.1.0", environments=(bench.new, "system"))
    bench.move("1.0.0")
    rollout = bench.start("1.1.0")
    bench.round()
    bench.roll_back("1.0.0", (), "ann", "bob", environment=bench.new, to_environment=bench.old, every_version=True)
    assert bench.rollout(rollout)["state"] == "halted"
    for _ in range(3):
        bench.round()
    assert bench.slots() == {(bench.digest, bench.old)}


def test_a_version_that_could_go_on_nowhere_else_keeps_every_environment(bench: Two) -> None:
    """It is said which, and nothing is changed."""
    bench.publish("1.1.0", environments=(bench.old,))
    bench.move("1.0.0", segment=selector.parse("region=us-east"))
    bench.move("1.1.0", segment=EU)
    before = bench.documents()
    with pytest.raises(Malformed, match=r"1\.1\.0 was validated in no other"):
        bench.roll_back("1.0.0", (), "ann", "bob", environment=bench.old, every_version=True)
    assert bench.documents() == before


@pytest.mark.parametrize(
    ("version", "fields", "kind", "field"),
    [
        ("1.0.0", {"environment": "onnx@9.0.0"}, Missing, "environment"),
        ("1.0.0", {"environment": "sha256:" + "0" * 64}, Missing, "environment"),
        ("2.0.0", {"environment": "onnx@1.0.0"}, Malformed, "environment"),
    ],
)
def test_a_plan_in_an_environment_that_cannot_be_is_refused(
    bench: Two, version: str, fields: dict[str, Any], kind: type[HoldfastError], field: str
) -> None:
    with pytest.raises(kind) as caught:
        bench.plan(version, **fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("version", "fields", "kind", "field"),
    [
        ("1.0.0", {"environment": "onnx@9.0.0"}, Missing, "environment"),
        ("1.0.0", {"to_environment": "system"}, Malformed, "to_environment"),
        ("1.0.0", {"every_version": True}, Malformed, "every_version"),
        ("1.0.0", {"environment": "onnx@1.0.0", "to_environment": "onnx@1.0.0"}, Malformed, "to_environment"),
        ("1.0.0", {"environment": "onnx@1.0.0", "to_environment": "onnx@9.9.9"}, Missing, "to_environment"),
        ("1.0.0", {"environment": "onnx@1.0.0", "to": "2.0.0"}, Malformed, "to"),
        ("2.0.0", {"environment": "onnx@1.0.0"}, Malformed, "environment"),
        ("2.0.0", {"environment": "system"}, Malformed, "environment"),
        ("2.0.0", {"environment": "system", "to_environment": "onnx@1.0.0"}, Malformed, "to_environment"),
    ],
)
def test_a_rollback_of_an_environment_that_cannot_be_is_refused(
    bench: Two, version: str, fields: dict[str, Any], kind: type[HoldfastError], field: str
) -> None:
    """And changes nothing: neither documents nor requests."""
    bench.move("1.0.0")
    before = bench.documents()
    with pytest.raises(kind) as caught:
        bench.roll_back(version, (), "ann", "bob", **fields)
    assert caught.value.field == field
    assert bench.documents() == before
