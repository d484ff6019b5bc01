"""What is applied and what is degraded, from what is asked and what the machine offers: a table, without a machine."""

from __future__ import annotations

from typing import Any, Final

import pytest

from holdfast_shared.wire.report import Isolation
from holdfast_worker.isolation.plan import NOT_COUNTED_ALONE, TURNED_OFF, Asked, Offered, Step, plan

BY_ITSELF: Final = {"priority", "memory", "tasks", "programs", "network", "system", "files"}


def planned(
    *, off: tuple[str, ...] = (), isolated: dict[str, str] | None = None, nice: int = 3, **offered: Any
) -> tuple[Any, Isolation]:
    asked = Asked(nice=nice, off=frozenset(off), isolated=isolated or {})
    found = plan(asked, Offered(**{"landlock": 7, "failed": {}, **offered}))
    return found, found.told


def test_a_machine_that_has_everything_applies_everything() -> None:
    found, told = planned(isolated={"user": "holdfast-worker"})
    assert told.degraded == {}
    assert told.applied == {
        "priority": "nice 3",
        "memory": "RLIMIT_DATA",
        "tasks": "RLIMIT_NPROC",
        "programs": "seccomp",
        "network": "seccomp",
        "system": "seccomp",
        "files": "Landlock 7",
    }
    assert found.filtered == {"programs", "network", "system", "memory"}


@pytest.mark.parametrize(
    "offered",
    [{}, {"no_seccomp": "none here"}, {"no_landlock": "none here"}, {"failed": {Step.DATA: "no"}}],
    ids=["all", "no seccomp", "no Landlock", "a step failed"],
)
@pytest.mark.parametrize("off", [(), ("network",), tuple(sorted(BY_ITSELF))], ids=["", "one off", "all off"])
def test_every_protection_is_either_applied_or_degraded_with_a_reason(offered: Any, off: tuple[str, ...]) -> None:
    _, told = planned(off=off, **offered)
    assert told.applied.keys() | told.degraded.keys() == BY_ITSELF
    assert told.applied.keys() & told.degraded.keys() == set()
    assert all({**told.applied, **told.degraded}.values())


def test_each_step_forbids_nothing_that_a_later_one_needs() -> None:
    """The filter is last, and no new privileges come before what the kernel grants only with them."""
    found, _ = planned(isolated={"user": "w"})
    assert found.steps == (
        Step.PRIORITY,
        Step.CORE,
        Step.DATA,
        Step.TASKS,
        Step.NO_NEW_PRIVILEGES,
        Step.LANDLOCK,
        Step.SECCOMP,
    )


def test_what_the_gateway_applied_is_not_applied_again() -> None:
    found, told = planned(isolated={"memory": "memory.max 64 MiB", "tasks": "pids.max 32"})
    assert (told.applied["memory"], told.applied["tasks"]) == ("memory.max 64 MiB", "pids.max 32")
    assert not {Step.DATA, Step.TASKS} & set(found.steps)
    assert "memory" not in found.filtered, "a control group counts shared memory"


def test_tasks_are_counted_only_where_nobody_else_is_counted_with_them() -> None:
    """RLIMIT_NPROC counts a user's tasks: as the gateway's user, the gateway would be among them."""
    found, told = planned()
    assert told.degraded == {"tasks": NOT_COUNTED_ALONE}
    assert Step.TASKS not in found.steps


def test_without_a_filter_the_network_is_left_by_a_namespace() -> None:
    found, told = planned(no_seccomp="no seccomp filter for riscv64 yet")
    assert told.applied["network"] == "network namespace"
    assert Step.NAMESPACE in found.steps
    assert told.degraded["programs"] == told.degraded["system"] == "no seccomp filter for riscv64 yet"


def test_without_filter_and_namespace_both_reasons_are_told() -> None:
    found, told = planned(no_seccomp="no filter", failed={Step.NAMESPACE: "no namespace"})
    assert told.degraded["network"] == "no filter; no namespace"
    assert Step.NAMESPACE not in found.steps


@pytest.mark.parametrize("name", sorted(BY_ITSELF))
def test_what_is_turned_off_is_told_as_that_and_leaves_the_others(name: str) -> None:
    found, told = planned(off=(name,), isolated={"user": "w"})
    assert told.degraded == {name: TURNED_OFF}
    assert name not in found.filtered


def test_a_filter_with_nothing_to_refuse_is_not_loaded() -> None:
    found, _ = planned(off=("programs", "network", "system"))
    assert Step.SECCOMP not in found.steps


def test_no_priority_is_asked_for_by_nice_0() -> None:
    found, told = planned(nice=0, isolated={"user": "w"})
    assert told.degraded == {"priority": "[gateway] worker_nice is 0"}
    assert Step.PRIORITY not in found.steps
